// The panels of a group, a kind of groups, a tensor, a module, an operator, and of the whole model.

function groupPanel(id) {
  const group = groups[id];
  const [parameters, macs, bytes] = group.cost;
  const notes = new Map(grouped(group.places, ([tensor]) => tensor));
  const noteOf = (tensor) =>
    notes
      .get(tensor)
      .map(([, dim, role]) => `${role} in dimension ${dim}`)
      .join(", ");
  return [
    head(["group: ", groupLabel(group)], group.name, FREEDOMS[group.freedom].css),
    h(
      "p",
      { class: "say" },
      h("b", {}, whole(group.size)),
      " indices that ",
      freedomText[group.freedom],
      group.now < group.size ? h("span", { class: "cut" }, `; the plan retains ${whole(group.now)}`) : "",
    ),
    group.kept &&
      h(
        "div",
        { class: "kept" },
        group.kept.map((row) =>
          h(
            "div",
            { class: "row" },
            h("span", { class: "band all" }, removedLayer(indices(row, group.size, false), group.size)),
          ),
        ),
      ),
    group.kept &&
      h(
        "small",
        {},
        group.kept.length > 1
          ? "removed indices in orange, a row for each index of the group that it is linked to"
          : "removed indices in orange",
      ),
    group.reason !== undefined && reason(group.reason),
    facts({
      "cost per index": `${whole(parameters)} parameters, ${whole(macs)} multiply-accumulates${bytes ? `, ${whole(bytes)} bytes of KV cache a token` : ""}`,
      total: `${short(parameters * group.size)} parameters`,
      "least width":
        group.least > 1 ? String(group.least) + (group.unit > 1 ? `, in multiples of ${group.unit}` : "") : "",
      "linked to":
        group.linked === null
          ? ""
          : [
              link({ type: "group", id: group.linked }),
              h("small", {}, ": each index of that group retains indices of this one of its own"),
            ],
      "linked groups": group.inside.length
        ? group.inside.map((other) => h("div", {}, link({ type: "group", id: other })))
        : "",
      "same kind": kindLink(group),
      number: group.value === undefined ? "" : String(group.value),
    }),
    inGraph({ type: "group", id }),
    h("h3", {}, `in ${plural(group.tensors.length, "tensor")}`),
    folded(group.tensors, "tensor", (t) => ({ kind: withoutNumbers(tensors[t].name), note: noteOf(t) })),
    h("h3", {}, `in the outputs of ${plural(group.calls.length, "operator")}`),
    folded(group.calls, "call", (c) => ({ kind: calls[c].operator, note: modules[calls[c].module].path })),
  ];
}

function kindLink(group) {
  const id = kinds.findIndex((members) => members.includes(group));
  return kinds[id].length > 1 ? link({ type: "kind", id }, `${kinds[id].length} groups of this kind`) : "";
}

function kindPanel(id) {
  const members = kinds[id];
  const [first] = members;
  return [
    head(["kind of group: ", groupLabel(first)], first.kind, FREEDOMS[first.freedom].css),
    h(
      "p",
      { class: "say" },
      h("b", {}, members.length),
      " groups of ",
      h("b", {}, whole(first.size)),
      ` indices that ${freedomText[first.freedom]}`,
    ),
    facts({ total: `${short(weight(members))} parameters` }),
    h(
      "ul",
      { class: "list" },
      members.map((group) =>
        h(
          "li",
          {},
          link({ type: "group", id: group.id }),
          h("small", {}, group.now < group.size ? ` ${group.size} → ${group.now}` : ` ${group.size}`),
        ),
      ),
    ),
  ];
}

function tensorPanel(id) {
  const tensor = tensors[id];
  const hues = new Map(tensor.groups.map((group, i) => [group, i]));
  const elements =
    tensor.leftElements < tensor.elements
      ? `${whole(tensor.elements)} → ${whole(tensor.leftElements)}`
      : whole(tensor.elements);
  return [
    head(tensor.buffer ? "buffer" : "parameter", tensor.name, FREEDOMS[tensor.freedom].css),
    h("p", { class: "say" }, h("b", {}, tensor.shape), `, ${freedomText[tensor.freedom]}`),
    facts({
      type: tensor.type,
      elements,
      "also called": tensor.aliases.join(", "),
      module: link({ type: "module", id: tensor.module }, modules[tensor.module].path || data.title),
    }),
    inGraph({ type: "tensor", id }),
    tensor.dims.map((_, index) => dimension(tensor, index, hues)),
  ];
}

function modulePanel(id) {
  const module = modules[id];
  const { tensors: held, calls: run } = inside(id);
  const own = groups.filter((group) => around(group.home).includes(id));
  const passing = groups.filter((group) => !own.includes(group) && group.tensors.some((t) => held.includes(t)));
  const parameters = held.filter((t) => !tensors[t].buffer);
  const [all, left] = ["elements", "leftElements"].map((key) => sum(parameters.map((t) => tensors[t][key])));
  return [
    head(module.class || "module", module.path || data.title),
    facts({
      parameters: left < all ? `${whole(all)} → ${whole(left)} (${percent(left / all)})` : whole(all),
      operators: whole(run.length),
    }),
    canOpen(module) &&
      id !== 0 &&
      h(
        "button",
        {
          type: "button",
          class: "plain",
          click: () => {
            showTab("graph");
            if (!boxes.has(`m${id}`)) reveal(module.parent);
            toggle(id);
          },
        },
        open.has(id) ? "Close" : "Open",
      ),
    own.length > 0 && [h("h3", {}, "groups of this module"), h("div", { class: "pills many" }, own.map(pill))],
    passing.length > 0 && [
      h("h3", {}, "groups that pass through"),
      h("div", { class: "pills many" }, passing.map(pill)),
    ],
    ["inputs", "outputs"].map((side) => valueList(side, crossing(id)[side])),
    parameters.length > 0 && [
      h("h3", {}, plural(parameters.length, "parameter")),
      folded(parameters, "tensor", (t) => ({ kind: withoutNumbers(tensors[t].name), note: tensors[t].shape })),
    ],
  ];
}

/** Values with their shapes and types. */
function valueList(title, ids) {
  return (
    ids.length > 0 && [h("h3", {}, title), folded(ids, "call", (c) => ({ kind: calls[c].operator, note: calls[c].type }))]
  );
}

function callPanel(id) {
  const call = calls[id];
  return [
    head(
      call.operator === "input" || call.operator === "output" ? "model" : "operator",
      `${call.operator}  ${call.name}`,
    ),
    facts({
      output: call.type,
      module: link({ type: "module", id: call.module }, modules[call.module].path || data.title),
    }),
    call.code !== undefined && reason(call.code),
    inGraph({ type: "call", id }),
    call.groups.length > 0 && [
      h("h3", {}, "groups in its output"),
      h(
        "div",
        { class: "pills many" },
        call.groups.map((g) => pill(groups[g])),
      ),
    ],
    (call.inputs.length > 0 || call.tensors.length > 0) && [
      h("h3", {}, "operands"),
      h(
        "ul",
        { class: "list" },
        call.tensors.map((t) => h("li", {}, link({ type: "tensor", id: t }), h("small", {}, ` ${tensors[t].type}`))),
        call.inputs.map((c) => h("li", {}, link({ type: "call", id: c }), h("small", {}, ` ${calls[c].type}`))),
      ),
    ],
    call.outputs.length > 0 && [
      h("h3", {}, "used by"),
      folded(call.outputs, "call", (c) => ({ kind: calls[c].operator, note: calls[c].name })),
    ],
  ];
}

/** The panel without a selection: the whole model. */
function overview() {
  const opaque = Object.entries(data.opaque);
  return [
    h("header", {}, h("small", { class: "what" }, "model"), h("h2", {}, broken(data.title))),
    h(
      "table",
      { class: "shares" },
      h(
        "tbody",
        {},
        data.freedoms
          .filter((freedom) => freedom.count)
          .map((freedom) =>
            h(
              "tr",
              { class: FREEDOMS[freedom.name].css },
              h("td", {}, h("i", { class: "swatch" })),
              h("td", {}, percent(freedom.count / data.total)),
              h(
                "td",
                {},
                `of ${short(data.total)} parameters ${freedom.description}`,
                freedom.removable > 0 &&
                  h("small", {}, `at most ${percent(freedom.removable / data.total)} of all parameters can be removed`),
              ),
            ),
          ),
      ),
    ),
    h(
      "p",
      {},
      "Click a group to light up every parameter and operator that it touches, a parameter to see the structure of its dimensions, an edge to see the shape and type of its tensor. Double-click a module to open it.",
    ),
    opaque.length > 0 && [
      h("h3", {}, "operators without a rule, whose axes are pinned"),
      h(
        "ul",
        { class: "list" },
        opaque.map(([name, n]) => h("li", {}, `${name} ×${n}`)),
      ),
    ],
  ];
}
