// The graph as a picture: a file of SVG that needs no style sheet, no font and no program of this page.

const MARGIN = 12;
const brush = h("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });

/** A color of CSS as hexadecimal digits and an opacity, which other programs read, too. */
function plainColor(color) {
  brush.clearRect(0, 0, 1, 1);
  brush.fillStyle = color;
  brush.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
  const hex = `#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  return { hex, opacity: Math.round((100 * alpha) / 255) / 100 };
}

const round = (number) => Math.round(number * 100) / 100;

/** The place of a rectangle of the screen in the drawing. */
function placed({ left, top, width, height }) {
  const origin = canvas.getBoundingClientRect();
  const at = (value) => round(value / scale);
  return { x: at(left - origin.left), y: at(top - origin.top), width: at(width), height: at(height) };
}

/** The attributes of a fill or a stroke. */
function paint(kind, color) {
  const { hex, opacity } = plainColor(color);
  return { [kind]: hex, [`${kind}-opacity`]: opacity < 1 && String(opacity) };
}

/** The background and the border of an element, if it has any. */
function frameOf(element, style) {
  const [hatched] = style.backgroundImage.match(/(rgb|color|oklab)[^()]*\([^()]*\)/) ?? [];
  const ground = hatched ?? style.backgroundColor;
  const border = parseFloat(style.borderTopWidth);
  const stroked = border > 0 && plainColor(style.borderTopColor).opacity > 0;
  if (!stroked && plainColor(ground).opacity === 0) return null;
  return s("rect", {
    ...placed(element.getBoundingClientRect()),
    rx: Math.min(parseFloat(style.borderTopLeftRadius) || 0, element.offsetHeight / 2),
    ...(plainColor(ground).opacity ? paint("fill", ground) : { fill: "none" }),
    ...(stroked ? paint("stroke", style.borderTopColor) : {}),
    "stroke-width": stroked && (element.classList.contains("selected") ? 3 : border),
    "stroke-dasharray": style.borderTopStyle === "dashed" && "4 3",
  });
}

/** A line of text, at its place and in its width, whatever fonts the reader has. */
function textOf(node, style) {
  const range = document.createRange();
  range.selectNodeContents(node);
  const { x, y, width, height } = placed(range.getBoundingClientRect());
  if (!width) return null;
  brush.font = style.font;
  const { fontBoundingBoxAscent: up, fontBoundingBoxDescent: down } = brush.measureText("x");
  return s(
    "text",
    {
      x,
      y: round(y + (height * up) / (up + down)),
      textLength: width,
      lengthAdjust: "spacingAndGlyphs",
      "font-family": style.fontFamily,
      "font-size": style.fontSize,
      "font-weight": style.fontWeight,
      ...paint("fill", style.color),
    },
    node.textContent.trim(),
  );
}

/** The edges of a module. */
function edgesOfPicture(svg) {
  const { x, y } = placed(svg.getBoundingClientRect());
  const shown = [...svg.querySelectorAll(".wire, circle, .label > *")].filter((shape) =>
    shape.checkVisibility({ visibilityProperty: true }),
  );
  return s(
    "g",
    { transform: `translate(${x} ${y})` },
    shown.map((shape) => {
      const style = getComputedStyle(shape);
      const copy = shape.cloneNode(true);
      ["class", "style"].forEach((name) => copy.removeAttribute(name));
      const font = shape.tagName === "text" && { "font-family": style.fontFamily, "font-size": style.fontSize };
      const stroke = style.stroke !== "none" && { ...paint("stroke", style.stroke), "stroke-width": style.strokeWidth };
      const color = style.fill === "none" ? { fill: "none" } : paint("fill", style.fill);
      const { opacity } = getComputedStyle(shape.closest(".edge") ?? shape);
      return fill(copy, { ...color, ...stroke, ...font, opacity: Number(opacity) < 1 && opacity }, []);
    }),
  );
}

/** An element of the page and everything in it, as shapes of SVG. */
function shapesOf(element) {
  if (element.matches("svg.edges")) return edgesOfPicture(element);
  const style = getComputedStyle(element);
  const inner = [...element.childNodes].map((node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.textContent.trim() ? textOf(node, style) : null;
    return shapesOf(node);
  });
  const shapes = [frameOf(element, style), inner];
  return Number(style.opacity) < 1 ? s("g", { opacity: style.opacity }, shapes) : shapes;
}

/** The whole drawing, as open and as lit as it is now. */
function graphAsSvg() {
  const [width, height] = [extent.width + 2 * MARGIN, extent.height + 2 * MARGIN].map(Math.ceil);
  const paper = paint("fill", getComputedStyle(document.body).backgroundColor);
  const picture = s(
    "svg",
    { width, height, viewBox: `${-MARGIN} ${-MARGIN} ${width} ${height}` },
    s("title", {}, `${data.title}: dependency graph`),
    s("rect", { x: -MARGIN, y: -MARGIN, width, height, ...paper }),
    [...canvas.children].map(shapesOf),
  );
  return new XMLSerializer().serializeToString(picture);
}

function saveGraph() {
  const file = new Blob([graphAsSvg()], { type: "image/svg+xml" });
  const address = URL.createObjectURL(file);
  h("a", { href: address, download: `${data.title.replace(/[^\w.-]+/g, "-") || "graph"}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
