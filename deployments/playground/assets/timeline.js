// Draws who was at what when: a row per agent over one axis of time.

import { element, table } from "./dom.js";
import { bytes, count, counted, duration, roundUp } from "./units.js";

const MIN_SCALE_MS = 500;
const NUM_TICKS = 4;
const NOTHING = "Nobody has been asked yet. Each agent gets a row here: how long it waits, reads, " +
  "thinks and speaks, and what it hands on.";

export class Timeline {
  #place;
  #run = null;
  #rows = new Map(); // agent -> {row, state, track}; they stay, so that readers keep their place
  #axis = element("div", { class: "axis", "aria-hidden": "true" });

  constructor(place) {
    this.#place = place;
    this.#place.replaceChildren(element("p", { class: "empty" }, NOTHING));
  }

  /** Draw `run`, as far as it is at `now`, in milliseconds of its own clock. */
  show(run, now) {
    if (run !== this.#run) this.#begin(run);
    const scale = roundUp(Math.max(run.hasEnded ? run.lastAt : now, MIN_SCALE_MS));
    for (const agent of run.agents.values()) this.#update(agent, scale, now);
    this.#axis.replaceChildren(element("div", {}, ticksOf(scale)));
  }

  #begin(run) {
    this.#run = run;
    this.#rows = new Map([...run.agents.keys()].map((name) => [name, emptyRow(name)]));
    const rows = [...this.#rows.values()].map(({ row }) => row);
    this.#place.replaceChildren(element("ol", { class: "rows" }, rows), this.#axis);
  }

  #update(agent, scale, now) {
    const { row, state, track } = this.#rows.get(agent.name);
    row.dataset.state = agent.state;
    const text = stateText(agent, this.#run);
    if (state.textContent !== text) state.textContent = text;
    track.replaceChildren(
      ...agent.spans.map((span) => barOf(span, scale, now)),
      ...agent.thoughts.map(({ at }) => placed(element("i", { class: "tick" }), at / scale)),
    );
  }
}

function emptyRow(name) {
  const state = element("span", { class: "row-state" });
  const track = element("span", { class: "track", "aria-hidden": "true" });
  const label = element("span", { class: "row-name", title: name }, name);
  return { row: element("li", { class: "row", "data-agent": name }, label, state, track), state, track };
}

function barOf({ phase, from, to }, scale, now) {
  const end = to ?? Math.max(now, from);
  const bar = element("i", {
    class: `bar phase-${phase}`,
    "data-phase": phase,
    title: `${phase}: ${duration(end - from)}`,
  });
  bar.style.width = `${(100 * (end - from)) / scale}%`;
  return placed(bar, from / scale);
}

function ticksOf(scale) {
  return Array.from({ length: NUM_TICKS + 1 }, (_, i) => {
    const share = i / NUM_TICKS;
    return placed(element("span", {}, i === 0 ? "0" : duration(share * scale)), share);
  });
}

function placed(drawn, share) {
  drawn.style.left = `${100 * share}%`;
  return drawn;
}

function stateText(agent, run) {
  if (agent.state === "failed") return `failed: ${agent.reason}`;
  const parts = agent.trace === null ? [agent.state] : []; // whoever has a trace is done
  if (agent.numSteps > 0) parts.push(counted(agent.numSteps, "step"));
  if (agent.trace?.completion_tokens > 0) {
    parts.push(counted(agent.trace.completion_tokens, "token"));
  }
  if (agent.trace !== null) parts.push(duration(agent.trace.latency_ms));
  const handed = run.bytesFrom(agent.name);
  if (handed > 0) parts.push(`${bytes(handed)} handed on`);
  return parts.join(" · ");
}

const HEADS = [
  "Agent",
  "Group",
  "Adapter",
  "Prompt tokens",
  "Latent steps",
  "Written tokens",
  "Queued",
  "Prefill",
  "Thinking",
  "Speaking",
  "Handed on",
];

/** The same and more in numbers, for whoever does not see the bars. */
export function showAgentTable(place, run) {
  const done = [...run.agents.values()].filter(({ trace }) => trace !== null);
  if (done.length === 0) {
    place.replaceChildren();
    return;
  }
  const isOpen = place.querySelector("details")?.open ?? false;
  const rows = done.map(({ name, group, trace }) => [
    name,
    group,
    trace.adapter,
    count(trace.prompt_tokens),
    count(trace.latent_steps),
    count(trace.completion_tokens),
    duration(trace.phases.queued_ms),
    duration(trace.phases.prefill_ms),
    duration(trace.phases.thinking_ms),
    duration(trace.phases.speaking_ms),
    bytes(run.bytesFrom(name)),
  ]);
  place.replaceChildren(
    element(
      "details",
      { open: isOpen },
      element("summary", {}, "In numbers"),
      table("What each agent did", HEADS, rows),
    ),
  );
}
