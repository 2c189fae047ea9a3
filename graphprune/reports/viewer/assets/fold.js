// Which modules are open, and what is seen of the graph then.

const open = new Set();

/** Open what leads to the blocks, and nothing in them. */
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

/** What stands in an open module: "m3" is module 3, "c7" call 7, "t2" tensor 2. */
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

const MANY = 3; // what is read by more children than this is told, not drawn: positions and masks go to every block

/**
 * The edges between the children of an open module, each with the groups that flow along it, and how many read what is
 * read by many. "in" and "out" stand for what lies outside.
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
  for (const { from, to, source, groups: carried } of flows) {
    if (from === to || counts.get(source) > MANY) continue;
    const key = `${from} ${to}`;
    if (!edges.has(key)) edges.set(key, { from, to, groups: new Set() });
    carried.forEach((group) => edges.get(key).groups.add(group));
  }
  return { edges: [...edges.values()], many: new Map([...counts].filter(([, count]) => count > MANY)) };
}

/** What flows between children: `source` is the child it comes from, or the call, if that lies outside. */
function flowsIn(id) {
  const flows = [];
  for (const call of inside(id).calls) {
    const to = childOver(id, call);
    for (const input of calls[call].inputs) {
      const from = childOver(id, input);
      if (from !== to)
        flows.push({ from: from ?? "in", to, source: from ?? `outside ${input}`, groups: calls[input].groups });
    }
    for (const tensor of calls[call].tensors) {
      if (tensors[tensor].module === id)
        flows.push({ from: `t${tensor}`, to, source: `t${tensor}`, groups: tensors[tensor].groups });
    }
    if (calls[call].outputs.some((next) => childOver(id, next) === null)) {
      flows.push({ from: to, to: "out", source: to, groups: calls[call].groups });
    }
  }
  return flows;
}
