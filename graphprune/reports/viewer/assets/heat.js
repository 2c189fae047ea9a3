// A heat map: how much the loss rises when a group alone is cut; a row for each block, columns for kinds and cuts.

const DECADES = 1e-3; // rises below this share of the highest have one colour

/** How warm a rise is, from 0 to 100, by its logarithm; a loss that fell is cold. */
function warmth(rise, highest) {
  if (rise <= highest * DECADES) return 0;
  return (100 * Math.log(rise / (highest * DECADES))) / -Math.log(DECADES);
}

const signed = (value) => (value > 0 ? "+" : "") + Number(value.toPrecision(2));
const wayName = (way) => `${percent(way.ratio)} gone${way.refitted ? ", refitted" : ""}`;

function startHeat() {
  if (!data.heat) return;
  const { ways, rises, dense, unit, score, refit } = data.heat;
  const highest = Math.max(...rises.map(([, , rise]) => rise), 0);
  const measured = grouped(rises, ([group]) => group);
  const shown = kinds.filter((members) => members.some((group) => measured.has(group.id)));
  const used = shown.map((members) => waysOf(members, measured, ways));
  const blocks = [...grouped([...measured.keys()], (id) => blockOf(groups[id].home))];
  const head = (cells) => h("tr", {}, cells);
  const cell = (id, way) => {
    const found = measured.get(id)?.find(([, at]) => at === way);
    return found && heatCell(groups[id], ways[way], found[2], highest);
  };
  fill(byId("heat"), {}, [
    h("h2", {}, "What a cut costs"),
    h(
      "p",
      {},
      `How much the loss rises, from ${dense.toPrecision(4)} ${unit}, when a share of one group alone goes; indices chosen by ${score}`,
      ways.some((way) => way.refitted) && `, refitted by ${refit}`,
      ".",
    ),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "heat" },
        h(
          "thead",
          {},
          head([
            h("th", { scope: "col", rowspan: 2 }, "block"),
            shown.map(([group], i) =>
              h(
                "th",
                { scope: "colgroup", colspan: used[i].length, title: group.kind },
                groupLabel(group),
                h("sup", {}, groupPart(group)),
                h("small", {}, ` ${group.size}`),
              ),
            ),
          ]),
          head(
            used
              .flat()
              .map((way) =>
                h("th", { scope: "col" }, percent(ways[way].ratio), ways[way].refitted && h("small", {}, "refitted")),
              ),
          ),
        ),
        h(
          "tbody",
          {},
          blocks
            .sort(([a], [b]) => natural(a, b))
            .map(([block, inner]) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, link({ type: "module", id: block }, modules[block].path || data.title)),
                shown.map((members, i) => {
                  const here = inner.filter((id) => members.includes(groups[id]));
                  return used[i].map((way, j) => h("td", { class: j ? "" : "first" }, here.map((id) => cell(id, way))));
                }),
              ),
            ),
        ),
      ),
    ),
  ]);
}

/** The ways in which groups of a kind were cut. */
function waysOf(members, measured, ways) {
  const found = new Set(members.flatMap((group) => (measured.get(group.id) ?? []).map(([, way]) => way)));
  return [...ways.keys()].filter((way) => found.has(way));
}

function heatCell(group, way, rise, highest) {
  return h(
    "button",
    {
      type: "button",
      title: `${group.name}, ${wayName(way)}: ${signed(rise)}`,
      "data-group": group.id,
      style: { "--share": warmth(rise, highest).toFixed(0) },
      click: () => select({ type: "group", id: group.id }),
    },
    signed(rise),
  );
}
