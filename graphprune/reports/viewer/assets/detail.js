// The panel that describes the selection.

/** A button that selects a thing. */
function link(thing, text = broken(nameOf(thing))) {
  return h("button", { type: "button", class: "link", click: () => select(thing) }, text);
}

const inGraph = (thing) =>
  h("button", { type: "button", class: "plain", click: () => goTo(thing) }, "Show in the graph");

/** Names and values; those without a value are left out. */
function facts(table) {
  return h(
    "dl",
    {},
    Object.entries(table)
      .filter(([, value]) => value !== null && value !== "" && value !== false)
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

function head(what, name, css = "") {
  return h(
    "header",
    {},
    h("small", { class: `what ${css}` }, what),
    h(
      "button",
      {
        type: "button",
        class: "close",
        title: "Select nothing (Esc)",
        "aria-label": "Select nothing",
        click: () => select(null),
      },
      "×",
    ),
    h("h2", {}, broken(name)),
  );
}

/** Things of a kind in one row, which opens to all of them. */
function folded(ids, what, of) {
  const rows = [...grouped(ids, (id) => of(id).kind)];
  return h(
    "ul",
    { class: "list" },
    rows.map(([kind, members]) => {
      const links = members.map((id) => h("li", {}, link({ type: what, id }), h("small", {}, ` ${of(id).note}`)));
      if (members.length === 1) return links;
      return h(
        "li",
        {},
        h(
          "details",
          {},
          h("summary", {}, broken(kind), h("small", {}, ` ${members.length} × ${sharedNote(members, of)}`)),
          h("ul", {}, links),
        ),
      );
    }),
  );
}

/** The note of all members, if they have the same. */
function sharedNote(members, of) {
  const notes = new Set(members.map((id) => of(id).note));
  return notes.size === 1 ? [...notes][0] : "";
}

const withoutNumbers = (name) =>
  name
    .split(".")
    .map((part) => (/^\d+$/.test(part) ? "*" : part))
    .join(".");

function showDetail(thing) {
  const panels = { group: groupPanel, kind: kindPanel, tensor: tensorPanel, module: modulePanel, call: callPanel };
  const panel = byId("detail");
  const focused = panel.contains(document.activeElement);
  panel.replaceChildren(...fill(h("div"), {}, [thing ? panels[thing.type](thing.id) : overview()]).childNodes);
  panel.scrollTop = 0;
  settleDetail();
  if (focused) (panel.querySelector("button") ?? panel).focus();
  light();
}
