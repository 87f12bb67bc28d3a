// The form for the key of this tab.

import { byId } from "./dom.js";
import { currentKey, forgetKey, useKey } from "./key.js";
import { showError } from "./notices.js";

export class KeyForm {
  /** `changed` is called with each new key, and when it is forgotten. */
  constructor(changed) {
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const input = byId("key");
      if (!useKey(input.value.trim())) {
        showError(new Error("This can be no key: keys are letters, digits and signs, no blanks."));
        return;
      }
      input.value = "";
      this.#tell();
      changed();
    });
    byId("forget-key").addEventListener("click", () => {
      forgetKey();
      this.#tell();
      changed();
    });
    this.#tell();
  }

  /** The service wants one, or another. */
  ask() {
    byId("key-details").open = true;
    byId("key").focus();
  }

  #tell() {
    byId("key-state").textContent = currentKey() === null ? "none in use" : "in use";
  }
}
