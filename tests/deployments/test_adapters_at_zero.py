"""Adapters of an application of which some groups, or all, have no replica just now."""

import pytest

from deployments.adapters import AdapterDirectory
from deployments.messages import AdapterListing, LoadedAdapter
from latentmas_core.errors import EngineError, NotFoundError
from latentmas_core.lora.cached_adapter import AdapterState
from latentmas_core.lora.library import AdapterInfo, AdapterSource

LAW = AdapterSource(name="law", path="/adapters/law")


class Groups:
    """In place of Serve: ``replicas`` maps groups to what each of their replicas has loaded."""

    def __init__(self, monkeypatch, **replicas):
        self.replicas = replicas
        monkeypatch.setattr("deployments.adapters.ask_all_replicas", self.ask)
        self.directory = AdapterDirectory({name: name for name in replicas})

    async def ask(self, group, method, *arguments):
        return [getattr(self, method)(loaded, *arguments) for loaded in self.replicas[group]]

    def adapters(self, loaded):
        return AdapterListing(tuple(self.loaded(source) for source in loaded.values()))

    def load_adapter(self, loaded, order):
        loaded[order.source.name] = order.source
        return self.loaded(order.source)

    def unload_adapter(self, loaded, name):
        del loaded[name]

    def take_back_adapter(self, loaded, order):
        raise AssertionError("nothing was loaded")

    def loaded(self, source):
        info = AdapterInfo(
            name=source.name,
            digest="0" * 64,
            rank=8,
            targets=("q_proj",),
            base_model="tiny",
            pinned=False,
            state=AdapterState.READY,
        )
        return LoadedAdapter(info, source)


async def test_adapter_is_loaded_and_found_where_replicas_are(monkeypatch):
    groups = Groups(monkeypatch, busy=[{}, {}], rare=[])
    await groups.directory.load(LAW)
    assert groups.replicas == {"busy": [{"law": LAW}] * 2, "rare": []}
    (entry,) = await groups.directory.listing()
    assert entry["states"] == {"busy": ["ready", "ready"]}
    assert [one.source for one in await groups.directory.require(["law"])] == [LAW]
    await groups.directory.unload("law")
    assert groups.replicas == {"busy": [{}, {}], "rare": []}


async def test_what_was_known_stays_known_while_nobody_can_be_asked(monkeypatch):
    groups = Groups(monkeypatch, rare=[{"law": LAW}], rarer=[])
    assert [one.source for one in await groups.directory.require(["law"])] == [LAW]
    groups.replicas["rare"].clear()
    with pytest.raises(NotFoundError, match="'math'"):
        await groups.directory.require(["math"])
    assert [one.source for one in await groups.directory.require(["law"])] == [LAW]
    assert await groups.directory.listing() == []


async def test_adapter_that_no_replica_can_check_is_refused(monkeypatch):
    groups = Groups(monkeypatch, rare=[], rarer=[])
    with pytest.raises(EngineError, match="'law' cannot be checked"):
        await groups.directory.load(LAW)
    with pytest.raises(NotFoundError, match="'law'"):
        await groups.directory.require(["law"])


async def test_unknown_adapter_cannot_be_unloaded_from_no_replica(monkeypatch):
    groups = Groups(monkeypatch, rare=[{"law": LAW}])
    await groups.directory.require(["law"])
    groups.replicas["rare"].clear()
    await groups.directory.unload("law")
    with pytest.raises(NotFoundError, match="'law'"):
        await groups.directory.unload("law")
