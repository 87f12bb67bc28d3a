"""A group whose stages do nothing: what is left is the price of a call."""

from collections.abc import AsyncGenerator

from ray import serve

from deployments.messages import StageCall, StageMade


@serve.deployment
class SilentGroup:
    """A group that makes nothing, so that a call is all that is measured."""

    async def run_stage(self, call: StageCall) -> AsyncGenerator[StageMade, None]:
        yield StageMade(None, (), 0, (), "stop")

    async def ping(self) -> None:
        """A call that carries nothing."""
