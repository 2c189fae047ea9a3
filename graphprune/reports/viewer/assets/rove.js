// The keyboard: the Tab key goes from part to part of the page, arrow keys move inside a part.

const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

/** The nearest of some elements in a direction. */
function nearest(from, elements, [dx, dy]) {
  const center = (element) => {
    const { left, top, width, height } = element.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
  };
  const [x, y] = center(from);
  let best = null;
  for (const element of elements) {
    const [ox, oy] = center(element);
    const ahead = (ox - x) * dx + (oy - y) * dy;
    const aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
    if (ahead > 4 && (!best || ahead + 2 * aside < best.far)) best = { element, far: ahead + 2 * aside };
  }
  return best?.element;
}

/** The target of a key among the controls of a part, in their order; up and down by their places. */
function roveTo(key, from, controls) {
  const place = controls.indexOf(from);
  if (key === "Home") return controls[0];
  if (key === "End") return controls.at(-1);
  if (key === "ArrowLeft") return controls[place - 1];
  if (key === "ArrowRight") return controls[place + 1];
  return ARROWS[key] && nearest(from, controls, ARROWS[key]);
}

/** Make the controls of a part one stop of the Tab key; returns a function to call when they were replaced. */
function rove(part, selector) {
  const all = () => [...part.querySelectorAll(selector)];
  const stopAtControl = (control) => all().forEach((other) => (other.tabIndex = other === control ? 0 : -1));
  part.addEventListener("focusin", ({ target }) => {
    if (target.matches(selector)) stopAtControl(target);
  });
  part.addEventListener("keydown", (event) => {
    if (!event.target.matches(selector) || event.ctrlKey || event.metaKey || event.altKey) return;
    const visible = all().filter((control) => control.checkVisibility());
    const next = roveTo(event.key, event.target, visible);
    if (!next) return;
    next.focus();
    event.preventDefault();
  });
  const settle = () => stopAtControl(all()[0]);
  settle();
  return settle;
}
