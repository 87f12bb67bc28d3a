"""Where adapters may come from: folders under the allowed roots, and a hub on this machine."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentmas_core.errors import AdapterError, HubError
from latentmas_core.lora import source
from latentmas_core.lora.adapter_config import CONFIG_FILE, MAX_CONFIG_BYTES
from latentmas_core.lora.checkpoint import PICKLE_FILE, WEIGHTS_FILE
from latentmas_core.lora.source import locate_adapter
from tests.lora.hub_server import COMMIT, NEXT_COMMIT, TOKEN, Hub, serve_hub

FILES = {CONFIG_FILE: b'{"r": 8}', WEIGHTS_FILE: b"w" * 1000}


# --- folders --------------------------------------------------------------------------------------


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    return path


def test_any_folder_is_found_where_no_roots_are_given(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    assert locate_adapter(str(folder)) == (folder, None)


def test_folder_under_a_root_is_found_through_links_within_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "root" / "a")
    (tmp_path / "root" / "link").symlink_to(folder)
    for path in (folder, tmp_path / "root" / "link"):
        assert locate_adapter(str(path), roots=[tmp_path / "root"]).folder == folder


def test_folder_that_is_found_is_absolute_and_follows_no_link_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "v1")
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for path in ("v1", "./v1", "latest"):
        assert locate_adapter(path).folder == folder


OUTSIDE = ("outside", "link", "file link", "dots", "missing", "loop", "user", "nul", "long")


@pytest.mark.parametrize("kind", [*OUTSIDE, "no roots"])
def test_what_leads_out_of_the_roots_is_refused(tmp_path: Path, kind: str) -> None:
    outside, root = make_folder(tmp_path / "outside"), tmp_path / "root"
    make_folder(root / "a")
    paths = {
        "outside": outside,
        "link": root / "link",
        "file link": root / "linked-file",
        "dots": root / ".." / "outside",
        "missing": tmp_path / "nowhere" / "x",
        "loop": root / "loop",
        "user": Path("~nobody-is-called-so/x"),
        "nul": root / "a\0b",
        "long": root / ("x" * 5000),
        "no roots": root / "a",
    }
    paths["link"].symlink_to(outside)
    paths["loop"].symlink_to(paths["loop"])
    make_folder(paths["file link"])
    (paths["file link"] / WEIGHTS_FILE).unlink()
    (paths["file link"] / WEIGHTS_FILE).symlink_to(outside / WEIGHTS_FILE)
    # A later Python calls a loop of links a path within the root, which is then no folder.
    with pytest.raises(AdapterError, match=r"not under a folder|neither a folder") as refused:
        locate_adapter(str(paths[kind]), roots=[] if kind == "no roots" else [root])
    assert refused.value.param == "path"


@pytest.mark.parametrize("allow_hub", [None, False])
def test_refusal_does_not_tell_whether_it_exists_outside_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow_hub: bool | None
) -> None:
    make_folder(tmp_path / "owner" / "here")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "here").symlink_to(tmp_path / "owner" / "here")
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "owner" / "gone")
    monkeypatch.chdir(tmp_path)
    for path in ("owner/{}", str(tmp_path / "owner" / "{}"), "root/{}"):
        messages = []
        for name in ("here", "gone"):
            with pytest.raises(AdapterError) as refused:
                locate_adapter(path.format(name), roots=[tmp_path / "root"], allow_hub=allow_hub)
            messages.append(refused.value.message.replace(name, ""))
        assert messages[0] == messages[1]


def test_folder_outside_the_roots_is_no_reason_to_be_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert locate_adapter("owner/name").folder == tmp_path / "owner" / "name"
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        locate_adapter("owner/name", roots=[tmp_path / "root"], allow_hub=True)


@pytest.mark.parametrize("path", ["missing", "./a/b", "a/b/c", "~nobody-is-called-so/x", "a\0b"])
def test_what_is_no_folder_and_no_repository_is_refused(path: str) -> None:
    with pytest.raises(AdapterError, match="neither a folder nor a repository"):
        locate_adapter(path)


def test_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="revision is 'main'"):
        locate_adapter(str(make_folder(tmp_path / "a")), revision="main")


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "/etc/x", "", "a\nb"])
def test_revision_that_would_leave_the_cache_is_refused(revision: str) -> None:
    with pytest.raises(AdapterError, match="is no name of a branch") as refused:
        locate_adapter("owner/name", revision=revision)
    assert refused.value.param == "revision"


@pytest.mark.parametrize("options", [{"allow_hub": False}, {"roots": []}])
def test_hub_is_refused_where_it_is_not_allowed(options: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="allow_hub"):
        locate_adapter("owner/name", **options)


def test_offline_mode_is_named_where_nothing_is_cached() -> None:
    with pytest.raises(HubError, match=r"'owner/name' at its default revision.*HF_HUB_OFFLINE"):
        locate_adapter("owner/name")


def test_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(source.huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(HubError, match=r"'owner/name' at revision 'v1'.*No space left.*HF_HOME"):
        locate_adapter("owner/name", revision="v1")


# --- the hub --------------------------------------------------------------------------------------

PROGRAM = """
import json, sys, time
from latentmas_core.errors import AdapterError
from latentmas_core.lora import source
answers = []
for call in json.load(sys.stdin):
    source.ETAG_TIMEOUT_S = call.pop("etag_timeout_s", 10.0)
    start = time.monotonic()
    try:
        folder, revision = source.locate_adapter(call.pop("path"), **call)
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        answers.append({"files": files, "revision": revision})
    except AdapterError as error:
        took = {"seconds": time.monotonic() - start}
        answers.append({"error": type(error).__name__, "message": error.message} | took)
print(json.dumps(answers))
"""
FETCHED = {"files": {name: len(content) for name, content in FILES.items()}, "revision": COMMIT}

# Each with the kind of its error and what its message must name.
FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "gated": ({"path": "me/private"}, "HubError", "HF_TOKEN"),
    "unknown": ({"path": "me/nothing"}, "HubError", "no such repository"),
    "ill-named": ({"path": "me/no--thing"}, "HubError", "can be called so"),
    "revision": ({"path": "me/empty", "revision": "v9"}, "HubError", "'v9'"),
    "pickled": ({"path": "me/pickled"}, "AdapterError", PICKLE_FILE),
    "empty": ({"path": "me/empty"}, "HubError", f"no {CONFIG_FILE}"),
    "half": ({"path": "me/half"}, "HubError", f"no {WEIGHTS_FILE}"),
    "large": ({"path": "me/large", "max_bytes": 999}, "AdapterError", "1000 bytes; at most 999"),
    "large config": ({"path": "me/long", "max_bytes": 1000}, "AdapterError", CONFIG_FILE),
    "unsized": ({"path": "me/unsized", "max_bytes": 1000}, "HubError", "does not say how large"),
    "cut": ({"path": "me/cut"}, "HubError", "size 1000 but has size 500"),
    "moved": ({"path": "me/moved"}, "HubError", NEXT_COMMIT),
    "withheld": ({"path": "me/withheld"}, "HubError", "answered 403"),
    "broken": ({"path": "me/broken"}, "HubError", "answered 500"),
    "foreign": ({"path": "me/foreign"}, "HubError", "HF_ENDPOINT"),
    "silent": ({"path": "me/silent", "etag_timeout_s": 0.2}, "HubError", "ReadTimeout"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    odd = {name: {f"me/{name}"} for name in ("cut", "moved", "unsized", "withheld")}
    mute = {name: {f"me/{name}"} for name in ("broken", "foreign", "silent")}
    repositories = {
        "me/good": FILES | {"README.md": b"text", "optimizer.pt": b"pickle"},
        "me/private": FILES,
        "me/pickled": {CONFIG_FILE: b"{}", PICKLE_FILE: b"pickle"},
        "me/empty": {"README.md": b"text"},
        "me/half": {CONFIG_FILE: b"{}"},
        "me/large": FILES,
        "me/long": FILES | {CONFIG_FILE: b" " * (MAX_CONFIG_BYTES + 1)},
        **{name: FILES for names in (odd | mute).values() for name in names},
    }
    with serve_hub(Hub(repositories, private={"me/private"}, **odd, **mute)) as hub:
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub-cache")


@pytest.fixture(scope="module")
def answers(hub: Hub, cache: Path) -> dict[str, Any]:
    """What a process without a token gets, online and from an empty cache."""
    calls = {name: call for name, (call, _, _) in FAILURES.items()} | {
        "good": {"path": "me/good", "max_bytes": 1000},
        "pinned": {"path": "me/good", "revision": COMMIT},
    }
    return dict(zip(calls, ask(cache, *calls.values(), HF_ENDPOINT=hub.url), strict=True))


def ask(cache: Path, *calls: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    settings = {
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(calls),
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_adapter_is_fetched_at_its_commit(hub: Hub, answers: dict[str, Any]) -> None:
    assert answers["good"] == answers["pinned"] == FETCHED
    fetched = [request for request in hub.requests if "/me/good/" in request]
    assert f"GET /me/good/resolve/{COMMIT}/{WEIGHTS_FILE}" in fetched
    assert not [one for one in fetched if "optimizer" in one or "README" in one]


@pytest.mark.parametrize("case", FAILURES)
def test_failure_of_the_hub_names_repository_cause_and_revision(
    answers: dict[str, Any], case: str
) -> None:
    call, kind, named = FAILURES[case]
    answer = answers[case]
    assert answer.get("error") == kind, answer
    assert named in answer["message"]
    assert f"'{call['path']}'" in answer["message"]
    if kind == "HubError" and case != "unsized":
        assert (call.get("revision") or "default revision") in answer["message"]


def test_hub_that_does_not_answer_is_given_up_at_the_timeout(answers: dict[str, Any]) -> None:
    assert 0.2 <= answers["silent"]["seconds"] < 5.0


@pytest.mark.usefixtures("answers")
def test_nothing_is_kept_of_what_was_refused_or_broke_off(hub: Hub, cache: Path) -> None:
    weights = {path.relative_to(cache / "hub").parts[0] for path in cache.rglob(WEIGHTS_FILE)}
    assert weights == {"models--me--good", "models--me--moved"}
    assert not list(cache.rglob("*.incomplete"))
    assert not [one for one in hub.requests if one.endswith(PICKLE_FILE)]


@pytest.mark.usefixtures("answers")
def test_what_is_cached_whole_is_found_offline(cache: Path) -> None:
    good, *incomplete = ask(
        cache,
        {"path": "me/good", "revision": "main"},
        {"path": "me/large"},
        {"path": "me/cut"},
        {"path": "me/moved"},
        HF_HUB_OFFLINE="1",
    )
    assert good == FETCHED
    assert all("offline mode is on" in answer["message"] for answer in incomplete)


@pytest.mark.usefixtures("answers")
def test_hub_that_is_away_is_an_error_unless_the_commit_is_cached(cache: Path) -> None:
    away, cached = ask(
        cache,
        {"path": "me/good"},
        {"path": "me/good", "revision": COMMIT},
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert away["error"] == "HubError"
    assert "not reachable (ConnectError" in away["message"]
    assert cached == FETCHED


def test_token_of_the_environment_opens_what_is_restricted(hub: Hub, tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, {"path": "me/private"}, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert answer == FETCHED
