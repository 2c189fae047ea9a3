// Which modules are open, and the part of the graph that is visible then.

const open = new Set();

/** Open the modules around the blocks, and nothing in them. */
function foldToBlocks() {
  open.clear();
  open.add(0);
  modules.forEach((module) => {
    if (!isNumbered(module) && holdsNumbered(module.id)) open.add(module.id);
  });
}

const canOpen = (module) => module.modules.length + module.calls.length > 0;

/** Open all modules around one. */
function reveal(module) {
  around(module).forEach((m) => open.add(m));
}

/** The children of an open module: "m3" is module 3, "c7" call 7, "t2" tensor 2. */
function childrenOf(id) {
  const { modules: inner, calls: own, tensors: held } = modules[id];
  return [...inner.map((m) => `m${m}`), ...held.map((t) => `t${t}`), ...own.map((c) => `c${c}`)];
}

/** The child of module `id` in which a call lies, or null if it lies elsewhere. */
function childOver(id, call) {
  const chain = around(calls[call].module);
  const place = chain.indexOf(id);
  if (place < 0) return null;
  return place === chain.length - 1 ? `c${call}` : `m${chain[place + 1]}`;
}

const MANY = 3; // a value that more children use has a note instead of edges: positions and masks enter every block

/**
 * The edges between the children of an open module, each with its values and their groups, and the number of users of
 * values that have many. "in" and "out" stand for everything outside.
 */
function edgesOf(id) {
  const flows = flowsIn(id);
  const counts = new Map(
    [...grouped(flows, (flow) => flow.source)].map(([source, all]) => [
      source,
      new Set(all.map((flow) => flow.to)).size,
    ]),
  );
  const edges = new Map();
  for (const { from, to, source, value } of flows) {
    if (from === to || counts.get(source) > MANY) continue;
    const key = `${from} ${to}`;
    if (!edges.has(key)) edges.set(key, { from, to, groups: new Set(), values: new Set() });
    edges.get(key).values.add(value);
    valueOf(value).groups.forEach((group) => edges.get(key).groups.add(group));
  }
  return { edges: [...edges.values()], many: new Map([...counts].filter(([, count]) => count > MANY)) };
}

/** The call or tensor behind a key. */
const valueOf = (key) => (key[0] === "t" ? tensors : calls)[Number(key.slice(1))];

/** The values that flow between children: `source` is the child that makes it, or the call, if that is outside. */
function flowsIn(id) {
  const flows = [];
  for (const call of inside(id).calls) {
    const to = childOver(id, call);
    for (const input of calls[call].inputs) {
      const from = childOver(id, input);
      if (from !== to)
        flows.push({ from: from ?? "in", to, source: from ?? `outside ${input}`, value: `c${input}` });
    }
    for (const tensor of calls[call].tensors) {
      if (tensors[tensor].module === id)
        flows.push({ from: `t${tensor}`, to, source: `t${tensor}`, value: `t${tensor}` });
    }
    if (calls[call].outputs.some((next) => childOver(id, next) === null)) {
      flows.push({ from: to, to: "out", source: to, value: `c${call}` });
    }
  }
  return flows;
}
