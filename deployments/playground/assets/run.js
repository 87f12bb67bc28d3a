// One run as its events tell it: who is at what since when. Draws nothing, asks nothing.

export const PHASES = ["queued", "prefill", "thinking", "speaking"];
export const ENDED = new Set(["done", "failed", "stopped"]);

class Agent {
  constructor(name, group) {
    this.name = name;
    this.group = group;
    this.clear();
  }

  /** As if it had not begun: a stage that is tried again starts anew. */
  clear() {
    this.state = "waiting";
    this.spans = []; // {phase, from, to}; the last one is open while `to` is null
    this.numSteps = 0;
    this.thoughts = []; // {at, step}
    this.trace = null;
    this.reason = null;
  }

  enter(phase, at) {
    this.close(at);
    this.spans.push({ phase, from: at, to: null });
    this.state = phase;
  }

  close(at) {
    const last = this.spans.at(-1);
    if (last !== undefined && last.to === null) last.to = at;
  }
}

export class Run {
  /** `pipeline` as `GET /v1/pipelines` has it. In mode single only its speaker takes part. */
  constructor(pipeline, mode) {
    this.pipeline = pipeline;
    this.mode = mode;
    this.answer = "";
    this.result = null;
    this.problem = null; // a message, once it ended badly
    this.lastAt = 0;
    this.agents = new Map();
    this.stages = new Map(); // name -> {agents, startedAt, attempt, trace}
    const groupOf = groupsOf(pipeline);
    for (const { name } of pipeline.nodes) {
      if (mode !== "single" || name === pipeline.speaker) {
        this.agents.set(name, new Agent(name, groupOf.get(name) ?? ""));
      }
    }
  }

  get hasEnded() {
    return this.result !== null || this.problem !== null;
  }

  apply({ name, content }) {
    const at = content.at_ms;
    this.lastAt = Math.max(this.lastAt, at);
    switch (name) {
      case "stage.started":
        this.#startStage(content, at);
        break;
      case "stage.finished":
        this.#finishStage(content, at);
        break;
      case "stage.retried":
        this.#clearStage(content);
        break;
      case "stage.failed":
        this.#failStage(content, at);
        break;
      case "agent.started":
        this.#startAgent(content, at);
        break;
      case "agent.phase":
        this.agents.get(content.agent)?.enter(content.phase, at);
        break;
      case "agent.thought":
        this.#addThought(content, at);
        break;
      case "agent.finished":
        this.#finishAgent(content, at);
        break;
      case "answer.delta":
        this.answer += content.text;
        break;
      case "answer.done":
        this.result = content;
        this.answer = content.final_answer;
        break;
    }
  }

  /** It ended without an answer. */
  stop(message) {
    this.problem = message;
    for (const agent of this.agents.values()) {
      agent.close(this.lastAt);
      if (!ENDED.has(agent.state)) agent.state = "stopped";
    }
  }

  /** Bytes of memory that `agent` hands to another group, once that is known. */
  bytesFrom(agent) {
    for (const { agents, trace } of this.stages.values()) {
      if (agents.at(-1) === agent) return trace?.bytes_out ?? 0;
    }
    return 0;
  }

  #startStage({ stage, agents, attempt }, at) {
    this.stages.set(stage, { agents, attempt, startedAt: at, trace: null });
  }

  /** Between the last agent's end and now its memory was packed and put where others fetch it. */
  #finishStage({ stage, trace }, at) {
    const known = this.stages.get(stage);
    if (known === undefined) return;
    known.trace = trace;
    const last = this.agents.get(known.agents.at(-1));
    const endedAt = last?.spans.at(-1)?.to;
    if (trace.bytes_out > 0 && Number.isFinite(endedAt)) {
      last.spans.push({ phase: "handoff", from: endedAt, to: at });
    }
  }

  #clearStage({ stage }) {
    for (const name of this.stages.get(stage)?.agents ?? []) this.agents.get(name)?.clear();
  }

  #failStage({ agents, reason }, at) {
    for (const name of agents) {
      const agent = this.agents.get(name);
      if (agent === undefined) continue;
      agent.close(at);
      agent.state = "failed";
      agent.reason = reason;
    }
  }

  /** Between the stage's start and its first agent's the memory of others was fetched. */
  #startAgent({ agent: name, stage }, at) {
    const agent = this.agents.get(name);
    if (agent === undefined) return;
    const known = this.stages.get(stage);
    if (known?.agents[0] === name && this.#bytesInto(stage) > 0) {
      agent.spans.push({ phase: "handoff", from: known.startedAt, to: at });
    }
    agent.enter("queued", at);
  }

  #bytesInto(stage) {
    const parents = this.pipeline.stages.find(({ name }) => name === stage)?.parents ?? [];
    return parents.reduce((sum, name) => sum + (this.stages.get(name)?.trace?.bytes_out ?? 0), 0);
  }

  #addThought({ agent: name, latent_steps: numSteps, lens }, at) {
    const agent = this.agents.get(name);
    if (agent === undefined) return;
    agent.numSteps = numSteps;
    if (lens !== undefined) agent.thoughts.push({ at, step: lens });
  }

  #finishAgent({ agent: name, trace }, at) {
    const agent = this.agents.get(name);
    if (agent === undefined) return;
    agent.close(at);
    agent.state = "done";
    agent.trace = trace;
    agent.numSteps = trace.latent_steps;
  }
}

function groupsOf(pipeline) {
  return new Map(pipeline.stages.flatMap(({ group, nodes }) => nodes.map((name) => [name, group])));
}
