// What the panel tells of a group, a kind of groups, a tensor, a module, an operator, and of the model as a whole.

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
    head("group", group.name, FREEDOMS[group.freedom].css),
    h(
      "p",
      { class: "say" },
      h("b", {}, whole(group.size)),
      " indices that ",
      told[group.freedom],
      group.now < group.size ? h("span", { class: "cut" }, `; the plan keeps ${whole(group.now)}`) : "",
    ),
    group.kept &&
      h(
        "div",
        { class: "kept" },
        group.kept.map((row) =>
          h(
            "div",
            { class: "row" },
            h("span", { class: "band all" }, goneLayer(indices(row, group.size, false), group.size)),
          ),
        ),
      ),
    group.kept &&
      h(
        "small",
        {},
        group.kept.length > 1
          ? "a row for each index of the group it is linked to; orange is what goes"
          : "orange is what goes",
      ),
    group.reason !== undefined && reason(group.reason),
    facts({
      "an index costs": `${whole(parameters)} parameters, ${whole(macs)} multiply-accumulates${bytes ? `, ${whole(bytes)} bytes of cache a token` : ""}`,
      "all of it": `${short(parameters * group.size)} parameters`,
      "must stay":
        group.least > 1 ? `${group.least} at least` + (group.unit > 1 ? `, in multiples of ${group.unit}` : "") : "",
      "linked to":
        group.linked === null
          ? ""
          : [
              link({ type: "group", id: group.linked }),
              h("small", {}, " each of whose indices may keep other indices of this one"),
            ],
      "may choose for": group.inside.length
        ? group.inside.map((other) => h("div", {}, link({ type: "group", id: other })))
        : "",
      alike: kindLink(group),
      number: group.value === undefined ? "" : String(group.value),
    }),
    h("h3", {}, `in ${plural(group.tensors.length, "tensor")}`),
    folded(group.tensors, "tensor", (t) => ({ kind: withoutNumbers(tensors[t].name), note: noteOf(t) })),
    h("h3", {}, `in what ${plural(group.calls.length, "operator")} make`),
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
    head("kind of group", first.kind, FREEDOMS[first.freedom].css),
    h(
      "p",
      { class: "say" },
      h("b", {}, members.length),
      " groups of ",
      h("b", {}, whole(first.size)),
      ` indices that ${told[first.freedom]}`,
    ),
    facts({ "all of them": `${short(weight(members))} parameters` }),
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
    h("p", { class: "say" }, h("b", {}, tensor.shape), `, ${told[tensor.freedom]}`),
    facts({
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
            if (!boxes.has(`m${id}`)) reveal(module.parent);
            toggle(id);
            showTab("graph");
          },
        },
        open.has(id) ? "Close it" : "Open it",
      ),
    own.length > 0 && [h("h3", {}, "groups at home here"), h("div", { class: "pills many" }, own.map(pill))],
    passing.length > 0 && [
      h("h3", {}, "groups that pass through"),
      h("div", { class: "pills many" }, passing.map(pill)),
    ],
    parameters.length > 0 && [
      h("h3", {}, plural(parameters.length, "parameter")),
      folded(parameters, "tensor", (t) => ({ kind: withoutNumbers(tensors[t].name), note: tensors[t].shape })),
    ],
  ];
}

function callPanel(id) {
  const call = calls[id];
  return [
    head(
      call.operator === "input" || call.operator === "output" ? "of the model" : "operator",
      `${call.operator}  ${call.name}`,
    ),
    facts({
      value: call.type,
      module: link({ type: "module", id: call.module }, modules[call.module].path || data.title),
    }),
    call.code !== undefined && reason(call.code),
    inGraph({ type: "call", id }),
    call.groups.length > 0 && [
      h("h3", {}, "groups in its value"),
      h(
        "div",
        { class: "pills many" },
        call.groups.map((g) => pill(groups[g])),
      ),
    ],
    (call.inputs.length > 0 || call.tensors.length > 0) && [
      h("h3", {}, "reads"),
      h(
        "ul",
        { class: "list" },
        call.tensors.map((t) => h("li", {}, link({ type: "tensor", id: t }))),
        call.inputs.map((c) => h("li", {}, link({ type: "call", id: c }), h("small", {}, ` ${calls[c].type}`))),
      ),
    ],
    call.outputs.length > 0 && [
      h("h3", {}, "is read by"),
      folded(call.outputs, "call", (c) => ({ kind: calls[c].operator, note: calls[c].name })),
    ],
  ];
}

/** What is told when nothing is selected: the model as a whole. */
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
                `of ${short(data.total)} parameters ${freedom.told}`,
                freedom.removable > 0 &&
                  h("small", {}, `at most ${percent(freedom.removable / data.total)} of all can go`),
              ),
            ),
          ),
      ),
    ),
    h(
      "p",
      {},
      "Click a group to see every parameter and operator that it touches, a parameter to see how its dimensions are made, a module to open or close it.",
    ),
    opaque.length > 0 && [
      h("h3", {}, "operators without a rule, whose axes stay"),
      h(
        "ul",
        { class: "list" },
        opaque.map(([name, n]) => h("li", {}, `${name} ×${n}`)),
      ),
    ],
  ];
}
