"""Tasks that reasoning-gym generates from a seed; needs the extra ``quality``, and no download."""

from typing import Any

from benchmarks.quality.grading import gold_number
from latentmas_core.errors import ConfigError


def gym_rows(name: str, *, num_questions: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """Questions with numbers for answers; ConfigError for another task, or without the extra.

    Answers that are no numbers are left to reasoning-gym's own scoring, which is not used here.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise ConfigError(
            f"task reasoning-gym:{name} needs reasoning-gym, which is not installed. "
            "Install it: pip install 'latentmas[quality]'",
            param="tasks",
        ) from None
    if name not in DATASETS:
        raise ConfigError(
            f"reasoning-gym has no task {name!r}. One that it has is chain_sum; its documentation "
            "lists the others.",
            param="tasks",
        )
    entries = list(create_dataset(name, seed=seed, size=num_questions))
    rows = [{"question": entry["question"], "answer": entry["answer"]} for entry in entries]
    for row in rows:
        gold_number(str(row["answer"]))
    return list(enumerate(rows))
