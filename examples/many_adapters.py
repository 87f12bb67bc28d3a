"""Many LoRA adapters in one batch: the same question, each time with another adapter.

    python examples/many_adapters.py --adapters 8

The adapters are random, made with PEFT in a temporary folder: they show that every row is computed
with its own, not that answers get better.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from latentmas_core import LatentMASSystem
from latentmas_core.engine.embedded_model import prepare_embedded_model
from latentmas_core.engine.quiet import quiet_transformers
from latentmas_core.result import Result

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the embedded model is on the hub
RANKS = (4, 8, 16)
STD = 0.08  # of the random weights: enough to change the words, too little to garble them
CHAIN = ("planner", "judger")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--question", default="Describe a sunrise.")
    parser.add_argument("--latent-steps", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=24)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LatentMASSystem() as system:
        system.add_default_agents()
        folders = make_adapters(Path(folder), args.adapters)
        for path in folders:
            system.load_external_lora(path.name, str(path))

        def ask(adapter: str) -> Awaitable[Result]:
            return system.arun(
                args.question,
                pipeline=CHAIN,
                adapters=dict.fromkeys(CHAIN, adapter),
                temperature=0.0,
                latent_steps=args.latent_steps,
                max_tokens=args.max_tokens,
                ignore_eos=True,  # rows of one length, so that the times can be compared
            )

        asyncio.run(compare([*(path.name for path in folders), "base"], ask))


def make_adapters(folder: Path, count: int) -> list[Path]:
    """Random ones for the embedded model, of the ranks in turn."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(prepare_embedded_model())
    torch.manual_seed(0)
    paths = []
    for number in range(count):
        rank = RANKS[number % len(RANKS)]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=STD)
        adapted.peft_config["default"].base_model_name_or_path = BASE_NAME
        paths.append(folder / f"adapter{number}_rank{rank}")
        # Whether the vocabulary was changed it would ask the hub.
        adapted.save_pretrained(paths[-1], save_embedding_layers=False)
        model = adapted.unload()
    return paths


async def compare(adapters: list[str], ask: Callable[[str], Awaitable[Result]]) -> None:
    """Ask with one after the other, then with all of them at the same time."""
    for name in adapters:
        await ask(name)  # now all adapters are on the device
    began_at = time.perf_counter()
    alone = [await ask(name) for name in adapters]
    alone_s = time.perf_counter() - began_at
    began_at = time.perf_counter()
    together = await asyncio.gather(*(ask(name) for name in adapters))
    together_s = time.perf_counter() - began_at
    for result in together:
        print(f"{result.agents[-1].adapter:>18}: {' '.join(result.final_answer.split())}")
    answers = [result.final_answer for result in together]
    same = sum(one.final_answer == answer for one, answer in zip(alone, answers, strict=True))
    print(f"\n{len(set(answers))} different answers of {len(answers)} rows")
    print(f"{same} of {len(answers)} rows answer as they do alone")
    print(f"one after the other: {alone_s:.2f} s; in one batch: {together_s:.2f} s")


if __name__ == "__main__":
    main()
