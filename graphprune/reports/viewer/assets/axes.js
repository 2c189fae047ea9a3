// Draws an axis to scale: a row for each level of its structure, a band for each axis in it, a tick for each index.

const WIDE = 360; // the width of a row in pixels, about
const MOST = 96; // more parts than this are not drawn one by one; one of them is, enlarged
const HUES = 6;

/** Rows of bands {x, width, axis, removed}, x and width as shares of the row; a row may have a note. */
function rowsOf(axis) {
  const rows = [];
  const row = (depth) => (rows[depth] ??= { bands: [], note: "" });

  function place(axes, x, width, depth, around) {
    const [first, ...rest] = axes;
    if (first.segments) {
      let at = x;
      for (const segment of first.segments) {
        const own = (width * segment.n) / first.n;
        place([segment, ...rest], at, own, depth, around);
        at += own;
      }
      return;
    }
    if (first.factors) return place([...first.factors, ...rest], x, width, depth, around);
    row(depth).bands.push({ x, width, axis: first, removed: removedOf(first, around) });
    if (!rest.length) return;
    if (first.n > MOST || (width * WIDE) / first.n < 3) {
      if (!row(depth + 1).note) {
        row(depth + 1).note = `each of the ${first.n}, enlarged:`;
        place(rest, 0, 1, depth + 1, around);
      }
      return;
    }
    for (let i = 0; i < first.n; i++) {
      place(rest, x + (width * i) / first.n, width / first.n, depth + 1, { ...around, [first.group]: i });
    }
  }

  place([axis], 0, 1, 0, {});
  return rows;
}

/** The indices of a group that a plan removes, at a place inside the group that it is linked to. */
function removedOf(axis, around) {
  const kept = groups[axis.group]?.kept;
  if (!kept) return [];
  const row = kept[kept.length > 1 ? (around[groups[axis.group].linked] ?? 0) : 0];
  return indices(row, axis.n, false);
}

/** The indices whose bit in a row of hexadecimal digits is `bit`. */
function indices(row, size, bit) {
  return [...Array(size).keys()].filter((i) => Boolean(parseInt(row[i >> 2], 16) & (8 >> (i & 3))) === bit);
}

/** Indices as runs [start, end). */
function runs(sorted) {
  const ranges = [];
  for (const i of sorted) {
    if (ranges.length && ranges.at(-1)[1] === i) ranges.at(-1)[1] = i + 1;
    else ranges.push([i, i + 1]);
  }
  return ranges;
}

/** Color over removed indices. */
function removedLayer(removed, size) {
  if (!removed.length) return null;
  const stops = runs(removed).flatMap(([start, end]) => {
    const [a, b] = [(100 * start) / size, (100 * end) / size];
    return [`transparent ${a}%`, `var(--removed) ${a}%`, `var(--removed) ${b}%`, `transparent ${b}%`];
  });
  return h("i", { class: "removed", style: { "background-image": `linear-gradient(90deg, ${stops.join()})` } });
}

/** A dimension of a tensor: its rows, and below its axes. `hues` numbers the groups of the tensor. */
function dimension(tensor, index, hues) {
  const dim = tensor.dims[index];
  const parts = [...new Map(primesIn(dim.axis).map((axis) => [partKey(axis), axis])).values()];
  const explained = new Map(parts.map((axis) => [partKey(axis), part(axis, hues)]));
  const roles = groups.flatMap((group) =>
    group.places.filter(([t, d]) => t === tensor.id && d === index).map(([, , role]) => role),
  );
  const rows = dim.size === 1 ? [] : rowsOf(dim.axis);
  return h(
    "section",
    { class: "dimension" },
    h(
      "h3",
      {},
      `dimension ${index} `,
      h("code", {}, dim.text),
      h("small", {}, ` ${[...new Set(roles)].join(", ")}`),
      tensor.left[index] < dim.size && h("small", { class: "cut" }, ` → ${tensor.left[index]}`),
    ),
    h(
      "div",
      { class: "axis" },
      rows.map(({ bands, note }) => [
        note && h("small", {}, note),
        h(
          "div",
          { class: "row" },
          bands.map((shown) => band(shown, hues, explained)),
        ),
      ]),
    ),
    dim.size === 1 ? h("p", {}, "Its size is 1: there is nothing to cut.") : [...explained.values()],
  );
}

function band({ x, width, axis, removed }, hues, explained) {
  const pixels = (width * WIDE) / axis.n;
  const whose = axis.group === undefined ? "pinned" : `hue${hues.get(axis.group) % HUES}`;
  const name = axis.group === undefined ? "pinned" : groups[axis.group].name;
  return h(
    "button",
    {
      type: "button",
      class: `band ${whose} ${pixels >= 4 ? "ticks" : ""}`,
      title: `${axis.n}: ${name}`,
      tabindex: "-1",
      style: { left: `${100 * x}%`, width: `${100 * width}%`, "--n": axis.n },
      click: () => {
        const details = explained.get(partKey(axis));
        details.open = true;
        details.querySelector("summary").focus();
        details.scrollIntoView({ block: "nearest" });
      },
    },
    removedLayer(removed, axis.n),
    width * WIDE > (removed.length ? 60 : 26) && h("span", {}, axis.n),
  );
}

const primesIn = (axis) =>
  (axis.factors ?? axis.segments) ? (axis.factors ?? axis.segments).flatMap(primesIn) : [axis];
const partKey = (axis) => (axis.group === undefined ? `${axis.n} ${axis.reasons}` : `group ${axis.group}`);

/** The group of an axis, or why it is pinned. */
function part(axis, hues) {
  const group = groups[axis.group];
  const css = group ? `hue${hues.get(axis.group) % HUES}` : "pinned";
  return h(
    "details",
    { class: `part ${css}`, open: !group },
    h(
      "summary",
      {},
      h("i", { class: "swatch" }),
      h("b", {}, whole(axis.n)),
      " ",
      group
        ? `${groupLabel(group)}, ${freedomText[group.freedom]}`
        : "cannot be cut",
    ),
    group && h("p", {}, "group ", link({ type: "group", id: group.id })),
    (axis.reasons ?? []).map(reason),
  );
}

/** Why: in words, with the operator and the line of the model. */
function reason(id) {
  const { why, operator, file, line, code } = reasons[id];
  return h(
    "div",
    { class: "reason" },
    why && h("p", {}, `because ${why}`, operator && h("small", {}, ` (${operator})`)),
    code && h("pre", {}, h("code", {}, code)),
    file && h("small", {}, broken(`${file}:${line}`)),
  );
}
