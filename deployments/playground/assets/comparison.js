// The same question in several modes: the answers side by side, and what each of them took.

import { byId, element, table } from "./dom.js";
import { bytes, count, duration } from "./units.js";

const MEASURES = [
  { name: "Time", of: (result) => result.latency_ms, read: duration },
  { name: "Prompt tokens", of: ({ usage }) => usage.prompt_tokens, read: count },
  { name: "Latent steps", of: ({ usage }) => usage.latent_steps, read: count },
  { name: "Written tokens", of: ({ usage }) => usage.completion_tokens, read: count },
  { name: "Handed on", of: ({ transfer }) => transfer.bytes, read: bytes },
];
const CAPTION = "What each mode took";

export class Comparison {
  #columns = new Map(); // mode -> {card, state, answer}
  #results = new Map();

  begin(modes) {
    this.#results.clear();
    this.#columns = new Map(modes.map((mode) => [mode, columnOf(mode)]));
    const cards = [...this.#columns.values()].map(({ card }) => card);
    byId("comparison-answers").replaceChildren(...cards);
    byId("comparison-chart").replaceChildren();
    byId("comparison").hidden = false;
  }

  /** How far the run in `mode` is. */
  show(mode, run) {
    const { state, answer } = this.#columns.get(mode);
    state.textContent = stateOf(run);
    if (answer.textContent !== run.answer) answer.textContent = run.answer;
    if (run.result === null || this.#results.has(mode)) return;
    this.#results.set(mode, run.result);
    if (this.#results.size > 1) this.#draw();
  }

  /** The others will not come. */
  end() {
    for (const { state } of this.#columns.values()) {
      if (state.textContent === WAITING) state.textContent = "not asked";
    }
  }

  #draw() {
    const modes = [...this.#results.keys()];
    const heads = ["Measure", ...modes];
    const rows = MEASURES.map(({ name, of, read }) => [
      name,
      ...modes.map((mode) => read(of(this.#results.get(mode)))),
    ]);
    byId("comparison-chart").replaceChildren(chart(this.#results), table(CAPTION, heads, rows));
  }
}

const WAITING = "waiting";

function columnOf(mode) {
  const state = element("p", { class: "hint" }, WAITING);
  const answer = element("p", { class: "answer" });
  const heading = element("h3", {}, mode);
  return { card: element("article", { "data-mode": mode }, heading, state, answer), state, answer };
}

function stateOf(run) {
  if (run.problem !== null) return run.problem;
  return run.result === null ? "running" : duration(run.result.latency_ms);
}

/** Bars per measure, each measure by its own largest; the table beside it says the same. */
function chart(results) {
  return element(
    "figure",
    { class: "chart", role: "img", "aria-label": spoken(results) },
    MEASURES.map((measure) => barsOf(measure, results)),
  );
}

function barsOf({ name, of, read }, results) {
  const largest = Math.max(...[...results.values()].map(of));
  const bars = [...results].map(([mode, result]) => {
    const bar = element("i", { class: `mode-bar mode-${mode}` });
    bar.style.width = `${largest > 0 ? (100 * of(result)) / largest : 0}%`;
    return element(
      "div",
      { class: "chart-row" },
      element("span", {}, mode),
      element("span", { class: "chart-track" }, bar),
      element("span", { class: "number" }, read(of(result))),
    );
  });
  return element("div", { class: "chart-group" }, element("b", {}, name), bars);
}

function spoken(results) {
  const parts = [...results].map(([mode, result]) => {
    const values = MEASURES.map(({ name, of, read }) => `${name} ${read(of(result))}`);
    return `${mode}: ${values.join(", ")}`;
  });
  return `${CAPTION}. ${parts.join(". ")}.`;
}
