"""The text mode of a multi-agent system, one request at a time: agents hand on what they wrote.

Knows nothing of latent memory: every agent's prompt is prefilled on its own.
"""

from collections.abc import Callable

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

PromptBuilder = Callable[[int, list[str]], list[int]]  # (agent index, texts so far) -> prompt ids


def run_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    build_prompt: PromptBuilder,
    *,
    num_agents: int,
    max_tokens: int,
    eos_token_ids: frozenset[int] = frozenset(),
) -> list[list[int]]:
    """The token ids that each agent wrote, in order; the last list is the answer."""
    texts: list[str] = []
    answers: list[list[int]] = []
    for agent_index in range(num_agents):
        prompt_ids = build_prompt(agent_index, texts)
        answers.append(
            decode_greedily(model, prompt_ids, max_tokens=max_tokens, eos_token_ids=eos_token_ids)
        )
        texts.append(tokenizer.decode(answers[-1], skip_special_tokens=True))
    return answers


@torch.inference_mode()
def decode_greedily(
    model: PreTrainedModel,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    eos_token_ids: frozenset[int] = frozenset(),
) -> list[int]:
    """Greedy answer, without its end token; exactly max_tokens ids if no id ends it."""
    cache = DynamicCache(config=model.config)
    feed_ids = prompt_ids
    answer_ids: list[int] = []
    while len(answer_ids) < max_tokens:
        input_ids = torch.tensor([feed_ids], device=model.device)  # [1, num_rows]
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token_id = int(output.logits[0, -1].argmax())
        if token_id in eos_token_ids:
            break
        answer_ids.append(token_id)
        feed_ids = [token_id]
    return answer_ids
