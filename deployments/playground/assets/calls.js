// The list of all calls out of the service's own description; each can be tried.

import { read, ServiceError } from "./api.js";
import { byId, element, table } from "./dom.js";
import { currentKey } from "./key.js";
import { KeyForm } from "./key_form.js";
import { clearError, showError, showStatus } from "./notices.js";
import { Schemas } from "./schema.js";
import { TrialForm } from "./trial_form.js";
import { counted } from "./units.js";

const JSON_TYPE = "application/json";
const FIELD_HEADS = ["Field", "Type", "Meaning"];
const ANSWER_HEADS = ["Status", "Type", "Meaning"];

async function start() {
  clearError();
  try {
    const description = await read("openapi.json");
    const calls = callsOf(description);
    byId("calls").replaceChildren(...calls);
    showStatus(`${counted(calls.length, "call")}.`);
  } catch (error) {
    showError(error);
    if (!(error instanceof ServiceError)) throw error; // a bug of ours
  }
}

function callsOf({ paths, components }) {
  const schemas = new Schemas(components.schemas);
  return Object.entries(paths).flatMap(([path, calls]) =>
    Object.entries(calls).map(([method, call]) =>
      drawCall({ path, method: method.toUpperCase(), ...call }, schemas, components.responses),
    ),
  );
}

function drawCall(call, schemas, namedAnswers) {
  const trial = new TrialForm(call, { key: currentKey, refused: () => keyForm.ask() });
  return element(
    "details",
    { class: "call panel", "data-call": nameOf(call) },
    element(
      "summary",
      {},
      element("span", { class: `method method-${call.method.toLowerCase()}` }, call.method),
      element("code", {}, call.path),
      element("span", { class: "hint" }, ...marked(call.description ?? "")),
    ),
    ...fieldsOf(call, schemas),
    ...answersOf(call, schemas, namedAnswers),
    trial.form,
  );
}

function fieldsOf(call, schemas) {
  const { requestBody, parameters = [] } = call;
  const body = requestBody?.content[JSON_TYPE];
  const rows = [
    ...parameters.map((one) => [one.name, schemas.typeOf(one.schema), `in the ${one.in}`]),
    ...(body === undefined ? [] : schemas.rowsOf(body.schema)),
  ];
  return rows.length === 0 ? [] : [table(`What ${nameOf(call)} takes`, FIELD_HEADS, rows)];
}

function answersOf(call, schemas, named) {
  const { responses } = call;
  const all = Object.entries(responses).map(([status, answer]) => [
    status,
    answer.$ref === undefined ? answer : named[answer.$ref.split("/").at(-1)],
  ]);
  const rows = all.map(([status, { description, content = {} }]) => [
    status,
    Object.keys(content).join(", "),
    plain(description),
  ]);
  const answered = responses["200"]?.content?.[JSON_TYPE]?.schema;
  const fields = answered === undefined ? [] : schemas.rowsOf(answered);
  return [
    table(`What ${nameOf(call)} answers`, ANSWER_HEADS, rows),
    ...(fields.length === 0 ? [] : [within("Fields of the answer", nameOf(call), fields)]),
  ];
}

function within(title, call, rows) {
  const fields = table(`${title} of ${call}`, FIELD_HEADS, rows);
  return element("details", {}, element("summary", {}, title), fields);
}

function nameOf({ method, path }) {
  return `${method} ${path}`;
}

/** Text with what stands between backticks as code. */
function marked(text) {
  return text.split(/`+/).map((part, i) => (i % 2 === 1 ? element("code", {}, part) : part));
}

function plain(text) {
  return text.replaceAll("`", "");
}

const keyForm = new KeyForm(clearError);
void start();
