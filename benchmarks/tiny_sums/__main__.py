"""python -m benchmarks.tiny_sums: a tiny model that adds up, trained here, and questions for it.

Writes both into the cache once and prints where they are:

    python -m benchmarks.tiny_sums
    python -m benchmarks.quality --model FOLDER/model --tasks FOLDER/sums.jsonl --n 100
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.program import positive, say
from benchmarks.tiny_sums.task import held_out
from benchmarks.tiny_sums.training import Training, train
from benchmarks.tiny_sums.words import make_tokenizer
from latentmas_core.engine.embedded_model import cache_dir

NUM_QUESTIONS = 500


def prepare(training: Training, cache: Path) -> Path:
    """The folder with ``model`` and ``sums.jsonl``; trained unless it is there already."""
    # Its words too: they are the parts of our agents' prompts, which change now and then.
    made_of = training.model_dump_json() + json.dumps(make_tokenizer().get_vocab(), sort_keys=True)
    folder = cache / f"sums-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if (folder / "sums.jsonl").exists():
        return folder
    began_at = time.perf_counter()
    train(training, folder / "model", say)
    say(f"trained in {time.perf_counter() - began_at:.0f} s")
    rows = [
        {"id": str(index), "question": one.question, "answer": one.total}
        for index, one in enumerate(held_out(NUM_QUESTIONS, training.seed))
    ]
    # Written last: it says that the model is whole.
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiny_sums", description=(__doc__ or "").partition("\n")[0]
    )
    default = Training()
    parser.add_argument("--seed", type=int, default=default.seed, help=f"({default.seed})")
    parser.add_argument("--steps", type=positive, default=default.num_steps,
                        help=f"of training ({default.num_steps})")  # fmt: skip
    parser.add_argument("--threads", type=positive, default=1, help="of torch (1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    training = Training(seed=options.seed, num_steps=options.steps)
    print(prepare(training, cache_dir() / "tiny"))


if __name__ == "__main__":
    main()
