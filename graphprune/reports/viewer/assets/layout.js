// Places boxes: every open module is laid out by itself, from the inside to the outside, so that opening one is quick
// and moves nothing else apart from what it pushes aside.

const HEAD = 30; // the height of an open module's title
const PAD = 14;

/** A tree of boxes: their children, sizes, and places in the box around. `sizes` has those of leaves. */
function layOut(id, sizes, edgesIn) {
  const children = childrenOf(id).map((key) => {
    const inner = key[0] === "m" ? Number(key.slice(1)) : null;
    if (inner !== null && open.has(inner)) return { ...layOut(inner, sizes, edgesIn), key };
    return { key, ...sizes.get(key) };
  });
  const placed = arrange(children, edgesIn.get(id).edges);
  const title = sizes.get(`h${id}`);
  const width = Math.max(placed.width, title.width) + 2 * PAD;
  const shift = (width - placed.width) / 2;
  children.forEach((child) => {
    child.x = placed.x(child.key) + shift;
    child.y = placed.y(child.key) + HEAD + PAD;
  });
  const moved = ({ x, y }) => ({ x: x + shift, y: y + HEAD + PAD });
  const paths = placed.paths.map(({ edge, points, label }) => ({
    edge,
    points: points.map(moved),
    label: moved(label),
  }));
  return { id, children, paths, ends: placed.ends.map(moved), width, height: placed.height + HEAD + 2 * PAD };
}

/** The places of boxes and edges by dagre: the left upper corners of boxes, from that of the whole. */
function arrange(children, edges) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 26, edgesep: 12, marginx: 0, marginy: 0 });
  graph.setDefaultEdgeLabel(() => ({}));
  children.forEach(({ key, width, height }) => graph.setNode(key, { width, height }));
  const ends = ["in", "out"].filter((end) => edges.some((edge) => edge.from === end || edge.to === end));
  ends.forEach((end) => graph.setNode(end, { width: 8, height: 8 }));
  edges.forEach((edge) => graph.setEdge(edge.from, edge.to, shapesShown() ? labelSize(edge) : {}));
  if (graph.hasNode("in")) {
    // inputs are above operators without any
    graph
      .sources()
      .filter((key) => key !== "in")
      .forEach((key) => graph.setEdge("in", key, { weight: 0 }));
  }
  dagre.layout(graph);
  const { width = 0, height = 0 } = graph.graph();
  const corner = (key, side, length) => graph.node(key)[side] - graph.node(key)[length] / 2;
  return {
    width: Number.isFinite(width) ? width : 0,
    height: Number.isFinite(height) ? height : 0,
    x: (key) => corner(key, "x", "width"),
    y: (key) => corner(key, "y", "height"),
    ends: ends.map((end) => graph.node(end)),
    paths: edges.map((edge) => {
      const { points, x, y } = graph.edge(edge.from, edge.to);
      return { edge, points, label: x === undefined ? middle(points) : { x, y } };
    }),
  };
}

/** A line through points, its corners rounded. */
function curve(points) {
  const [first, ...rest] = points;
  let path = `M${first.x},${first.y}`;
  rest.forEach((point, i) => {
    const next = rest[i + 1];
    path += next
      ? `Q${point.x},${point.y} ${(point.x + next.x) / 2},${(point.y + next.y) / 2}`
      : `L${point.x},${point.y}`;
  });
  return path;
}

/** The point halfway along a line through points. */
function middle(points) {
  const lengths = points.slice(1).map((point, i) => Math.hypot(point.x - points[i].x, point.y - points[i].y));
  let rest = sum(lengths) / 2;
  for (const [i, length] of lengths.entries()) {
    if (rest <= length) {
      const share = length ? rest / length : 0;
      const [a, b] = [points[i], points[i + 1]];
      return { x: a.x + share * (b.x - a.x), y: a.y + share * (b.y - a.y) };
    }
    rest -= length;
  }
  return points[0];
}
