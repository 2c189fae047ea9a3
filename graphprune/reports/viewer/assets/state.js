// The selection. It is in the address, so that it can be sent to somebody, and "back" works.

const state = { selected: null, lit: new Set(), listeners: [] };

/** Things that may be selected: their names in the address, and functions from names to numbers. */
const SELECTABLE = {
  group: (name) => groups.findIndex((group) => group.name === name),
  kind: (name) => kinds.findIndex((members) => kindName(members) === name),
  tensor: (name) => tensors.findIndex((tensor) => tensor.name === name || tensor.aliases.includes(name)),
  module: (name) => modules.findIndex((module) => module.path === name),
  call: (name) => calls.findIndex((call) => call.name === name),
};

function nameOf({ type, id }) {
  if (type === "module") return modules[id].path;
  if (type === "kind") return kindName(kinds[id]);
  return { group: groups, tensor: tensors, call: calls }[type][id].name;
}

/** Select a thing such as {type: "group", id: 3}, or nothing. */
function select(thing, { remember = true } = {}) {
  state.selected = thing;
  state.lit = new Set(thing ? groupsOf(thing) : []);
  if (remember) {
    const address = thing ? `#${thing.type}=${encodeURIComponent(nameOf(thing))}` : location.pathname + location.search;
    try {
      history.pushState(null, "", address);
    } catch {
      // some viewers of files do not let a page change its address
    }
  }
  state.listeners.forEach((listen) => listen(thing));
}

/** The groups that a selection lights up. */
function groupsOf({ type, id }) {
  if (type === "group") return [id];
  if (type === "kind") return kinds[id].map((group) => group.id);
  return [];
}

const isSelected = (type, id) => state.selected?.type === type && state.selected.id === id;

/** The thing that the address names, or nothing if it names none. */
function fromAddress() {
  const [type, name = ""] = location.hash.slice(1).split("=");
  if (!Object.hasOwn(SELECTABLE, type)) return null;
  try {
    const id = SELECTABLE[type](decodeURIComponent(name));
    return id < 0 ? null : { type, id };
  } catch {
    return null; // the address was written by hand, and wrongly
  }
}

const selectFromAddress = () => select(fromAddress(), { remember: false });
