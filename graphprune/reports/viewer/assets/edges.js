// The edges of the graph: the values that flow along them, with their shapes and types.

const LETTER = 6.1; // the width of a letter in a label
const shapesShown = () => byId("shapes").getAttribute("aria-pressed") === "true";

/** The shape and type of the values of an edge: of one, or of all if they are alike. */
function labelText({ values }) {
  const types = [...values].map((key) => valueOf(key).type).filter(Boolean);
  if (!types.length) return "";
  if (new Set(types).size === 1) return types.length > 1 ? `${types.length} × ${types[0]}` : types[0];
  return `${types[0]} and ${types.length - 1} more`;
}

const labelSize = (edge) => ({ width: labelText(edge).length * LETTER + 8, height: 14, labelpos: "c" });

/** All that flows along an edge, a line each. */
const edgeTitle = ({ values }) =>
  [...values]
    .map((key) => `${valueOf(key).name}: ${valueOf(key).type}`)
    .join("\n");

/** An edge: a line, a broad invisible one that catches the mouse, and its label. A click selects what flows. */
function makeEdge({ edge, points, label }) {
  const text = labelText(edge);
  const { width, height } = labelSize(edge);
  const d = curve(points);
  const [value] = edge.values;
  return s(
    "g",
    {
      class: "edge",
      click: (event) => {
        event.stopPropagation();
        select(thingOf(value));
      },
    },
    s("title", {}, edgeTitle(edge)),
    s("path", { d, class: "catch" }),
    s("path", { d, class: "wire" }),
    text &&
      s(
        "g",
        { class: "label" },
        s("rect", { x: label.x - width / 2, y: label.y - height / 2, width, height, rx: 4 }),
        s("text", { x: label.x, y: label.y + 3.5, "text-anchor": "middle" }, text),
      ),
  );
}

/** Does an edge begin or end at the selected box? */
const touchesSelected = ({ from, to, values }) =>
  [from, to, ...values].some((key) => key !== "in" && key !== "out" && isSelected(thingOf(key).type, thingOf(key).id));

/** The values that enter a module, and those that leave it. */
function crossing(id) {
  const own = new Set(inside(id).calls);
  const outside = (call) => !own.has(call);
  const run = [...own];
  return {
    inputs: [...new Set(run.flatMap((call) => calls[call].inputs.filter(outside)))],
    outputs: run.filter((call) => calls[call].outputs.some(outside)),
  };
}
