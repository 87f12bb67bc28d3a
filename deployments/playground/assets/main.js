// The page: ties form, calls and views together. A run at a time, or one after the other.

import { showAnswer, showNoAnswer } from "./answer.js";
import { read, reason, ServiceError } from "./api.js";
import { AskForm, FieldError } from "./ask_form.js";
import { Comparison } from "./comparison.js";
import { byId } from "./dom.js";
import { Graph } from "./graph.js";
import { KeyForm } from "./key_form.js";
import { clearError, showError, showStatus } from "./notices.js";
import { PHASES, Run } from "./run.js";
import { ServicePanel } from "./service_panel.js";
import { showAgentTable, Timeline } from "./timeline.js";
import { Thoughts } from "./thoughts.js";

const MODES = ["latent", "text", "single"];
const REDRAW_MS = 100;
const CANCELLED = "Cancelled.";

let running = null; // the AbortController of what is under way

const graph = new Graph(byId("graph"));
const timeline = new Timeline(byId("timeline"));
const thoughts = new Thoughts(byId("thoughts"));
const comparison = new Comparison();
const service = new ServicePanel();
const keyForm = new KeyForm(() => void start());
const form = new AskForm({
  ask: () => void whileRunning(() => askOnce()),
  compare: () => void whileRunning(() => askInAllModes()),
  cancel: () => running?.abort(),
  choose: (pipeline) => running === null && showPipeline(pipeline),
});

/** Look at what can be asked for; with a new key, once more. */
async function start() {
  clearError();
  try {
    const { data } = await read("v1/pipelines");
    showPipeline(form.offer(data));
    showStatus("Ready.");
    await service.look();
  } catch (error) {
    tell(error);
  }
}

function showPipeline(pipeline) {
  if (pipeline !== null) graph.show(pipeline);
}

async function whileRunning(work) {
  if (running !== null) return;
  running = new AbortController();
  form.isRunning = true;
  clearError();
  try {
    await work();
  } catch (error) {
    if (running.signal.aborted) showStatus(CANCELLED);
    else tell(error);
  } finally {
    running = null;
    form.isRunning = false;
  }
}

async function askOnce() {
  const { pipeline, body } = form.request();
  await ask(pipeline, body, () => undefined);
}

async function askInAllModes() {
  const { pipeline, body } = form.request();
  comparison.begin(MODES);
  try {
    for (const mode of MODES) {
      await ask(pipeline, { ...body, mode }, (run) => comparison.show(mode, run));
    }
    showStatus("All three modes have answered.");
  } finally {
    comparison.end();
  }
}

/** Run one request and draw it as it goes on; `seen` is called with the run at each change. */
async function ask(pipeline, body, seen) {
  const run = new Run(pipeline, body.mode);
  const view = new RunView(run, seen);
  thoughts.clear();
  showNoAnswer();
  view.begin();
  bringIntoSight(byId("results"));
  try {
    for await (const event of reason(body, running.signal)) view.apply(event);
  } catch (error) {
    run.stop(running.signal.aborted ? CANCELLED : error.message);
    throw error;
  } finally {
    view.end();
  }
}

/** Draws a run: what changed with each event, and the time line as time goes by. */
class RunView {
  #run;
  #seen;
  #heardAt = performance.now(); // when the last event came, by the clock of this machine
  #timer = null;
  #isDue = false;

  constructor(run, seen) {
    this.#run = run;
    this.#seen = seen;
  }

  begin() {
    this.#timer = setInterval(() => timeline.show(this.#run, this.#now), REDRAW_MS);
    this.#draw();
  }

  apply(event) {
    this.#run.apply(event);
    this.#heardAt = performance.now();
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => this.#isDue && this.#draw());
  }

  end() {
    clearInterval(this.#timer);
    this.#draw();
  }

  get #now() {
    return this.#run.lastAt + performance.now() - this.#heardAt;
  }

  #draw() {
    this.#isDue = false;
    const run = this.#run;
    graph.show(run.pipeline, run);
    timeline.show(run, this.#now);
    showAgentTable(byId("agent-table"), run);
    showAnswer(run);
    thoughts.show(run);
    showStatus(statusOf(run));
    this.#seen(run);
  }
}

/** On a phone the results are below the form. */
function bringIntoSight(place) {
  if (place.getBoundingClientRect().top > innerHeight / 2) place.scrollIntoView();
}

function statusOf(run) {
  if (run.problem !== null) return run.problem === CANCELLED ? CANCELLED : "Failed.";
  if (run.result !== null) return "Answered.";
  const busy = [...run.agents.values()].filter(({ state }) => PHASES.includes(state));
  if (busy.length === 0) return "Asked; nobody has begun.";
  return `${busy.map(({ name, state }) => `${name}: ${state}`).join(", ")}.`;
}

function tell(error) {
  showError(error);
  form.markWrong(error.param ?? null);
  if (error.status === 401) keyForm.ask();
  if (!(error instanceof ServiceError || error instanceof FieldError)) throw error; // a bug of ours
}

byId("refresh").addEventListener("click", () => void (form.isOffering ? service.look() : start()));
showNoAnswer();
void start();
