// Calls of the service, with the key of this tab; every error in one shape.

import { currentKey } from "./key.js";
import { readEvents } from "./sse.js";

/** What the service refused, or why it did not answer. `status` is null if it did not. */
export class ServiceError extends Error {
  constructor(message, { status = null, param = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "ServiceError";
    this.status = status;
    this.param = param;
    this.retryAfterS = retryAfterS;
  }
}

/** The JSON of a call that reads. */
export async function read(path) {
  return (await call(path)).json();
}

/** Ask a question: yields its events. The last one is `answer.done`, or a ServiceError is thrown.
 * What it is read from is read to its end: else the service would take it that nobody listens. */
export async function* reason(body, signal) {
  const response = await call("v1/reason", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  let last = null;
  for await (const event of eventsOf(response, signal)) {
    last = event;
    if (event.name !== "error") yield event;
  }
  if (last?.name === "answer.done") return;
  if (last?.name !== "error") {
    throw new ServiceError("The connection ended before the answer did. Ask again.");
  }
  const { message, param } = last.content.error;
  throw new ServiceError(message, { status: response.status, param });
}

async function* eventsOf(response, signal) {
  try {
    yield* readEvents(response.body);
  } catch (error) {
    if (signal.aborted || error instanceof ServiceError) throw error;
    throw new ServiceError("The connection broke before the answer was complete. Ask again.");
  }
}

async function call(path, options = {}) {
  const key = currentKey();
  const headers = { ...options.headers, ...(key === null ? {} : { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServiceError("The service cannot be reached. See whether it is running.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const retryAfter = Number.parseFloat(response.headers.get("retry-after") ?? "");
  const { message, param } = described(await response.text().catch(() => ""));
  return new ServiceError(message || `The service answered with status ${response.status}.`, {
    status: response.status,
    param,
    retryAfterS: Number.isFinite(retryAfter) ? retryAfter : null,
  });
}

/** What stands in front of the service answers in plain text. */
function described(text) {
  try {
    const { message, param } = JSON.parse(text).error;
    return { message, param };
  } catch {
    return { message: text.trim().slice(0, 300), param: null };
  }
}
