// The content of the page, and what follows from it. Items refer to each other by their numbers.

const data = JSON.parse(byId("data").textContent);
const { groups, tensors, calls, modules, reasons } = data;

/** The mark that `graphprune inspect` gives an axis, and the class that colors it. */
const FREEDOMS = {
  exactly: { mark: "", css: "exact" },
  "once averages are rescaled": { mark: "~", css: "rescaled" },
  approximately: { mark: "~", css: "inexact" },
  "not at all": { mark: "!", css: "pinned" },
};
const freedomText = Object.fromEntries(data.freedoms.map((freedom) => [freedom.name, freedom.description]));

tensors.forEach((tensor, i) => {
  tensor.id = i;
  tensor.elements = product(tensor.dims.map((dim) => dim.size));
  tensor.leftElements = product(tensor.left);
  tensor.groups = [...new Set(tensor.dims.flatMap((dim) => groupsIn(dim.axis)))];
  tensor.shape = tensor.dims.map((dim) => dim.size).join(" × ") || "a number";
});
calls.forEach((call, i) => {
  call.id = i;
  call.outputs = [];
});
calls.forEach((call) => call.inputs.forEach((from) => calls[from].outputs.push(call.id)));
modules.forEach((module, i) => {
  Object.assign(module, { id: i, modules: [], calls: [], tensors: [] });
  if (module.parent !== null) modules[module.parent].modules.push(i);
});
calls.forEach((call) => modules[call.module].calls.push(call.id));
tensors.forEach((tensor) => modules[tensor.module].tensors.push(tensor.id));
groups.forEach((group, i) => {
  group.id = i;
  group.tensors = [...new Set(group.places.map(([tensor]) => tensor))];
  group.calls = calls.filter((call) => call.groups.includes(i)).map((call) => call.id);
  group.inside = groups.flatMap((other, j) => (other.linked === i ? [j] : []));
  group.now = group.width ?? group.size;
  group.home = commonModule(group.tensors.map((tensor) => tensors[tensor].module));
});

/** The modules around this one, and itself; the outermost first. */
function around(module) {
  const chain = [];
  for (let m = module; m !== null; m = modules[m].parent) chain.unshift(m);
  return chain;
}

/** The innermost module around all of these. */
function commonModule(ids) {
  const chains = [...new Set(ids)].map(around);
  let last = 0;
  for (let i = 0; chains.every((chain) => chain[i] !== undefined && chain[i] === chains[0][i]); i++)
    last = chains[0][i];
  return last;
}

/** The groups of an axis, from the outermost to the innermost. */
function groupsIn(axis) {
  if (axis.group !== undefined) return [axis.group];
  return (axis.factors ?? axis.segments ?? []).flatMap(groupsIn);
}

/** All calls and tensors in a module, at any depth; computed once. */
const insides = new Map();
function inside(id) {
  if (!insides.has(id)) {
    const own = modules[id];
    const deeper = own.modules.map(inside);
    insides.set(id, {
      calls: own.calls.concat(...deeper.map((d) => d.calls)),
      tensors: own.tensors.concat(...deeper.map((d) => d.tensors)),
    });
  }
  return insides.get(id);
}

/** The path of a module below its parent; a part of operators that are set apart has a description instead. */
function ownName(module) {
  if (module.apart) return module.apart;
  if (module.parent === null) return data.title;
  const outer = modules[module.parent].path;
  return outer ? module.path.slice(outer.length + 1) : module.path;
}

/** The place of a group in its dimension, if it is one of several axes of it, as in "0.1". */
function groupPart(group) {
  const place = group.name.split(":").pop();
  return place.includes(".") ? place : "";
}

/** What the indices of a group are, such as "neurons"; where that is not known, the layer that defines it. */
const groupLabel = (group) => (group.label === "width" ? layerWord(group) : group.label);

/** The layer that defines a group, in a word, and the place of its axis. */
function layerWord(group) {
  const words = group.name.split(":")[0].split(".");
  const named = words.filter((word) => !/^(weight|\d+)$/.test(word));
  const place = groupPart(group);
  return (named[named.length - 1] ?? words[words.length - 1]) + (place && `:${place}`);
}

/** The kinds of groups: those of one kind do the same job in different layers. */
const kinds = [...grouped(groups, (group) => `${group.kind} ${group.size}`).values()];
const kindName = ([first]) => `${first.kind} ${first.size}`;

const isNumbered = (module) => /(^|\.)\d+(\.|$)/.test(module.path);
const holdsNumbered = (id) => modules[id].modules.some((m) => isNumbered(modules[m]) || holdsNumbered(m));

/** The block of a model in which a module lies: the outermost with a number in its path, else a module of the model. */
function blockOf(id) {
  const chain = around(id);
  return chain.find((m) => isNumbered(modules[m])) ?? chain.find((m) => !holdsNumbered(m)) ?? id;
}
