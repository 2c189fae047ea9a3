// The list of groups: a row for each kind, and in it a cell for each group of that kind.

function groupCell(group) {
  const share = group.now / group.size;
  const cut = group.now < group.size ? `, ${group.now} stay` : "";
  return h(
    "button",
    {
      type: "button",
      class: `cell ${FREEDOMS[group.freedom].css} ${group.shade ? "shaded" : ""}`,
      "data-group": group.id,
      title: `${group.name}: ${group.size}${cut}${group.value === undefined ? "" : `, ${group.value}`}`,
      "aria-label": `${group.name}, size ${group.size}${cut}`,
      style: { "--share": percent(share), ...(group.shade ? { "--shade": group.shade } : {}) },
      click: () => select({ type: "group", id: group.id }),
    },
    h("i"),
  );
}

function kindRow(members, id) {
  const [first] = members;
  const { css, mark } = FREEDOMS[first.freedom];
  const [parameters, macs, bytes] = first.cost;
  const alike = new Set(members.map((group) => group.cost.join())).size === 1;
  return h(
    "li",
    { class: `kind ${css}` },
    h(
      "button",
      {
        type: "button",
        class: "pick",
        "data-kind": id,
        click: () => select(members.length > 1 ? { type: "kind", id } : { type: "group", id: first.id }),
      },
      h("span", { class: "mark" }),
      h("span", { class: "name" }, broken(first.kind)),
      h("b", { class: "size" }, whole(first.size) + mark),
    ),
    h(
      "div",
      { class: "facts" },
      `${members.length} × `,
      told[first.freedom],
      first.linked === null ? "" : ", linked",
      h("br"),
      `an index: ${alike ? "" : "about "}${short(parameters)} parameters, ${short(macs)} MACs${bytes ? `, ${short(bytes)} B cache` : ""}`,
    ),
    h("div", { class: "cells" }, members.map(groupCell)),
  );
}

function legend() {
  const free = data.freedoms.filter((freedom) => groups.some((group) => group.freedom === freedom.name));
  return h(
    "div",
    { class: "legend" },
    free.map((freedom) => h("span", { class: FREEDOMS[freedom.name].css }, h("i", { class: "mark" }), freedom.told)),
    data.plan && h("span", {}, "a cell is filled as far as its group stays"),
    groups.some((group) => group.shade) && shadeLegend(),
  );
}

function shadeLegend() {
  const valued = groups.filter((group) => group.shade).sort((a, b) => a.value - b.value);
  const shades = [...new Set(valued.map((group) => group.shade))];
  return h(
    "span",
    { class: "shades" },
    valued[0].value.toPrecision(3),
    shades.map((shade) => h("i", { style: { background: shade } })),
    valued.at(-1).value.toPrecision(3),
  );
}

function startGroups() {
  const byWeight = [...kinds.keys()].sort((a, b) => weight(kinds[b]) - weight(kinds[a]));
  fill(byId("groups"), {}, [
    h("h2", {}, plural(groups.length, "group"), h("small", {}, " that can be cut")),
    legend(),
    h(
      "ul",
      { class: "kinds" },
      byWeight.map((id) => kindRow(kinds[id], id)),
    ),
    groups.length === 0 && h("p", {}, "Nothing of this model can be cut; click a tensor in the graph to read why."),
  ]);
  state.listeners.push((thing) => {
    document.querySelectorAll(".pick").forEach((button) => {
      const id = Number(button.dataset.kind);
      const on =
        isSelected("kind", id) || (thing?.type === "group" && kinds[id].some((group) => group.id === thing.id));
      button.parentElement.classList.toggle("selected", on);
      button.setAttribute("aria-pressed", String(on));
    });
  });
}

/** How many parameters lie along the groups of a kind. */
const weight = (members) => sum(members.map((group) => group.cost[0] * group.size));
