"""What a run came to, as OpenAI's clients read it."""

import json
import time
import uuid
from typing import Literal

from deployments.api.openai.schema import (
    AnswerCall,
    AnswerMessage,
    CalledFunction,
    ChatCompletion,
    ChatUsage,
    Choice,
    Logprobs,
    RunTrace,
)
from deployments.api.openai.to_request import Asked
from latentmas_core.agents.tool_calls import Spoken, parse_tool_calls
from latentmas_core.chat import ToolCall
from latentmas_core.result import Result

FinishReason = Literal["stop", "length", "tool_calls"]


def completion_of(result: Result, asked: Asked) -> ChatCompletion:
    """A result in the shape of a completion, with the run itself under ``latentmas``."""
    spoken = spoken_in(result, asked)
    calls = [answer_call(call) for call in spoken.calls]
    message = AnswerMessage(content=spoken.content or None if calls else spoken.content)
    if calls:
        message = message.model_copy(update={"tool_calls": calls})
    logprobs = result.agents[-1].logprobs if asked.has_logprobs else None
    return ChatCompletion(
        id=new_id(),
        created=int(time.time()),
        model=asked.model,
        choices=[
            Choice(
                message=message,
                logprobs=None if logprobs is None else Logprobs(content=logprobs),
                finish_reason=finish_reason_of(result, spoken),
            )
        ],
        usage=usage_of(result),
        latentmas=trace_of(result),
    )


def spoken_in(result: Result, asked: Asked) -> Spoken:
    """Text and calls apart, where tools were offered."""
    if not asked.tools:
        return Spoken(result.final_answer)
    spoken = parse_tool_calls(result.final_answer, asked.tools)
    return spoken._replace(calls=spoken.calls[:1]) if asked.has_one_call else spoken


def finish_reason_of(result: Result, spoken: Spoken) -> FinishReason:
    """Calls of tools win over the length."""
    if spoken.calls:
        return "tool_calls"
    return "length" if result.finish_reason == "length" else "stop"


def answer_call(call: ToolCall) -> AnswerCall:
    """A call that the model wrote, with an id of its own."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return AnswerCall(
        id=f"call_{uuid.uuid4().hex}",
        function=CalledFunction(name=call.name, arguments=arguments),
    )


def usage_of(result: Result) -> ChatUsage:
    """Of all agents; latent steps are no tokens."""
    usage = result.usage
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def trace_of(result: Result) -> RunTrace:
    """The tokens' log-probabilities stand with the answer, not once more with its agent."""
    return RunTrace(
        pipeline=result.pipeline,
        mode=result.mode,
        latent_steps=result.usage.latent_steps,
        agents=tuple(agent.model_copy(update={"logprobs": None}) for agent in result.agents),
        failed_agents=result.failed_agents,
        transfer=result.transfer,
        latency_ms=result.latency_ms,
        routing=result.routing,
    )


def new_id() -> str:
    """Of a completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"
