"""Where adapters may come from: folders under the allowed roots, and a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentmas_core.errors import AdapterError, HubError
from latentmas_core.lora.checkpoint import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE
from latentmas_core.lora.source import locate_adapter
from tests.lora.hub_server import COMMIT, TOKEN, Hub, serve_hub

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


@pytest.mark.parametrize("kind", ["outside", "link", "file link", "dots", "missing", "no roots"])
def test_what_leads_out_of_the_roots_is_refused(tmp_path: Path, kind: str) -> None:
    outside, root = make_folder(tmp_path / "outside"), tmp_path / "root"
    make_folder(root / "a")
    paths = {
        "outside": outside,
        "link": root / "link",
        "file link": root / "linked-file",
        "dots": root / ".." / "outside",
        "missing": tmp_path / "nowhere" / "x",
        "no roots": root / "a",
    }
    paths["link"].symlink_to(outside)
    make_folder(paths["file link"])
    (paths["file link"] / WEIGHTS_FILE).unlink()
    (paths["file link"] / WEIGHTS_FILE).symlink_to(outside / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="not under a folder") as refused:
        locate_adapter(str(paths[kind]), roots=[] if kind == "no roots" else [root])
    assert refused.value.param == "path"


def test_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="revision is 'main'"):
        locate_adapter(str(make_folder(tmp_path / "a")), revision="main")


def test_hub_is_refused_where_it_is_not_allowed() -> None:
    with pytest.raises(AdapterError, match="allow_hub"):
        locate_adapter("owner/name", roots=[], allow_hub=False)


def test_offline_mode_is_named_where_nothing_is_cached() -> None:
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        locate_adapter("owner/name")


# --- the hub --------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from latentmas_core.errors import AdapterError
from latentmas_core.lora.source import locate_adapter
answers = []
for call in json.load(sys.stdin):
    try:
        folder, revision = locate_adapter(call.pop("path"), **call)
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        answers.append({"files": files, "revision": revision})
    except AdapterError as error:
        answers.append({"error": type(error).__name__, "message": error.message})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    junk = {"README.md": b"text", "optimizer.pt": b"pickle"}
    repositories = {
        "me/good": FILES | junk,
        "me/private": FILES,
        "me/pickled": {CONFIG_FILE: b"{}", PICKLE_FILE: b"pickle"},
        "me/empty": {"README.md": b"text"},
    }
    with serve_hub(Hub(repositories, private={"me/private"})) as hub:
        yield hub


def ask(cache: Path, *calls: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    settings = {
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(calls),
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def test_adapter_is_fetched_at_its_commit_then_found_offline(hub: Hub, tmp_path: Path) -> None:
    hub.requests.clear()
    first, pinned = ask(
        tmp_path,
        {"path": "me/good"},
        {"path": "me/good", "revision": COMMIT},
        HF_ENDPOINT=hub.url,
    )
    sizes = {name: len(content) for name, content in FILES.items()}
    assert first == pinned == {"files": sizes, "revision": COMMIT}
    assert not any(name in request for request in hub.requests for name in ("optimizer", "README"))
    (again,) = ask(tmp_path, {"path": "me/good"}, HF_HUB_OFFLINE="1")
    assert again == first


def test_failures_are_told_by_name_and_nothing_is_kept(hub: Hub, tmp_path: Path) -> None:
    calls = {
        "gated": {"path": "me/private"},
        "unknown": {"path": "me/nothing"},
        "revision": {"path": "me/good", "revision": "v9"},
        "pickled": {"path": "me/pickled"},
        "empty": {"path": "me/empty"},
        "large": {"path": "me/good", "max_bytes": 999},
    }
    answers = dict(zip(calls, ask(tmp_path, *calls.values(), HF_ENDPOINT=hub.url), strict=True))
    expected = {
        "gated": ("HubError", "HF_TOKEN"),
        "unknown": ("HubError", "no such repository"),
        "revision": ("HubError", "'v9'"),
        "pickled": ("AdapterError", PICKLE_FILE),
        "empty": ("HubError", CONFIG_FILE),
        "large": ("AdapterError", "1000 bytes"),
    }
    for case, (kind, named) in expected.items():
        assert answers[case]["error"] == kind, (case, answers[case])
        assert named in answers[case]["message"], (case, answers[case])
        assert calls[case].get("path", "me/") in answers[case]["message"]
    assert not list(tmp_path.rglob(WEIGHTS_FILE))


def test_token_of_the_environment_opens_what_is_restricted(hub: Hub, tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, {"path": "me/private"}, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert answer["revision"] == COMMIT


def test_hub_that_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, {"path": "me/good"}, HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["error"] == "HubError"
    assert "not reachable" in answer["message"]
