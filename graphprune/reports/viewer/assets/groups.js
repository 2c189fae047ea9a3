// The list of groups: a row for each kind, and in it a cell for each group of that kind.

function groupCell(group) {
  const share = group.now / group.size;
  const cut = group.now < group.size ? `, ${group.now} retained` : "";
  return h(
    "button",
    {
      type: "button",
      class: `cell ${FREEDOMS[group.freedom].css} ${group.shade ? "shaded" : ""}`,
      "data-group": group.id,
      title: `${group.name}: ${groupLabel(group)}, ${group.size}${cut}${group.value === undefined ? "" : `, ${group.value}`}`,
      "aria-label": `${group.name}, size ${group.size}${cut}`,
      style: { "--share": percent(share), ...(group.shade && shadeStyle(group.shade)) },
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
      h("b", { class: "label" }, groupLabel(first)),
      h("b", { class: "size" }, whole(first.size) + mark),
      h("span", { class: "name" }, broken(first.kind)),
    ),
    h(
      "div",
      { class: "facts" },
      `${members.length} × `,
      freedomText[first.freedom],
      first.linked === null ? "" : ", linked",
      h("br"),
      `per index: ${alike ? "" : "about "}${short(parameters)} parameters, ${short(macs)} MACs${bytes ? `, ${short(bytes)} B of cache` : ""}`,
    ),
    h("div", { class: "cells" }, members.map(groupCell)),
  );
}

function legend() {
  const free = data.freedoms.filter((freedom) => groups.some((group) => group.freedom === freedom.name));
  return h(
    "div",
    { class: "legend" },
    free.map((freedom) => h("span", { class: FREEDOMS[freedom.name].css }, h("i", { class: "mark" }), freedom.description)),
    data.plan && h("span", {}, "the filled part of a cell is retained"),
  );
}

function startGroups() {
  const byWeight = [...kinds.keys()].sort((a, b) => weight(kinds[b]) - weight(kinds[a]));
  fill(byId("groups"), {}, [
    h("h2", {}, plural(groups.length, "group"), h("small", {}, " that can be cut")),
    legend(),
    data.scale && scaleLegend(),
    h(
      "ul",
      { class: "kinds" },
      byWeight.map((id) => kindRow(kinds[id], id)),
    ),
    groups.length === 0 && h("p", {}, "Nothing in this model can be cut. Click a tensor in the graph to read why."),
  ]);
  rove(byId("groups"), ".pick, .cell");
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

/** The number of parameters along the groups of a kind. */
const weight = (members) => sum(members.map((group) => group.cost[0] * group.size));
