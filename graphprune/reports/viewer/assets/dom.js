// Elements and words.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes by name, functions as listeners, and what is in it. Text is never read as HTML. */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
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

/** Things by what `key` says of them, in the order in which they come. */
function grouped(things, key) {
  const found = new Map();
  for (const thing of things) {
    const k = key(thing);
    if (!found.has(k)) found.set(k, []);
    found.get(k).push(thing);
  }
  return found;
}

/** A name that may break after its dots, so that it fits a narrow column. */
function broken(name) {
  return name.split(/(?<=[./_])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]));
}
