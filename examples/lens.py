"""Watch agents think: what each latent step of each agent is close to.

python examples/lens.py
"""

from latentmas_core import LatentMASSystem
from latentmas_core.events import AgentThought, AnswerDone


def main() -> None:
    with LatentMASSystem(latent_steps=6) as system:
        system.add_default_agents()
        for event in system.stream("What is the capital of France?", trace="lens", temperature=0.0):
            if isinstance(event, AgentThought) and event.lens:
                near = "  ".join(f"{t.text!r} {t.probability:.2f}" for t in event.lens.tokens)
                norm = "  none" if event.lens.norm is None else f"{event.lens.norm:6.1f}"
                print(f"{event.agent:8} |h| {norm}  {near}")
            elif isinstance(event, AnswerDone):
                print(f"\n{event.result.final_answer}")
                shown = {agent.name: len(agent.lens) for agent in event.result.agents}
                print(f"steps shown: {shown}")


if __name__ == "__main__":
    main()
