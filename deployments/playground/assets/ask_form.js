// The form: what is asked, and how. Knows no calls; whoever uses it is handed plain requests.

import { byId, element } from "./dom.js";

const NUMBERS = ["latent_steps", "max_tokens", "temperature", "seed"];
const FIELDS = ["question", "pipeline", ...NUMBERS];
const EXAMPLES = [
  "What is the capital of France?",
  "Name three primary colors.",
  "Why is the sky blue?",
];

/** A field does not say what can be sent. `param` names it. */
export class FieldError extends Error {
  constructor(message, param) {
    super(message);
    this.name = "FieldError";
    this.param = param;
  }
}

export class AskForm {
  #form = byId("ask");
  #pipelines = new Map();

  /** `actions`: {ask, compare, cancel, choose}; `choose` gets the pipeline that is looked at. */
  constructor({ ask, compare, cancel, choose }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      ask();
    });
    byId("compare-button").addEventListener("click", compare);
    byId("cancel-button").addEventListener("click", cancel);
    byId("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit();
    });
    byId("pipeline").addEventListener("change", () => choose(this.#describeChosen()));
    byId("examples").append(...EXAMPLES.map((text) => exampleButton(text)));
  }

  /** `pipelines` as the service offers them; what was chosen stays, where it is still there. */
  offer(pipelines) {
    this.#pipelines = new Map(pipelines.map((pipeline) => [pipeline.name, pipeline]));
    const select = byId("pipeline");
    const wanted = this.#pipelines.has(select.value)
      ? select.value
      : (pipelines.find((one) => one.default) ?? pipelines[0])?.name;
    select.replaceChildren(
      ...pipelines.map(({ name }) => element("option", { value: name }, name)),
    );
    if (wanted !== undefined) select.value = wanted;
    return this.#describeChosen();
  }

  get isOffering() {
    return this.#pipelines.size > 0;
  }

  /** The chosen pipeline, and the body of `POST /v1/reason`. Throws FieldError. */
  request() {
    this.markWrong(null);
    const question = byId("question").value;
    if (question.trim() === "") throw new FieldError("The question is missing.", "question");
    const pipeline = this.#chosen;
    if (pipeline === null) {
      throw new FieldError("No pipeline is known yet: the service has not told them.", "pipeline");
    }
    const mode = new FormData(this.#form).get("mode");
    const body = { question, pipeline: pipeline.name, mode };
    for (const name of NUMBERS) {
      const number = numberIn(byId(name));
      if (number !== null) body[name] = number;
    }
    if (byId("lens").checked) body.trace = "lens";
    return { pipeline, body };
  }

  /** Show which field was refused, and go there; null for none. */
  markWrong(param) {
    for (const name of FIELDS) byId(name).removeAttribute("aria-invalid");
    if (!FIELDS.includes(param)) return;
    byId(param).setAttribute("aria-invalid", "true");
    byId(param).focus();
  }

  /** A button that is off stays where the keyboard is. */
  set isRunning(isRunning) {
    for (const id of ["ask-button", "compare-button"]) {
      byId(id).setAttribute("aria-disabled", String(isRunning));
    }
    const cancel = byId("cancel-button");
    if (!isRunning && cancel === document.activeElement) byId("ask-button").focus();
    cancel.hidden = !isRunning;
  }

  /** Null while none is known. */
  get #chosen() {
    return this.#pipelines.get(byId("pipeline").value) ?? null;
  }

  #describeChosen() {
    const pipeline = this.#chosen;
    byId("pipeline-hint").textContent = pipeline?.description ?? "";
    return pipeline;
  }
}

function numberIn(input) {
  if (input.validity.badInput) {
    throw new FieldError(`${labelOf(input)} is no number. Correct it or leave it empty.`, input.name);
  }
  if (input.value === "") return null;
  const number = input.valueAsNumber;
  if (Number.isInteger(number) && !Number.isSafeInteger(number)) {
    throw new FieldError(`${labelOf(input)} is larger than a browser can send exactly.`, input.name);
  }
  return number;
}

function labelOf(input) {
  return input.labels[0].textContent;
}

function exampleButton(text) {
  const button = element("button", { type: "button", class: "example" }, text);
  button.addEventListener("click", () => {
    byId("question").value = text;
    byId("question").focus();
  });
  return button;
}
