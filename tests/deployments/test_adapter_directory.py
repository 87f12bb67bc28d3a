"""Adapters over two groups of one process: on all replicas or on none, whatever goes wrong."""

import asyncio
import json
import shutil
import time

import pytest

from deployments.adapter_host import AdapterHost
from deployments.adapters import AdapterDirectory
from deployments.args import AdaptersConfig
from deployments.messages import AdapterOrder
from latentmas_core.errors import AdapterError, LostError, NotFoundError
from latentmas_core.lora.library import AdapterSource
from tests.deployments.wire import send
from tests.engine.engines import make_engine
from tests.lora.adapters import make_adapter

METHODS = {
    "adapters": "listing",
    "load_adapter": "load",
    "take_back_adapter": "take_back",
    "unload_adapter": "unload",
    "forget_adapters": "forget",
}
WAIT_S = 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_llama):
    """Under one root: first and second; the other one is elsewhere."""
    root, elsewhere = (tmp_path_factory.mktemp(name) for name in ("root", "elsewhere"))
    places = {"first": root, "second": root, "other": elsewhere}
    return {
        name: make_adapter(folder / name, tiny_llama, rank=4, seed=seed)
        for seed, (name, folder) in enumerate(places.items())
    }


@pytest.fixture
def engines(tiny_llama):
    made = []

    def make():
        made.append(make_engine(tiny_llama, num_threads=1))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class Groups:
    """In place of Serve; ``is_lost``: groups whose last replica dies when it is asked anything.

    ``may_load`` holds loads up.
    """

    def __init__(self, monkeypatch, engines, config, **num_replicas):
        monkeypatch.setattr("deployments.adapters.ask_all_replicas", self.ask)
        self._engines = engines
        self._config = config
        self.hosts = {
            name: [AdapterHost(engines(), config) for _ in range(number)]
            for name, number in num_replicas.items()
        }
        self.is_lost = set()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.asked = []
        self.directory = self.new_directory()

    def new_directory(self):
        return AdapterDirectory({name: name for name in self.hosts})

    async def start(self):
        for host in self.all_hosts:
            await host.start()
        return self

    async def restart(self, group):
        """All replicas of a group are new ones."""
        self.hosts[group] = [AdapterHost(self._engines(), self._config) for _ in self.hosts[group]]
        for host in self.hosts[group]:
            await host.start()

    @property
    def all_hosts(self):
        return [host for hosts in self.hosts.values() for host in hosts]

    async def ask(self, group, method, *arguments):
        self.asked.append((group, method))
        if method == "load_adapter":
            await self.may_load.wait()
        hosts, lost = self.hosts[group], []
        if group in self.is_lost:
            hosts, lost = hosts[:-1], [LostError(f"a replica of group {group!r} was lost.")]
        called = [getattr(host, METHODS[method])(*send(arguments)) for host in hosts]
        return [*send(await asyncio.gather(*called)), *lost]

    async def names(self):
        """What each replica has, by its own account."""
        listings = [await host.listing() for host in self.all_hosts]
        return [sorted(one.info.name for one in listing.loaded) for listing in listings]


@pytest.fixture
def config(folders):
    return AdaptersConfig(admin=True, roots=[folders["first"].parent])


@pytest.fixture
def groups(monkeypatch, engines, config):
    return Groups(monkeypatch, engines, config, one=1, two=2)


def source(folders, name, folder=None, **fields):
    return AdapterSource(name=name, path=str(folders[folder or name]), **fields)


async def test_adapter_that_was_unloaded_is_not_brought_back_by_a_request_under_way(
    groups, folders
):
    await groups.directory.load(source(folders, "first"))
    (begun,) = await groups.directory.require(["first"])
    late = groups.hosts["two"][0]
    await late.unload("first")  # as if this replica had started after the load
    late._unloaded.clear()
    await groups.directory.unload("first")
    for host in groups.all_hosts:
        with pytest.raises(NotFoundError, match="'first' was unloaded while the request"):
            await host.ensure([begun])
    assert await groups.names() == [[], [], []]
    with pytest.raises(NotFoundError, match="'first' is not loaded"):
        await groups.directory.require(["first"])
    await groups.directory.load(source(folders, "first"))
    await late.ensure(await groups.directory.require(["first"]))


async def test_unload_that_comes_while_a_replica_loads_for_a_request_wins(
    groups, folders, monkeypatch
):
    host = groups.hosts["one"][0]
    await groups.directory.load(source(folders, "first"))
    (begun,) = await groups.directory.require(["first"])
    await groups.restart("one")
    host = groups.hosts["one"][0]
    load, has_begun, may_go_on = host._guarded.load, asyncio.Event(), asyncio.Event()

    async def load_slowly(source):
        has_begun.set()
        await may_go_on.wait()
        return await load(source)

    monkeypatch.setattr(host._guarded, "load", load_slowly)
    ensuring = asyncio.create_task(host.ensure([begun]))
    await asyncio.wait_for(has_begun.wait(), WAIT_S)
    await groups.directory.unload("first")
    may_go_on.set()
    with pytest.raises(NotFoundError, match="unloaded while"):
        await ensuring
    assert await groups.names() == [[], [], []]


async def test_replica_refuses_another_adapter_of_the_name(groups, folders):
    await groups.directory.load(source(folders, "x", "first"))
    (begun,) = await groups.directory.require(["x"])
    await groups.directory.unload("x")
    await groups.directory.load(source(folders, "x", "second"))
    with pytest.raises(AdapterError, match="another got its name"):
        await groups.hosts["one"][0].ensure([begun])
    assert await groups.names() == [["x"]] * 3


async def test_replica_that_reads_changed_files_keeps_nothing_of_them(groups, folders):
    changing = shutil.copytree(folders["first"], folders["first"].with_name("changing"))
    wanted = AdapterSource(name="x", path=str(changing))
    await groups.directory.load(wanted)
    (begun,) = await groups.directory.require(["x"])
    await groups.restart("one")
    config = changing / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 3}))
    with pytest.raises(AdapterError, match="its files changed"):
        await groups.hosts["one"][0].ensure([begun])
    assert await groups.names() == [[], ["x"], ["x"]]


async def test_load_that_fails_on_one_replica_is_taken_back_where_it_was_new(groups, folders):
    """Two replicas have the name already, one of them for another adapter."""
    await load_on(groups.hosts["one"][0], source(folders, "x", "first"))
    await load_on(groups.hosts["two"][0], source(folders, "x", "second"))
    listed = await groups.directory.listing()
    assert sorted(one["states"].popitem()[0] for one in listed) == ["one", "two"]
    assert len({one["digest"] for one in listed}) == 2
    with pytest.raises(AdapterError, match="'x' is in use"):
        await groups.directory.load(source(folders, "x", "first", pinned=True))
    assert await groups.names() == [["x"], ["x"], []]
    (kept,) = (await groups.hosts["one"][0].listing()).loaded
    assert not kept.info.pinned, "the pin of the load that failed stays"


async def load_on(host, wanted):
    await host.load(AdapterOrder(wanted, False, "earlier"))


async def test_replica_that_is_lost_during_a_load_leaves_the_adapter_nowhere(groups, folders):
    groups.is_lost = {"one"}
    with pytest.raises(LostError, match="'one'"):
        await groups.directory.load(source(folders, "first"))
    assert await groups.names() == [[], [], []]
    groups.is_lost.clear()
    await groups.directory.load(source(folders, "first"))
    assert await groups.names() == [["first"]] * 3


async def test_new_ingress_learns_of_adapters_while_a_replica_of_one_group_dies(groups, folders):
    """A request with an adapter goes on with what the other groups say."""
    await groups.directory.load(source(folders, "first"))
    groups.directory = groups.new_directory()
    groups.is_lost = {"one"}
    (found,) = await groups.directory.require(["first"])
    assert found.info.name == "first"
    (entry,) = await groups.directory.listing()
    assert entry["states"].keys() == {"two"}


async def test_replicas_beside_a_lost_one_are_listed_and_give_back_what_they_loaded(
    groups, folders
):
    await groups.directory.load(source(folders, "first"))
    groups.is_lost = {"two"}
    (entry,) = await groups.directory.listing()
    assert {group: len(states) for group, states in entry["states"].items()} == {"one": 1, "two": 1}
    with pytest.raises(LostError, match="'two'"):
        await groups.directory.load(source(folders, "second"))
    assert await groups.names() == [["first"]] * 3


async def test_name_that_a_lost_replica_may_have_is_not_called_unknown(groups, folders):
    async with groups.hosts["one"][0].configured([source(folders, "first")]):
        pass
    groups.is_lost = {"one"}
    for refused in (groups.directory.require(["first"]), groups.directory.unload("first")):
        with pytest.raises(LostError, match="'one'"):
            await refused
    assert await groups.directory.find(["first"]) == ()
    groups.is_lost = set()
    assert await groups.directory.require(["first"])
    groups.is_lost = {"one"}
    assert await groups.directory.listing() == []
    assert await groups.directory.require(["first"]), "what was known of group one is forgotten"
    groups.is_lost = set()
    assert (await groups.directory.listing())[0]["name"] == "first"


async def test_any_error_of_a_replica_is_told_and_taken_back(groups, folders, monkeypatch):
    async def fail(_):
        raise ZeroDivisionError("of /a/path/of/the/server")

    monkeypatch.setattr(groups.hosts["two"][1]._guarded, "load", fail)
    with pytest.raises(AdapterError, match="'first' could not be loaded") as refused:
        await groups.directory.load(source(folders, "first"))
    assert "server" not in refused.value.message
    assert await groups.names() == [[], [], []]


async def test_load_goes_on_when_its_client_goes_away(groups, folders):
    groups.may_load.clear()
    loading = asyncio.create_task(groups.directory.load(source(folders, "first")))
    await until(lambda: ("two", "load_adapter") in groups.asked)
    loading.cancel()
    await asyncio.wait([loading])
    groups.may_load.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=WAIT_S)
    assert await groups.names() == [["first"]] * 3
    assert not any("take_back" in method for _, method in groups.asked)
    assert await groups.directory.require(["first"])


async def test_nobody_waits_for_a_load_of_another_name(groups, folders):
    await groups.directory.load(source(folders, "second"))
    groups.may_load.clear()
    loading = asyncio.create_task(groups.directory.load(source(folders, "first")))
    await until(lambda: ("two", "load_adapter") in groups.asked)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(NotFoundError, match="'nobody'"):
            await groups.directory.require(["nobody"])
        assert len(await groups.directory.listing()) == 1
        await groups.directory.unload("second")
    assert not loading.done()
    groups.may_load.set()
    await loading


async def test_many_who_ask_for_unknown_names_ask_the_replicas_once(groups):
    wrong = [groups.directory.require([f"nobody-{number}"]) for number in range(50)]
    answers = await asyncio.gather(*wrong, return_exceptions=True)
    assert all(isinstance(answer, NotFoundError) for answer in answers)
    assert groups.asked.count(("one", "adapters")) == 1


@pytest.fixture
async def configured(monkeypatch, engines, folders):
    """An application whose config loads an adapter that clients could not."""
    config = AdaptersConfig(
        admin=True, roots=[folders["first"].parent], load=[source(folders, "other")]
    )
    return await Groups(monkeypatch, engines, config, one=1, two=1).start()


@pytest.mark.parametrize("is_new_ingress", [False, True])
async def test_adapter_of_the_config_that_was_unloaded_stays_away_from_new_replicas(
    configured, folders, is_new_ingress
):
    await configured.directory.unload("other")
    if is_new_ingress:
        configured.directory = configured.new_directory()
    await configured.restart("one")
    assert await configured.names() == [["other"], []], "or nothing is proved"
    with pytest.raises(NotFoundError, match="'other'"):
        await configured.directory.require(["other"])
    assert await configured.names() == [[], []]
    await configured.restart("one")
    assert await configured.directory.listing() == []


async def test_config_of_a_group_loads_what_was_unloaded_before(configured, folders):
    await configured.directory.unload("other")
    async with configured.hosts["one"][0].configured([source(folders, "other")]):
        pass
    (entry,) = await configured.directory.listing()
    assert entry["states"].keys() == {"one"}
    assert await configured.names() == [["other"], []]
    assert await configured.directory.require(["other"])


async def test_what_the_operator_named_may_come_from_anywhere_on_any_replica(configured, folders):
    (other,) = await configured.directory.require(["other"])
    assert other.is_operators
    host = configured.hosts["two"][0]
    await host._drop("other")
    await host.ensure([other])
    assert await configured.names() == [["other"]] * 2
    with pytest.raises(AdapterError, match="not under a folder"):
        await configured.directory.load(source(folders, "stolen", "other"))
    await configured.directory.load(source(folders, "registered", "other"), is_operators=True)
    assert await configured.names() == [["other", "registered"]] * 2


async def test_name_that_nobody_has_cannot_be_unloaded(groups):
    with pytest.raises(NotFoundError, match="'nobody'") as refused:
        await groups.directory.unload("nobody")
    assert refused.value.param == "lora_name"
    assert [(await host.listing()).unloaded for host in groups.all_hosts] == [frozenset()] * 3


async def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
