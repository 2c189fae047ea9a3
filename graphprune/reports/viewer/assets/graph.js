// Draws the graph: boxes in boxes, the edges between them, and the light on the selection.

const canvas = byId("canvas");
const view = byId("view");
const boxes = new Map(); // key -> element
let lines = []; // {edge, element}
let scale = 1;
let extent = { width: 0, height: 0 }; // of the whole drawing at scale 1

/** Make all visible boxes, and measure them at once; collect the edges between them. */
function measured() {
  const made = new Map();
  const edges = new Map();
  const stage = h("div", { class: "canvas stage" });
  const visit = (id) => {
    made.set(`h${id}`, makeTitle(id));
    edges.set(id, edgesOf(id));
    childrenOf(id).forEach((key) => {
      if (key[0] === "m" && open.has(Number(key.slice(1)))) visit(Number(key.slice(1)));
      else made.set(key, makeBox(key, edges.get(id).many.get(key)));
    });
  };
  visit(0);
  stage.append(...made.values());
  view.append(stage);
  const sizes = new Map(
    [...made].map(([key, element]) => [key, { width: element.offsetWidth + 1, height: element.offsetHeight }]),
  ); // a part of a pixel may be lost
  stage.remove();
  return { made, sizes, edges };
}

function draw() {
  const { made, sizes, edges } = measured();
  const tree = layOut(0, sizes, edges);
  boxes.clear();
  lines = [];
  canvas.replaceChildren(container({ ...tree, key: "m0", x: 0, y: 0 }, made));
  extent = { width: tree.width, height: tree.height };
  resize();
  light();
  stopAt(focused);
}

/** An open module with everything in it. */
function container(tree, made) {
  const svg = s("svg", { class: "edges", width: tree.width, height: tree.height, "aria-hidden": "true" });
  tree.paths.forEach((path) => {
    const element = makeEdge(path);
    lines.push({ edge: path.edge, element });
    svg.append(element);
  });
  svg.append(...tree.ends.map(({ x, y }) => s("circle", { cx: x, cy: y, r: 4.5 })));
  const inner = tree.children.map((child) => {
    const element = child.children ? container(child, made) : made.get(child.key);
    put(element, child);
    boxes.set(child.key, element);
    return element;
  });
  const element = h(
    "div",
    {
      class: "box module opened",
      role: tree.id ? "treeitem" : "presentation",
      tabindex: "-1",
      "data-key": tree.key,
      "aria-expanded": "true",
      "aria-label": labelOf(tree.key),
      click: (event) => {
        event.stopPropagation();
        focusBox(tree.key);
        select({ type: "module", id: tree.id });
      },
    },
    svg,
    made.get(`h${tree.id}`),
    inner,
  );
  put(element, tree);
  boxes.set(tree.key, element);
  return element;
}

function put(element, { x, y, width, height }) {
  Object.assign(element.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
}

function toggle(id) {
  if (!canOpen(modules[id]) || id === 0) return;
  const before = boxes.get(`m${id}`)?.getBoundingClientRect();
  if (open.has(id)) closeAll(id);
  else open.add(id);
  draw();
  focusBox(`m${id}`);
  const after = boxes.get(`m${id}`).getBoundingClientRect();
  if (state.selected?.type === "module") showDetail(state.selected); // its button depends on whether it is open
  if (before) view.scrollBy(after.left + after.width / 2 - before.left - before.width / 2, after.top - before.top);
}

function closeAll(id) {
  open.delete(id);
  modules[id].modules.forEach(closeAll);
}

/** Light up the members of the selected groups, and mark the selection itself. */
function light() {
  const lit = state.lit;
  const touches = (list) => list.some((group) => lit.has(group));
  canvas.classList.toggle("lit", lit.size > 0);
  boxes.forEach((element, key) => {
    const { type, id } = thingOf(key);
    const deep = type === "module" ? inside(id) : null;
    const on =
      type === "module"
        ? deep.tensors.some((t) => touches(tensors[t].groups)) || deep.calls.some((c) => touches(calls[c].groups))
        : touches((type === "tensor" ? tensors : calls)[id].groups);
    element.classList.toggle("on", lit.size > 0 && on);
    element.classList.toggle("selected", isSelected(type, id));
    element.setAttribute("aria-selected", String(isSelected(type, id)));
  });
  lines.forEach(({ edge, element }) => {
    element.classList.toggle(
      "on",
      [...edge.groups].some((group) => lit.has(group)),
    );
    element.classList.toggle("near", touchesSelected(edge));
  });
  document
    .querySelectorAll("[data-group]")
    .forEach((element) => element.classList.toggle("on", lit.has(Number(element.dataset.group))));
}

/** The box that shows a thing, or the innermost closed module around it. */
function boxFor(thing) {
  if (!thing) return null;
  if (thing.type === "group") return boxFor({ type: "tensor", id: groups[thing.id].tensors[0] });
  if (thing.type === "kind") return boxFor({ type: "group", id: kinds[thing.id][0].id });
  const own = boxes.get({ module: "m", tensor: "t", call: "c" }[thing.type] + thing.id);
  if (own) return own;
  const module = thing.type === "module" ? thing.id : (thing.type === "tensor" ? tensors : calls)[thing.id].module;
  return boxes.get(`m${around(module).findLast((m) => boxes.has(`m${m}`))}`);
}

/** Scroll to a thing. */
function show(thing) {
  boxFor(thing)?.scrollIntoView({ block: "center", inline: "center" });
}

/** The module whose opening shows a thing: of a group, the innermost around its members; nothing for a kind of groups. */
function homeOf({ type, id }) {
  if (type === "kind") return 0;
  if (type === "group") return groups[id].home;
  return type === "module" ? (modules[id].parent ?? 0) : (type === "tensor" ? tensors : calls)[id].module;
}

/** Open the modules around a thing, scroll to it, and put the focus there. */
function goTo(thing) {
  showTab("graph"); // hidden boxes cannot be measured
  reveal(homeOf(thing));
  draw();
  show(thing);
  focusBox(boxFor(thing)?.dataset.key);
}

/** The drawing is laid out at scale 1 and then shrunk as a whole, so that no text breaks elsewhere. */
function resize() {
  canvas.style.transform = `scale(${scale})`;
  Object.assign(byId("paper").style, { width: `${extent.width * scale}px`, height: `${extent.height * scale}px` });
  byId("zoom").textContent = percent(scale);
}
