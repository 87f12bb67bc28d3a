// What the service holds: groups, replicas and their load, and adapters. Refreshed now and then.

import { read } from "./api.js";
import { byId, element } from "./dom.js";
import { retryHint } from "./notices.js";
import { bytes, count, counted, percent } from "./units.js";

// Each look is two calls, which count against the key's limit per minute.
const PERIOD_MS = 15_000;

export class ServicePanel {
  #place = byId("service");
  #timer = null;
  #isLooking = false;
  #hasLooked = false;

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#hasLooked) this.look();
    });
  }

  /** Ask now, and again after a while; a hidden page asks nothing. */
  async look() {
    if (this.#isLooking) return;
    this.#isLooking = true;
    this.#hasLooked = true;
    clearTimeout(this.#timer);
    let waitMs = PERIOD_MS;
    try {
      const [stats, adapters] = await Promise.all([read("v1/stats"), read("v1/adapters")]);
      this.#place.replaceChildren(...loadOf(stats), ...adaptersOf(adapters));
    } catch (error) {
      this.#place.replaceChildren(...problem(error));
      waitMs = Math.max(waitMs, 1000 * (error.retryAfterS ?? 0));
    } finally {
      this.#isLooking = false;
    }
    this.#timer = setTimeout(() => document.hidden || this.look(), waitMs);
  }
}

function problem(error) {
  return [error.message, ...retryHint(error, Date.now())].map((text) =>
    element("p", { class: "hint" }, text),
  );
}

function loadOf({ groups, transfer }) {
  const listed = Object.entries(groups).map(([name, replicas]) => [
    element("h3", {}, name),
    replicas.length === 0
      ? element("p", { class: "hint" }, "no replica answers")
      : element("ul", { class: "replicas" }, replicas.map(replicaOf)),
  ]);
  const inStore = `${bytes(transfer.num_bytes)} of memory between groups, of ` +
    `${bytes(transfer.max_bytes)} at most`;
  return [...listed.flat(), element("p", { class: "hint" }, inStore)];
}

function replicaOf(replica) {
  const share = replica.num_blocks > 0 ? replica.num_used_blocks / replica.num_blocks : 0;
  const fill = element("i", {});
  fill.style.width = `${100 * share}%`;
  const load = `${count(replica.num_running)} running, ${count(replica.num_waiting)} waiting`;
  return element(
    "li",
    {},
    element("span", {}, load),
    element("span", { class: "hint" }, `${percent(share)} of the cache in use`),
    element("span", { class: "gauge", "aria-hidden": "true" }, fill),
  );
}

function adaptersOf({ data, registry }) {
  const fitting = registry.filter(({ compatible }) => compatible).length;
  const known = `${counted(registry.length, "adapter")} in the registry, ` +
    `${fitting === 0 ? "none fits" : `${count(fitting)} fit`} this base`;
  return [
    element("h3", {}, "Adapters"),
    data.length === 0
      ? element("p", {}, "none loaded")
      : element("ul", { class: "adapters" }, data.map(adapterOf)),
    element("p", { class: "hint" }, known),
  ];
}

function adapterOf({ name, rank, pinned, states }) {
  const where = Object.entries(states).map(([group, each]) => `${group}: ${each.join(", ")}`);
  const facts = [`rank ${rank}`, ...(pinned ? ["pinned"] : []), ...where];
  return element(
    "li",
    {},
    element("bdi", {}, name),
    element("span", { class: "hint" }, facts.join(" · ")),
  );
}
