"""Pipelines of your own: a DAG in Python, with an agent of your own, and one from YAML.

python examples/custom_pipeline.py
"""

import argparse
from pathlib import Path

from latentmas_core import AgentConfig, LatentMASSystem, NodeSpec, PipelineSpec, load_pipelines
from latentmas_core.result import Result

YAML = Path(__file__).with_suffix(".yaml")

# Both opinions are formed at the same time; the economist reads the plan and both of them.
DEBATE = PipelineSpec(
    name="debate",
    description="a plan, two opinions on it, and an economist who decides",
    nodes=(
        NodeSpec(name="planner", agent="planner"),
        NodeSpec(name="for", agent="math", after=("planner",)),
        NodeSpec(name="against", agent="critic", after=("planner",)),
        NodeSpec(name="economist", agent="economist", after=("for", "against")),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--question", default="Should a small bakery open on Sundays?")
    parser.add_argument("--latent-steps", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=100)
    args = parser.parse_args()
    with LatentMASSystem(latent_steps=args.latent_steps) as system:
        system.add_default_agents()
        system.add_agent(AgentConfig(name="economist", role="weighing costs and benefits"))
        for spec in (DEBATE, *load_pipelines(YAML).values()):
            system.add_pipeline(spec)
        for name in (DEBATE.name, "second_opinion"):
            result = system.run(
                args.question, pipeline=name, temperature=0.0, max_tokens=args.max_tokens
            )
            show(system.pipelines[name], result)


def show(spec: PipelineSpec, result: Result) -> None:
    print(f"{spec.name}: {spec.description}")
    traces = {trace.name: trace for trace in result.agents}
    for node in spec.nodes_in_order:
        trace = traces[node.name]
        did = f"{trace.latent_steps} latent steps" if trace.latent_steps else "speaks"
        print(f"  {node.name} ({node.agent}) <- {', '.join(node.after) or 'the question'}: {did}")
    print(f"  {result.final_answer}\n")


if __name__ == "__main__":
    main()
