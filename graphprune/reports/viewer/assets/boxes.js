// The boxes of the graph. They are elements of HTML, so that they can be reached by keyboard and read aloud.

/** A group as a button: its origin, its size, its width under a plan. */
function pill(group) {
  const { css, mark } = FREEDOMS[group.freedom];
  const size = group.now < group.size ? `${group.size}→${group.now}` : `${group.size}`;
  return h(
    "button",
    {
      type: "button",
      class: `pill ${css}`,
      tabindex: "-1",
      "data-group": group.id,
      title: `${group.name}: ${size}, ${freedomText[group.freedom]}`,
      style: group.shade ? shadeStyle(group.shade) : {},
      click: (event) => {
        event.stopPropagation();
        select({ type: "group", id: group.id });
      },
    },
    group.shade && h("i", { class: "shade" }),
    h("span", {}, groupLabel(group)),
    h("b", {}, `${size}${mark}`),
  );
}

/** The groups that a module holds: of an open one its own, of a closed one those of all modules in it, too. */
function pillsOf(id, deep) {
  const home = (group) => (deep ? around(group.home).includes(id) : group.home === id);
  const own = groups.filter(home);
  const most = isNarrow() && !deep ? 2 : 6;
  return (
    own.length > 0 &&
    h(
      "div",
      { class: "pills" },
      own.slice(0, most).map(pill),
      own.length > most && h(
          "span",
          {
            class: "more",
            title: own
              .slice(most)
              .map((group) => group.name)
              .join("\n"),
          },
          `+${own.length - most}`,
        ),
    )
  );
}

/** A bar of the share of some tensors that a plan retains, where there is one. */
function retainedBar(ids) {
  const all = sum(ids.map((t) => tensors[t].elements));
  const left = sum(ids.map((t) => tensors[t].leftElements));
  if (!data.plan || !all) return null;
  return h(
    "div",
    { class: "retained", title: `${percent(left / all)} of ${whole(all)} parameters retained` },
    h("i", { style: { width: percent(left / all) } }),
  );
}

function moduleBox(id) {
  const module = modules[id];
  const held = inside(id).tensors.filter((t) => !tensors[t].buffer);
  const count = sum(held.map((t) => tensors[t].elements));
  return [
    h(
      "div",
      { class: "head" },
      canOpen(module) &&
        h(
          "button",
          {
            type: "button",
            class: "twist",
            tabindex: "-1",
            "aria-label": "Open",
            click: (event) => {
              event.stopPropagation();
              toggle(id);
            },
          },
          "▸",
        ),
      h("span", { class: "name" }, ownName(module)),
      count > 0 && h("span", { class: "count" }, short(count)),
    ),
    module.class && h("div", { class: "class" }, module.class),
    pillsOf(id, true),
    retainedBar(held),
  ];
}

function tensorBox(id) {
  const tensor = tensors[id];
  return [
    h(
      "div",
      { class: "head" },
      h("span", { class: "name" }, tensor.name.split(".").pop()),
      h("span", { class: "count" }, tensor.shape),
    ),
  ];
}

function callBox(id) {
  return [h("div", { class: "head" }, h("span", { class: "name" }, calls[id].operator))];
}

/** The thing that a key names. */
function thingOf(key) {
  return { type: { m: "module", t: "tensor", c: "call" }[key[0]], id: Number(key.slice(1)) };
}

function labelOf(key) {
  const { type, id } = thingOf(key);
  if (type === "module") return `${ownName(modules[id])} ${modules[id].class}`;
  return type === "tensor" ? `${tensors[id].name} ${tensors[id].shape}` : `${calls[id].operator} ${calls[id].type}`;
}

function makeBox(key, readers) {
  const { type, id } = thingOf(key);
  const content = { module: moduleBox, tensor: tensorBox, call: callBox }[type](id);
  if (readers) content.push(h("div", { class: "class" }, `used by ${readers} operators`));
  const freedom = type === "tensor" ? FREEDOMS[tensors[id].freedom].css : "";
  const apart = type === "module" && modules[id].apart ? "apart" : "";
  return h(
    "div",
    {
      class: `box ${type} ${freedom} ${apart}`,
      role: "treeitem",
      tabindex: "-1",
      "data-key": key,
      "aria-label": labelOf(key),
      "aria-expanded": type === "module" && canOpen(modules[id]) ? "false" : null,
      click: (event) => {
        event.stopPropagation();
        focusBox(key);
        select(thingOf(key));
      },
      dblclick: (event) => {
        event.stopPropagation();
        if (type === "module") toggle(id);
      },
    },
    content,
  );
}

function makeTitle(id) {
  const module = modules[id];
  return h(
    "div",
    { class: "title" },
    module.parent !== null &&
      h(
        "button",
        {
          type: "button",
          class: "twist",
          tabindex: "-1",
          "aria-label": "Close",
          click: (event) => {
            event.stopPropagation();
            toggle(id);
          },
        },
        "▾",
      ),
    h("span", { class: "name" }, ownName(module)),
    h("span", { class: "class" }, module.class),
    pillsOf(id, false),
  );
}
