// Shows what agents thought, as the lens sees it, and what they wrote to each other.

import { element } from "./dom.js";
import { counted, percent, visible } from "./units.js";

const NOTHING = "Ask with the lens on, in latent mode, and each step appears here as it happens.";

export class Thoughts {
  #place;
  #panels = new Map(); // agent -> {details, summary, steps, numShown, text}

  constructor(place) {
    this.#place = place;
    this.clear();
  }

  clear() {
    this.#panels.clear();
    this.#place.replaceChildren(element("p", { class: "empty" }, NOTHING));
  }

  /** Add what is new in `run`; what is there already stays as it is, open or closed. */
  show(run) {
    for (const agent of run.agents.values()) {
      const wrote = agent.name === run.pipeline.speaker ? "" : agent.trace?.text ?? "";
      if (agent.thoughts.length === 0 && wrote === "") continue;
      const panel = this.#panelOf(agent.name);
      this.#addSteps(panel, agent.thoughts);
      panel.text.textContent = wrote;
      panel.told.textContent = told(agent.thoughts.length, wrote);
    }
  }

  #panelOf(name) {
    const known = this.#panels.get(name);
    if (known !== undefined) return known;
    if (this.#panels.size === 0) this.#place.replaceChildren();
    const panel = {
      numShown: 0,
      told: element("span", { class: "hint" }),
      steps: element("ol", { class: "steps" }),
      text: element("p", { class: "said" }),
    };
    const details = element(
      "details",
      { class: "thought", "data-agent": name, open: this.#panels.size === 0 },
      element("summary", {}, element("strong", {}, name), " ", panel.told),
      panel.steps,
      panel.text,
    );
    this.#panels.set(name, panel);
    this.#place.append(details);
    return panel;
  }

  #addSteps(panel, thoughts) {
    if (thoughts.length < panel.numShown) { // its stage began anew
      panel.steps.replaceChildren();
      panel.numShown = 0;
    }
    panel.steps.append(...thoughts.slice(panel.numShown).map(({ step }) => stepOf(step)));
    panel.numShown = thoughts.length;
  }
}

function told(numSteps, wrote) {
  const parts = [];
  if (numSteps > 0) parts.push(counted(numSteps, "latent step"));
  if (wrote !== "") parts.push("and what it wrote");
  return parts.join(" ").replace(/^and /, "");
}

function stepOf({ index, norm, tokens }) {
  return element(
    "li",
    { class: "step" },
    element(
      "span",
      { class: "step-head" },
      element("b", {}, `${index + 1}`),
      element("span", { class: "hint" }, norm === null ? "overflow" : `norm ${norm.toFixed(1)}`),
    ),
    element("ol", { class: "tokens" }, tokens.map(tokenOf)),
  );
}

function tokenOf({ text, probability }) {
  const share = element("i", { class: "share", "aria-hidden": "true" });
  share.style.width = `${100 * probability}%`;
  return element(
    "li",
    { class: "token" },
    element("bdi", {}, visible(text)),
    " ",
    element("span", { class: "hint" }, percent(probability)),
    share,
  );
}
