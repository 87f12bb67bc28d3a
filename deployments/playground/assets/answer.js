// The answer as it comes, and what it took.

import { byId, element } from "./dom.js";
import { bytes, count, counted, duration } from "./units.js";

const NOTHING = "The answer appears here as it is spoken.";
const NOT_YET = "Nobody has spoken yet.";
const EMPTY = "The answer is empty.";

export function showNoAnswer() {
  byId("answer").replaceChildren(element("p", { class: "empty" }, NOTHING));
  byId("totals").replaceChildren();
}

/** Busy while it grows: it is read aloud when it is complete. */
export function showAnswer(run) {
  const place = byId("answer");
  place.setAttribute("aria-busy", String(!run.hasEnded));
  if (run.answer !== "") {
    if (place.textContent !== run.answer) place.textContent = run.answer;
  } else if (!run.hasEnded || run.result !== null) {
    place.replaceChildren(element("p", { class: "empty" }, run.hasEnded ? EMPTY : NOT_YET));
  } else place.replaceChildren();
  byId("totals").replaceChildren(...(run.result === null ? [] : totals(run.result)));
}

function totals({ latency_ms, usage, transfer, failed_agents, finish_reason }) {
  const entries = [
    ["time", duration(latency_ms)],
    ["prompt tokens", count(usage.prompt_tokens)],
    ["latent steps", count(usage.latent_steps)],
    ["written tokens", count(usage.completion_tokens)],
    ["handed on", `${bytes(transfer.bytes)}, ${counted(transfer.hops, "hop")}`],
  ];
  if (finish_reason !== "stop") entries.push(["ended by", finish_reason]);
  if (failed_agents.length > 0) entries.push(["without", failed_agents.join(", ")]);
  return entries.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
}
