// A heat map: the rise of the loss when one group alone is cut; a row for each block, columns for kinds and cuts.

/** A number with a sign and two digits. */
function signed(value) {
  const rounded = Number(value.toPrecision(2));
  return (value > 0 ? "+" : "") + (value && Math.abs(value) < 1e-3 ? rounded.toExponential() : rounded);
}

const wayName = (way) => `${percent(way.ratio)} removed${way.refitted ? ", refitted" : ""}`;

function startHeat() {
  if (!data.heat) return;
  const { ways, rises, dense, unit, score, refit } = data.heat;
  const measured = grouped(rises, ([group]) => group);
  const shown = kinds.filter((members) => members.some((group) => measured.has(group.id)));
  const used = shown.map((members) => waysOf(members, measured, ways));
  const blocks = [...grouped([...measured.keys()], (id) => blockOf(groups[id].home))];
  const head = (cells) => h("tr", {}, cells);
  const cell = (id, way) => {
    const trial = measured.get(id)?.find(([, at]) => at === way);
    return trial && heatCell(groups[id], ways[way], trial[2], trial[3]);
  };
  fill(byId("heat"), {}, [
    h("h2", {}, "Sensitivity"),
    h(
      "p",
      {},
      `The rise of the loss, from ${dense.toPrecision(4)} ${unit}, when a share of one group alone is removed; indices chosen by ${score}`,
      ways.some((way) => way.refitted) && `, refitted by ${refit}`,
      ".",
    ),
    scaleLegend(),
    scroller(
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
                columnName([group], shown),
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
                h("th", { scope: "row" }, link({ type: "module", id: block }, broken(modules[block].path || data.title))),
                shown.map((members, i) => {
                  const own = inner.filter((id) => members.includes(groups[id]));
                  return used[i].map((way, j) => h("td", { class: j ? "" : "first" }, own.map((id) => cell(id, way))));
                }),
              ),
            ),
        ),
      ),
    ),
  ]);
  rove(byId("heat"), "button");
}

/** The ways in which groups of a kind were cut. */
function waysOf(members, measured, ways) {
  const used = new Set(members.flatMap((group) => (measured.get(group.id) ?? []).map(([, way]) => way)));
  return [...ways.keys()].filter((way) => used.has(way));
}

function heatCell(group, way, rise, shade) {
  return h(
    "button",
    {
      type: "button",
      title: `${group.name}, ${wayName(way)}: ${signed(rise)}`,
      "data-group": group.id,
      style: shadeStyle(shade),
      click: () => select({ type: "group", id: group.id }),
    },
    signed(rise),
  );
}
