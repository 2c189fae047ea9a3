// Moves in the graph: by keyboard, by mouse, larger and smaller.

let focused = "m0";

/** Make a box the one that the Tab key reaches; if it is not shown, the whole model. */
function stopAt(key) {
  boxes.get(focused)?.setAttribute("tabindex", "-1");
  focused = boxes.has(key) ? key : "m0";
  boxes.get(focused).setAttribute("tabindex", "0");
}

function focusBox(key) {
  stopAt(key);
  boxes.get(focused).focus({ preventScroll: true });
}

/** The nearest closed box in a direction. */
function neighbour(key, direction) {
  const from = boxes.get(key);
  const apart = (element) => element !== from && !from.contains(element) && !element.classList.contains("opened");
  return nearest(from, [...boxes.values()].filter(apart), direction)?.dataset.key;
}

/** The target of an arrow: into an open module, to the next box, or, where there is none, to the module around. */
function step(key, arrow) {
  const box = boxes.get(key);
  const [dx, dy] = ARROWS[arrow];
  if (box.classList.contains("opened") && dx + dy > 0)
    return [...boxes.keys()].find((other) => boxes.get(other).parentElement === box && isTop(box, boxes.get(other)));
  return neighbour(key, [dx, dy]) ?? (dx + dy < 0 ? box.parentElement.closest(".box")?.dataset.key : null);
}

const isTop = (outer, inner) =>
  ![...outer.children].some((other) => other.classList.contains("box") && other.offsetTop < inner.offsetTop);

function graphKeys(event) {
  const key = event.target.dataset?.key;
  if (!key || event.ctrlKey || event.metaKey || event.altKey) return;
  const { type, id } = thingOf(key);
  const next = ARROWS[event.key] && step(key, event.key);
  if (ARROWS[event.key]) {
    if (next) {
      focusBox(next);
      boxes.get(next).scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  } else if (event.key === " ") select({ type, id });
  else if (event.key === "Enter" && type === "module") toggle(id);
  else if (event.key === "Enter") select({ type, id });
  else return;
  event.preventDefault();
}

function setScale(to) {
  const middle = [(view.scrollLeft + view.clientWidth / 2) / scale, (view.scrollTop + view.clientHeight / 2) / scale];
  scale = Math.min(2, Math.max(0.15, to));
  resize();
  view.scrollTo(middle[0] * scale - view.clientWidth / 2, middle[1] * scale - view.clientHeight / 2);
}

const READABLE = 0.55; // nothing is made smaller than this to fit

/** Shrink to the width of the view, as far as the text stays readable. */
function fit() {
  setScale(Math.max(READABLE, Math.min(1, (view.clientWidth - 24) / extent.width)));
  view.scrollLeft = (view.scrollWidth - view.clientWidth) / 2;
}

/** Drag the paper with a mouse; fingers scroll by themselves. */
function dragging() {
  view.addEventListener("pointerdown", (down) => {
    if (down.pointerType !== "mouse" || down.button !== 0 || down.target.closest("button")) return;
    const start = [view.scrollLeft + down.clientX, view.scrollTop + down.clientY];
    const move = (event) => view.scrollTo(start[0] - event.clientX, start[1] - event.clientY);
    addEventListener("pointermove", move);
    addEventListener("pointerup", () => removeEventListener("pointermove", move), { once: true });
  });
}

function startGraph() {
  foldToBlocks();
  draw();
  canvas.addEventListener("keydown", graphKeys);
  byId("in").addEventListener("click", () => setScale(scale * 1.25));
  byId("out").addEventListener("click", () => setScale(scale / 1.25));
  byId("fit").addEventListener("click", fit);
  byId("fold").addEventListener("click", () => {
    foldToBlocks();
    draw();
    fit();
  });
  byId("shapes").addEventListener("click", () => {
    byId("shapes").setAttribute("aria-pressed", String(!shapesShown()));
    canvas.classList.toggle("shaped", shapesShown());
    draw();
  });
  byId("save").addEventListener("click", saveGraph);
  dragging();
}
