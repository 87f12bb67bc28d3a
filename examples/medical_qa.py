"""A physician answers what a planner has thought about, on a medical adapter if one fits the model.

    python examples/medical_qa.py --model Qwen/Qwen2.5-3B-Instruct

Not medical advice; the embedded model least of all.
"""

import argparse
import json
from pathlib import Path

from latentmas_core import AgentConfig, EngineConfig, HubError, LatentMASSystem, PipelineSpec

QUESTIONS = Path(__file__).with_name("data") / "sample_data.json"
DOMAIN = "medical"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="any causal language model; the embedded one if left out")
    parser.add_argument("--question", help="instead of the medical ones of data/sample_data.json")
    parser.add_argument("--latent-steps", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=200)
    args = parser.parse_args()
    model = args.model or EngineConfig().model_name
    with LatentMASSystem(model, latent_steps=args.latent_steps) as system:
        adapter = load_fitting_adapter(system, model)
        system.add_agent(AgentConfig.planner()).add_agent(AgentConfig.medical(adapter=adapter))
        spec = PipelineSpec.chain("medical_qa", ["planner", "medical"])
        questions = [args.question] if args.question else medical_questions()
        answers = system.run_many(
            questions, pipeline=spec, temperature=0.0, max_tokens=args.max_tokens
        )
        for question, answer in zip(questions, answers, strict=True):
            print(f"Q: {question}\nA: {answer.final_answer}")
            for agent in answer.agents:
                print(f"   {agent.name}: {agent.role}, on {agent.adapter}")


def load_fitting_adapter(system: LatentMASSystem, model: str) -> str | None:
    """The first medical adapter of the registry that was made for this model; None for none."""
    fits = system.registry.compatible_with(model)
    for entry in system.registry:
        if entry.domain != DOMAIN or not fits[entry.name]:
            continue
        try:
            system.load_from_registry(entry.name)
        except HubError as error:
            print(f"{error.message}\n")
            continue
        print(f"The physician uses the adapter {entry.name} ({entry.path}).\n")
        return entry.name
    print(f"No medical adapter for {model}: the physician uses the base.\n")
    return None


def medical_questions() -> list[str]:
    return [one["question"] for one in json.loads(QUESTIONS.read_text()) if one["domain"] == DOMAIN]


if __name__ == "__main__":
    main()
