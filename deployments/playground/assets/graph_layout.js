// Where the nodes of a DAG stand: layers by the longest way to a node, parents near their children.
// Pure: knows sizes, draws nothing.

const BEND_BREADTH = 4;

/**
 * `nodes`: [{name, after}]. Boxes are `length` along the flow and `breadth` across it, `gap` apart.
 * Returns {along, across, boxes: Map(name -> {along, across}), edges: [{from, to, points}]}: sizes
 * and the centres of boxes; `points` lead from centre to centre, past the boxes between: it is only in
 * the gaps that an edge goes across.
 */
export function layOut(nodes, { length, breadth, gap, gapAcross }) {
  const layers = layersOf(nodes);
  const names = new Set(nodes.map(({ name }) => name));
  const breadthOf = ({ id }) => (names.has(id) ? breadth : BEND_BREADTH);
  const breadths = layers.map((layer) =>
    layer.reduce((sum, item) => sum + breadthOf(item) + gapAcross, -gapAcross),
  );
  const across = Math.max(...breadths);
  const places = new Map();
  layers.forEach((layer, depth) => {
    let start = (across - breadths[depth]) / 2;
    for (const item of layer) {
      const along = depth * (length + gap) + length / 2;
      places.set(item.id, { along, across: start + breadthOf(item) / 2 });
      start += breadthOf(item) + gapAcross;
    }
  });
  return {
    along: layers.length * length + (layers.length - 1) * gap,
    across,
    boxes: new Map(nodes.map(({ name }) => [name, places.get(name)])),
    edges: edgesOf(nodes, depthsOf(nodes)).map(({ from, to, ids }) => ({
      from,
      to,
      points: ids.flatMap((id, i) => {
        const place = places.get(id);
        const isBend = i > 0 && i < ids.length - 1;
        return isBend ? [-length / 2, length / 2].map((by) => moved(place, by)) : [place];
      }),
    })),
  };
}

function moved({ along, across }, by) {
  return { along: along + by, across };
}

/** How many nodes the longest way to each has in front of it. */
export function depthsOf(nodes) {
  const parentsOf = new Map(nodes.map(({ name, after }) => [name, after]));
  const depths = new Map();
  const depthOf = (name) => {
    if (!depths.has(name)) {
      depths.set(name, Math.max(-1, ...parentsOf.get(name).map(depthOf)) + 1);
    }
    return depths.get(name);
  };
  nodes.forEach(({ name }) => depthOf(name));
  return depths;
}

/** Every edge as the ids of the places it goes through; one per layer, so that it keeps clear. */
function edgesOf(nodes, depths) {
  return nodes.flatMap(({ name, after }) =>
    after.map((parent) => {
      const between = depths.get(name) - depths.get(parent) - 1;
      const bends = Array.from({ length: between }, (_, i) => bendId(parent, name, i));
      return { from: parent, to: name, ids: [parent, ...bends, name] };
    }),
  );
}

function bendId(from, to, index) {
  return `${from} ${to} ${index}`; // no name has a blank
}

/** Layers of {id, parents}: nodes, and the bends of edges that pass by. */
function layersOf(nodes) {
  const depths = depthsOf(nodes);
  const layers = Array.from({ length: Math.max(...depths.values()) + 1 }, () => []);
  const parentsOf = new Map(nodes.map(({ name }) => [name, []]));
  for (const [id, parents] of parentsOf) layers[depths.get(id)].push({ id, parents });
  for (const { from, to, ids } of edgesOf(nodes, depths)) {
    ids.slice(1).forEach((id, i) => {
      if (id === to) parentsOf.get(to).push(ids[i]);
      else layers[depths.get(from) + 1 + i].push({ id, parents: [ids[i]] });
    });
  }
  layers.slice(1).forEach((layer, i) => sortByParents(layer, layers[i]));
  return layers;
}

function sortByParents(layer, above) {
  const indexOf = new Map(above.map(({ id }, index) => [id, index]));
  const mean = ({ parents }) =>
    parents.reduce((sum, id) => sum + indexOf.get(id), 0) / parents.length;
  const order = new Map(layer.map((item) => [item.id, mean(item)]));
  layer.sort((one, other) => order.get(one.id) - order.get(other.id));
}
