// A form that sends one call as it is, and shows what comes back as it comes.

import { element } from "./dom.js";
import { duration } from "./units.js";

const JSON_TYPE = "application/json";

export class TrialForm {
  #call;
  #asking;
  #fields = new Map(); // names in the path or the query -> inputs
  #body = null;
  #button = element("button", { type: "submit", class: "primary" }, "Send");
  #told = element("p", { class: "hint", role: "status" });
  #answer = element("pre", { class: "scroller sent", role: "region", tabindex: "0", hidden: true });
  #sending = null; // the AbortController of what is under way

  /** `call`: path, method, and what OpenAPI says of it. `asking.key()` is the key or null;
   * `asking.refused()` is called where the service wants another. */
  constructor(call, asking) {
    this.#call = call;
    this.#asking = asking;
    this.form = element(
      "form",
      { class: "trial", "aria-label": `Try ${call.method} ${call.path}`, novalidate: true },
      ...(call.parameters ?? []).map(({ name }) => this.#fieldOf(name)),
      ...this.#bodyParts(),
      element("div", { class: "buttons" }, this.#button),
      this.#told,
      this.#answer,
    );
    this.#answer.setAttribute("aria-label", `Answer of ${call.method} ${call.path}`);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#sending === null) void this.#send();
      else this.#sending.abort();
    });
  }

  #fieldOf(name) {
    const id = `${this.#call.operationId}-${name}`;
    const input = element("input", { id, type: "text", autocomplete: "off" });
    this.#fields.set(name, input);
    return element("div", { class: "field" }, element("label", { for: id }, name), input);
  }

  #bodyParts() {
    const body = this.#call.requestBody?.content[JSON_TYPE];
    if (body === undefined) return [];
    const id = `${this.#call.operationId}-body`;
    const examples = Object.entries(body.examples ?? { empty: { value: {} } });
    this.#body = element("textarea", { id, rows: "8", spellcheck: "false" });
    this.#show(examples[0][1].value);
    const choices = element(
      "div",
      { class: "examples", role: "group", "aria-label": "Examples" },
      examples.map(([name, { value }]) => this.#exampleButton(name, value)),
    );
    const field = element("div", { class: "field" }, element("label", { for: id }, "Body"), this.#body);
    return examples.length > 1 ? [field, choices] : [field];
  }

  #exampleButton(name, value) {
    const button = element("button", { type: "button", class: "example" }, name);
    button.addEventListener("click", () => this.#show(value));
    return button;
  }

  #show(value) {
    this.#body.value = JSON.stringify(value, null, 2);
  }

  async #send() {
    this.#sending = new AbortController();
    this.#button.textContent = "Stop";
    this.#told.textContent = "Sent.";
    this.#answer.hidden = true;
    this.#answer.textContent = "";
    const beganAt = performance.now();
    const tell = (text) => {
      this.#told.textContent = `${text}, ${duration(performance.now() - beganAt)}.`;
    };
    try {
      const response = await fetch(this.#address, this.#options(this.#sending.signal));
      await this.#read(response);
      tell(`${response.status} ${response.statusText}`.trim());
      if (response.status === 401) this.#asking.refused();
    } catch {
      tell(this.#sending.signal.aborted ? "Stopped" : "The service cannot be reached");
    } finally {
      this.#sending = null;
      this.#button.textContent = "Send";
    }
  }

  get #address() {
    const path = this.#call.path.replace(/\{(\w+)\}/g, (_, name) =>
      encodeURIComponent(this.#fields.get(name).value),
    );
    const asked = (this.#call.parameters ?? [])
      .filter((parameter) => parameter.in === "query")
      .map(({ name }) => [name, this.#fields.get(name).value])
      .filter(([, value]) => value !== "");
    const query = asked.length > 0 ? `?${new URLSearchParams(asked)}` : "";
    return path.slice(1) + query; // relative, so that it goes below whatever prefix there is
  }

  #options(signal) {
    const key = this.#asking.key();
    const headers = key === null ? {} : { authorization: `Bearer ${key}` };
    if (this.#body === null) return { method: this.#call.method, headers, signal };
    headers["content-type"] = JSON_TYPE;
    return { method: this.#call.method, headers, body: this.#body.value, signal };
  }

  async #read(response) {
    this.#answer.hidden = false;
    if ((response.headers.get("content-type") ?? "").startsWith(JSON_TYPE)) {
      this.#answer.textContent = indented(await response.text());
      return;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      this.#answer.append(part.value);
    }
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
