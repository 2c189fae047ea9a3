// Runs side by side: the widths of every layer, and the spread of the scores of its indices.

const RUN_HUES = 6;
const runHue = (i) => `hue${i % RUN_HUES}`;

/** The number of the layer in a name, or 0. */
const layerOf = (name) => Number(name.split(".").find((word) => /^\d+$/.test(word)) ?? 0);

/** A number with two digits. */
const brief = (value) =>
  Number.isInteger(value) && Math.abs(value) < 1e5 ? whole(value) : String(Number(value.toPrecision(2)));

/** The frame of a chart, and functions from layers and values to places in it. `labels` are those of the two ends. */
function frame(layers, [bottom, top], labels, title) {
  const [width, height, left, foot] = [320, 130, 44, 20];
  const [first, last] = [Math.min(...layers), Math.max(...layers)];
  const x = (layer) =>
    last > first ? left + ((width - left - 10) * (layer - first)) / (last - first) : (left + width) / 2;
  const y = (value) => 8 + (height - foot - 8) * (1 - (value - bottom) / (top - bottom || 1));
  const svg = s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": title },
    [bottom, top].map((value, i) => [
      s("line", { x1: left, x2: width - 8, y1: y(value), y2: y(value), class: "grid" }),
      s("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, labels[i]),
    ]),
    [...new Set([first, last])].map((layer) =>
      s("text", { x: x(layer), y: height - 5, "text-anchor": "middle" }, layer),
    ),
  );
  return { svg, x, y };
}

const polyline = (points) => points.map(([x, y]) => `${x},${y}`).join(" ");

function curveOf(points, css) {
  return [
    s("polyline", { points: polyline(points), class: `line ${css}` }),
    ...points.map(([cx, cy]) => s("circle", { cx, cy, r: 2.5, class: `dot ${css}` })),
  ];
}

/** The width of a group after a run; one that it did not cut has its size. */
const widthIn = (run, group) => run.widths[group.name]?.[1] ?? group.size;

/** The widths of a kind, a line for each run; of a single group, a bar for each run. */
function widthChart(members) {
  const [{ kind, size }] = members;
  const caption = h("figcaption", {}, broken(kind));
  if (members.length === 1) {
    return h(
      "figure",
      {},
      caption,
      h(
        "div",
        { class: "one" },
        data.runs.map((run, i) => [
          h("span", {}, run.name),
          h("div", { class: runHue(i) }, shareBar(widthIn(run, members[0]), size, size, String(widthIn(run, members[0])))),
        ]),
      ),
    );
  }
  const { svg, x, y } = frame(
    members.map((group) => layerOf(group.name)),
    [0, size],
    ["0", whole(size)],
    `widths of ${kind} by layer`,
  );
  data.runs.forEach((run, i) =>
    svg.append(
      ...curveOf(
        members.map((group) => [x(layerOf(group.name)), y(widthIn(run, group)) + 2 * i]),
        runHue(i),
      ),
    ),
  ); // equal widths stand side by side
  return h("figure", {}, caption, svg);
}

/** The scores of a kind in one run: the median of each layer, and bands between deciles. */
function scoreChart(members, run, i) {
  const scored = members.filter((group) => run.scores[group.name]?.length);
  const caption = h("figcaption", {}, run.name);
  if (!scored.length) return h("figure", { class: "none" }, caption, "not scored");
  const deciles = scored.map((group) => run.scores[group.name]);
  const positive = deciles.every((row) => row[1] > 0);
  const at = positive ? Math.log10 : (value) => value;
  const ends = [Math.min(...deciles.map((row) => row[1])), Math.max(...deciles.map((row) => row[9]))];
  const { svg, x, y } = frame(
    scored.map((group) => layerOf(group.name)),
    ends.map(at),
    ends.map(brief),
    `scores of ${members[0].kind} in ${run.name}`,
  );
  const edge = (q) =>
    scored.flatMap((group, j) => {
      const [left, right] = scored.length > 1 ? [0, 0] : [-12, 12]; // a single group is as broad as a stroke
      return [...new Set([left, right])].map((shift) => [x(layerOf(group.name)) + shift, y(at(deciles[j][q]))]);
    });
  svg.append(
    ...[
      [1, 9],
      [3, 7],
    ].map(([low, high]) =>
      s("polygon", { points: polyline([...edge(low), ...edge(high).reverse()]), class: `fan ${runHue(i)}` }),
    ),
    ...curveOf(edge(5), runHue(i)),
  );
  return h("figure", {}, caption, svg);
}

/** Kinds of which a run has something in a table by the names of groups. */
const kindsIn = (table) =>
  kinds.filter((members) => members.some((group) => data.runs.some((run) => run[table][group.name])));

function startRuns() {
  if (!data.runs.length) return;
  const scored = kindsIn("scores");
  fill(byId("runs"), {}, [
    h("h2", {}, "Runs side by side"),
    scroller(
      h(
        "table",
        { class: "runs" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["run", "recipe", "parameters", "removed", "time"].map((name) => h("th", { scope: "col" }, name)),
          ),
        ),
        h(
          "tbody",
          {},
          data.runs.map((run, i) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, h("i", { class: `swatch ${runHue(i)}` }), broken(run.name)),
              h("td", {}, run.recipe),
              h("td", {}, `${whole(run.before)} → ${whole(run.after)}`),
              h("td", {}, percent(1 - run.after / run.before)),
              h("td", {}, `${run.seconds.toFixed(1)} s`),
            ),
          ),
        ),
      ),
    ),
    h("h3", {}, "Widths by layer"),
    h("div", { class: "charts" }, kindsIn("widths").map(widthChart)),
    h("h3", {}, "Scores, by layer"),
    scored.length === 0 && h("p", {}, "None of these runs recorded scores."),
    scored.length > 0 &&
      h(
        "p",
        {},
        "Line: the median of a layer's indices; bands: from the first to the ninth decile, and from the third to the seventh. Each method has a scale of its own, logarithmic where nothing on it is below zero.",
      ),
    scored.map((members) => [
      h("h4", {}, broken(members[0].kind)),
      scroller(
        h(
          "div",
          { class: "fans", style: { "--runs": data.runs.length } },
          data.runs.map((run, i) => scoreChart(members, run, i)),
        ),
      ),
    ]),
  ]);
}
