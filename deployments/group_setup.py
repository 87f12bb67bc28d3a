"""What a replica of a group is made of; plain data that crosses to it when it starts."""

from dataclasses import dataclass

from deployments.args import AdaptersConfig
from latentmas_core.config import EngineConfig
from latentmas_core.pipelines.stage_worker import Roster

NO_ADAPTERS = AdaptersConfig()


@dataclass(frozen=True)
class GroupSetup:
    """``resident_adapters``: names of loaded ones that stay on the device here."""

    engine: EngineConfig
    roster: Roster
    adapters: AdaptersConfig = NO_ADAPTERS
    resident_adapters: tuple[str, ...] = ()
