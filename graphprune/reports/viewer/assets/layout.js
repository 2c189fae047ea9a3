// Places boxes: every open module is laid out by itself, from the inside to the outside, so that opening one is quick
// and moves nothing else apart from what it pushes aside.

const HEAD = 30; // the height of an open module's title
const PAD = 14;

/** A tree of boxes: what each holds, its size, and where it stands in the box around it. `sizes` has those of leaves. */
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
  const paths = placed.paths.map(({ edge, points }) => ({ edge, points: points.map(moved) }));
  return { id, children, paths, ends: placed.ends.map(moved), width, height: placed.height + HEAD + 2 * PAD };
}

/** Where dagre puts boxes and edges, the left upper corners of boxes counted from that of the whole. */
function arrange(children, edges) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 26, edgesep: 12, marginx: 0, marginy: 0 });
  graph.setDefaultEdgeLabel(() => ({}));
  children.forEach(({ key, width, height }) => graph.setNode(key, { width, height }));
  const ends = ["in", "out"].filter((end) => edges.some((edge) => edge.from === end || edge.to === end));
  ends.forEach((end) => graph.setNode(end, { width: 8, height: 8 }));
  edges.forEach(({ from, to }) => graph.setEdge(from, to));
  if (graph.hasNode("in")) {
    // what comes in stands above what begins here
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
    paths: edges.map((edge) => ({ edge, points: graph.edge(edge.from, edge.to).points })),
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
