// What a person is told: the one place for errors, and what is going on.

import { byId, element } from "./dom.js";

const MAY_RETRY = new Set([429, 503]);
const TIME = new Intl.DateTimeFormat("en", { timeStyle: "medium", hourCycle: "h23" });

/** Say what went wrong, and when to try again where the service told that. */
export function showError(error, now = Date.now()) {
  byId("alert").replaceChildren(
    element("p", {}, error.message),
    ...retryHint(error, now).map((text) => element("p", { class: "hint" }, text)),
  );
}

export function clearError() {
  byId("alert").replaceChildren();
}

export function showStatus(text) {
  const status = byId("status");
  if (status.textContent !== text) status.textContent = text;
}

/** In words, not as a countdown: it is read aloud. */
export function retryHint({ status, retryAfterS }, now) {
  if (!MAY_RETRY.has(status)) return [];
  if (retryAfterS === null) return ["Try again in a while."];
  const seconds = Math.ceil(retryAfterS);
  const at = TIME.format(now + 1000 * seconds);
  return [`Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}, at ${at}.`];
}
