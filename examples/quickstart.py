"""Four agents answer a question by handing each other thoughts, in this process and on any machine.

    python examples/quickstart.py

The embedded model needs no download and no GPU; pass model_name for any other.
"""

from latentmas_core import AgentConfig, LatentMASSystem
from latentmas_core.events import AgentFinished, AgentThought, AnswerDelta


def main() -> None:
    with LatentMASSystem(device="auto", dtype="auto", latent_steps=10) as system:
        system.add_agent(AgentConfig.planner())
        system.add_default_agents()

        result = system.run(
            question="What is the capital of France?",
            pipeline="hierarchical",
            mode="latent",
            temperature=0.0,
        )
        print(f"Answer: {result.final_answer}\n")
        for agent in result.agents:
            print(
                f"  {agent.name:8} {agent.latent_steps:3} latent steps, "
                f"{agent.completion_tokens:3} tokens written, {agent.latency_ms:6.0f} ms"
            )
        print(f"  {result.usage}\n")

        print("Experts in parallel, as it happens:")
        for event in system.stream(
            question="Name three primary colors.", pipeline="parallel", temperature=0.0
        ):
            if isinstance(event, AgentThought):
                print(f"  [{event.agent} took {event.latent_steps} latent steps]")
            elif isinstance(event, AgentFinished):
                print(f"  [{event.agent} finished]")
            elif isinstance(event, AnswerDelta):
                print(event.text, end="", flush=True)

        print("\n\nMany questions in one batch:")
        questions = [f"What is the capital of {place}?" for place in ("Italy", "Spain", "Japan")]
        for answer in system.run_many(questions, temperature=0.0, max_tokens=32):
            print(f"  {answer.final_answer}")


if __name__ == "__main__":
    main()
