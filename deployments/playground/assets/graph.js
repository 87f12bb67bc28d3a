// Draws a pipeline as a graph whose nodes tell what their agents are at.

import { drawing, element } from "./dom.js";
import { depthsOf, layOut } from "./graph_layout.js";

const NODE_HEIGHT = 52;
const CHAR_WIDTH = 8.4;
const MIN_WIDTH = 96;
const NARROWEST = 82; // rather than that a graph has to be scrolled
const MAX_WIDTH = 150;
const MIN_GAP = 26;
const MAX_GAP = 60;
const GAP_ACROSS = 14;
const MARGIN = 3; // for what is drawn around a box
const ARROW = 6;

export class Graph {
  #place;
  #pipeline = null;
  #run = null;
  #width = 0;

  constructor(place) {
    this.#place = place;
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width === this.#width) return;
      this.#width = width;
      requestAnimationFrame(() => this.#draw()); // at once it would be a change within a change
    }).observe(place);
  }

  show(pipeline, run = null) {
    this.#pipeline = pipeline;
    this.#run = run;
    this.#draw();
  }

  #draw() {
    if (this.#pipeline === null || this.#width === 0) return;
    const drawn = drawGraph(this.#pipeline, this.#run, this.#width);
    const old = this.#place.firstElementChild;
    const scrolled = old?.scrollLeft ?? 0;
    const hadFocus = old !== null && old === document.activeElement;
    this.#place.replaceChildren(drawn);
    drawn.scrollLeft = scrolled;
    if (hadFocus) drawn.focus();
  }
}

function drawGraph(pipeline, run, room) {
  const { nodes, name } = pipeline;
  let width = widthOf(nodes);
  const numLayers = Math.max(...depthsOf(nodes).values()) + 1;
  const free = (room - 2 * MARGIN - numLayers * width) / Math.max(numLayers - 1, 1);
  const isFlat = free >= (numLayers > 1 ? MIN_GAP : 0);
  if (!isFlat) width = narrowed(nodes, width, room - 2 * MARGIN);
  const layout = layOut(nodes, {
    length: isFlat ? width : NODE_HEIGHT,
    breadth: isFlat ? NODE_HEIGHT : width,
    gap: isFlat ? Math.min(free, MAX_GAP) : MIN_GAP,
    gapAcross: GAP_ACROSS,
  });
  const size = turned({ along: layout.along, across: layout.across }, isFlat);
  const [fullWidth, fullHeight] = [size.x + 2 * MARGIN, size.y + 2 * MARGIN];
  const described = nodes.map((node) => describe(node, run)).join("; ");
  const svg = drawing(
    "svg",
    {
      role: "img",
      "aria-label": `Pipeline ${name}: ${described}`,
      width: fullWidth,
      height: fullHeight,
      viewBox: `${-MARGIN} ${-MARGIN} ${fullWidth} ${fullHeight}`,
    },
    layout.edges.map((edge) => drawEdge(edge, run, isFlat, width)),
    nodes.map((node) =>
      drawNode(node, pipeline, run, turned(layout.boxes.get(node.name), isFlat), width),
    ),
  );
  const isScrolled = fullWidth > room;
  const attributes = isScrolled
    ? { class: "scroller", role: "region", tabindex: "0", "aria-label": "Pipeline graph" }
    : { class: "fitted" };
  return element("div", attributes, svg);
}

function widthOf(nodes) {
  const longest = Math.max(...nodes.map(({ name }) => name.length));
  return Math.min(Math.max(longest * CHAR_WIDTH + 24, MIN_WIDTH), MAX_WIDTH);
}

/** As wide as nodes can be for the fullest layer to fit into `room`, but no narrower than that. */
function narrowed(nodes, width, room) {
  for (let fitting = width; fitting > NARROWEST; fitting -= 2) {
    const size = { length: NODE_HEIGHT, breadth: fitting, gap: MIN_GAP, gapAcross: GAP_ACROSS };
    if (layOut(nodes, size).across <= room) return fitting;
  }
  return NARROWEST;
}

function turned({ along, across }, isFlat) {
  return isFlat ? { x: along, y: across } : { x: across, y: along };
}

function drawNode({ name, agent }, pipeline, run, centre, width) {
  const state = stateOf(name, run);
  const isSpeaker = name === pipeline.speaker;
  const below = run === null ? groupOf(name, pipeline) : stateText(name, run);
  const x = centre.x - width / 2;
  const y = centre.y - NODE_HEIGHT / 2;
  return drawing(
    "g",
    { class: `node state-${state}${isSpeaker ? " speaker" : ""}`, "data-node": name },
    drawing("title", {}, agent === name ? name : `${name}: ${agent}`),
    drawing("rect", { x, y, width, height: NODE_HEIGHT, rx: isSpeaker ? 14 : 8 }),
    drawing("text", { x: centre.x, y: centre.y - 5, class: "node-name" }, shortened(name, width)),
    drawing("text", { x: centre.x, y: centre.y + 14, class: "node-state" }, below),
  );
}

function drawEdge({ from, to, points }, run, isFlat, width) {
  const half = (isFlat ? width : NODE_HEIGHT) / 2;
  const ends = points.map((point) => ({ ...point }));
  ends[0].along += half;
  ends.at(-1).along -= half + ARROW;
  const places = ends.map((point) => turned(point, isFlat));
  const path = places.slice(1).reduce(
    (drawn, place, i) => drawn + curve(places[i], place, isFlat),
    `M${places[0].x} ${places[0].y}`,
  );
  const state = run === null ? "idle" : edgeState(from, to, run);
  return drawing(
    "g",
    { class: `edge edge-${state}`, "data-edge": `${from} ${to}` },
    drawing("path", { d: path }),
    drawing("polygon", { points: arrowAt(places.at(-1), isFlat) }),
  );
}

function curve(start, end, isFlat) {
  const bend = isFlat ? (end.x - start.x) / 2 : (end.y - start.y) / 2;
  return isFlat
    ? `C${start.x + bend} ${start.y} ${end.x - bend} ${end.y} ${end.x} ${end.y}`
    : `C${start.x} ${start.y + bend} ${end.x} ${end.y - bend} ${end.x} ${end.y}`;
}

function arrowAt({ x, y }, isFlat) {
  const side = ARROW * 0.7;
  return isFlat
    ? `${x},${y - side} ${x + ARROW},${y} ${x},${y + side}`
    : `${x - side},${y} ${x},${y + ARROW} ${x + side},${y}`;
}

function stateOf(name, run) {
  if (run === null) return "idle";
  return run.agents.get(name)?.state ?? "absent";
}

function stateText(name, run) {
  const agent = run.agents.get(name);
  if (agent === undefined) return "not asked";
  return agent.state === "thinking" && agent.numSteps > 0
    ? `thinking ${agent.numSteps}`
    : agent.state;
}

function edgeState(from, to, run) {
  const [giver, taker] = [run.agents.get(from), run.agents.get(to)];
  if (giver === undefined || taker === undefined) return "absent";
  return giver.state === "done" && taker.state !== "waiting" ? "passed" : "idle";
}

function groupOf(name, pipeline) {
  return pipeline.stages.find(({ nodes }) => nodes.includes(name))?.group ?? "";
}

function describe({ name, after }, run) {
  const reads = after.length > 0 ? ` after ${after.join(" and ")}` : "";
  return run === null ? `${name}${reads}` : `${name}${reads}, ${stateText(name, run)}`;
}

function shortened(name, width) {
  const fits = Math.floor((width - 16) / CHAR_WIDTH);
  return name.length <= fits ? name : `${name.slice(0, fits - 1)}…`;
}
