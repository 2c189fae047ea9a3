// A plan: a row for each block of the model, a column for each kind of group that is cut.

/** A bar: the retained part of a size, beside the largest one. */
function shareBar(left, size, largest, text) {
  const share = (n) => `${(100 * n) / largest}%`;
  return h(
    "div",
    { class: "share", title: text },
    h(
      "i",
      { class: "track" },
      h(
        "i",
        { class: "whole", style: { width: share(size) } },
        h("i", { class: "rest", style: { width: `${(100 * left) / size}%` } }),
      ),
    ),
    h("span", {}, text),
  );
}

function planRows() {
  const held = tensors.filter((tensor) => !tensor.buffer);
  const blocks = [...grouped(held, (tensor) => blockOf(tensor.module))].sort(([a], [b]) => natural(a, b));
  return blocks.map(([block, inner]) => ({
    block,
    all: sum(inner.map((tensor) => tensor.elements)),
    left: sum(inner.map((tensor) => tensor.leftElements)),
    groups: groups.filter(
      (group) => group.now < group.size && blockOf(group.home) === block && isNumbered(modules[group.home]),
    ),
  }));
}

/** Blocks in the order of their numbers. */
function natural(a, b) {
  return modules[a].path.localeCompare(modules[b].path, "en", { numeric: true });
}

function startPlan() {
  if (!data.plan) return;
  const rows = planRows();
  const cut = kinds.filter((members) => members.some((group) => group.now < group.size));
  const inBlocks = cut.filter((members) => members.some((group) => isNumbered(modules[group.home])));
  const largest = Math.max(...rows.map((row) => row.all));
  const left = sum(rows.map((row) => row.left));
  const settings = Object.entries(data.plan.made_by)
    .map(([key, value]) => `${key} ${value}`)
    .join(", ");
  fill(byId("plan"), {}, [
    h("h2", {}, "The plan"),
    h(
      "p",
      {},
      h("b", {}, `${whole(data.plan.before)} → ${whole(left)}`),
      ` parameters, ${percent(1 - left / data.plan.before)} removed`,
      settings && h("small", {}, ` (${settings})`),
    ),
    data.plan.blocks.length > 0 &&
      h("p", {}, `Dropped blocks: ${data.plan.blocks.join(", ")}. This page shows the model without them; its layers are renumbered.`),
    Object.keys(data.plan.ranks).length > 0 &&
      h(
        "p",
        {},
        `${plural(Object.keys(data.plan.ranks).length, "weight")} become low-rank factors afterwards, which is not counted here.`,
      ),
    cut
      .filter((members) => !inBlocks.includes(members))
      .map((members) =>
        h(
          "p",
          {},
          `${groupLabel(members[0])} of the whole model: ${members[0].size} → ${members[0].now} (`,
          link({ type: "group", id: members[0].id }),
          ")",
        ),
      ),
    scroller(
      h(
        "table",
        { class: "plan" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "block"),
            h("th", { scope: "col", class: "wide" }, "parameters"),
            inBlocks.map((members) =>
              h(
                "th",
                { scope: "col", title: members[0].kind },
                columnName(members, inBlocks),
              ),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map((row) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, link({ type: "module", id: row.block }, broken(modules[row.block].path || data.title))),
              h(
                "td",
                { class: "wide" },
                shareBar(
                  row.left,
                  row.all,
                  largest,
                  row.left < row.all ? `${short(row.all)} → ${short(row.left)}` : short(row.all),
                ),
              ),
              inBlocks.map((members) =>
                h("td", {}, row.groups.filter((group) => members.includes(group)).map(groupBar)),
              ),
            ),
          ),
        ),
      ),
    ),
  ]);
  rove(byId("plan"), "button");
}

/** The name of a column: the label of its groups, with their path where another column has the same. */
function columnName([first], columns) {
  const alike = columns.filter(([other]) => groupLabel(other) === groupLabel(first));
  const path = alike.length > 1 && h("small", {}, broken(first.kind.replace(/\.weight:\d+$/, "")), " ");
  return [path, groupLabel(first), h("small", {}, ` ${first.size}`)];
}

function groupBar(group) {
  return h(
    "button",
    { type: "button", class: "barred", "data-group": group.id, click: () => select({ type: "group", id: group.id }) },
    shareBar(group.now, group.size, group.size, String(group.now)),
  );
}
