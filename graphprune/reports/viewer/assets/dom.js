// Elements and words.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes by name, functions as listeners, and its children. Text is never read as HTML. */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An element of SVG. */
function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") Object.entries(value).forEach(([key, text]) => element.style.setProperty(key, text));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const byId = (id) => document.getElementById(id);

/** 1536 as 1,536. */
const whole = (n) => n.toLocaleString("en");

/** 3540672 as 3.5 M. */
function short(n) {
  for (const [unit, size] of [
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ]) {
    if (n >= size) return `${(n / size).toPrecision(3).replace(/\.0+$|(?<=\.\d*[1-9])0+$/, "")} ${unit}`;
  }
  return String(n);
}

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
const plural = (n, word) => `${whole(n)} ${word}${n === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** Things by their key, in the order in which they come. */
function grouped(things, key) {
  const byKey = new Map();
  for (const thing of things) {
    const k = key(thing);
    if (!byKey.has(k)) byKey.set(k, []);
    byKey.get(k).push(thing);
  }
  return byKey;
}

/** A name that may break after its dots and slashes and nowhere else, so that it fits a narrow column. */
function broken(name) {
  const unbroken = (part) => (part.includes("-") ? h("span", { class: "unbroken" }, part) : part);
  return h(
    "span",
    { class: "dotted" },
    name.split(/(?<=[./])/).flatMap((part, i) => [i > 0 && h("wbr"), unbroken(part)]),
  );
}

/** A table that scrolls sideways where it is too wide; a line above it shows on which side there are more columns. */
function scroller(table) {
  const hint = h("p", { class: "hint", "aria-hidden": "true" });
  const box = h("div", { class: "scroll" }, table);
  const update = () => {
    const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.toggleAttribute("data-right", rest > 1);
    box.toggleAttribute("data-left", box.scrollLeft > 1);
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
    hint.textContent = rest > 1 ? "more columns →" : "← more columns";
    if (!box.querySelector("button") && !hint.hidden) box.tabIndex = 0; // else arrow keys could not scroll it
  };
  box.addEventListener("scroll", update);
  new ResizeObserver(update).observe(box);
  return [hint, box];
}
