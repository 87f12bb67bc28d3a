"""The suite runs every program once per commit, keeps what it found, and writes the tables."""

import fcntl
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import ROOT, changes_digest, describe_commit
from benchmarks.measure import Agreement, Bar, Comparison, Figures, Missing, measurement_of
from benchmarks.suite import running
from benchmarks.suite.__main__ import PAGE, main
from benchmarks.suite.page import BEGIN, END, LOAD_TITLES, TITLES, with_tables
from benchmarks.suite.parts import FULL, NAMES, QUICK, Part
from benchmarks.suite.results import RESULTS, Commit, Result, ResultsFolder, all_folders
from benchmarks.suite.running import BusyError, run_parts
from latentmas_core.errors import ConfigError

COMMIT = Commit("0123456789abcdef", is_modified=False)
EMPTY_PAGE = f"# Figures\n\n{BEGIN}\n{END}\n\nBelow.\n"
MACHINE = {
    "cpu": "A Processor",
    "num_cores": 2,
    "memory_gib": 8.0,
    "gpu": None,
    "load_average": 0.25,
}
MET = Comparison(
    "one_request",
    "one request | a pipe",
    "float32",
    "s",
    Figures("engine", [1.0, 3.0, 2.0]),
    Figures("plain loop", [4.0, 4.0, 4.0]),
    bar=Bar("<=", 0.6),
    agreement=Agreement(3, 3),
    note="ten steps",
    foreign_cores=0.04,
)
MISSED = Comparison(
    "rate", "rate", "float32", "requests/s", Figures("a", [1]), Figures("b", [2]), Bar(">=", 3)
)
LEFT_OUT = Missing("pool", "default pool", "float32", "it takes the whole memory")
LOST = Missing("modes", "modes", "float32", "the side vanished", is_failure=True)
LOAD = {
    "num_clients": 8,
    "mode": "latent",
    "latencies_s": [1.0, 2.0],
    "errors": ["503"],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "latent_steps": 1},
    "p50_s": 1.5,
    "p90_s": 1.9,
    "p99_s": 1.99,
    "requests_per_s": 0.75,
}


def make_report(*measurements: Comparison | Missing, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "num_threads": 2,
        "num_rounds": 3,
        "measurements": [one.as_dict() for one in measurements],
        **more,
    }


def make_result(part: str = "engine", **fields: Any) -> Result:
    values: dict[str, Any] = {
        "part": part,
        "command": f"python -m benchmarks.{part} --quick",
        "at": COMMIT,
        "machine": MACHINE,
        "versions": {"python": "3.11.1", "torch": "2.13.0"},
        "duration_s": 12.3,
        "failure": None,
        "report": make_report(MET, MISSED, LEFT_OUT, LOST, load=[LOAD]),
    }
    return Result(**values | fields)


def folder_of(path: Path, *results: Result) -> ResultsFolder:
    folder = ResultsFolder(path / "quick")
    for result in results:
        folder.store(result)
    return folder


def rows_of(page: str) -> list[list[str]]:
    """The cells of all rows between the marks, without titles."""
    tables = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in tables.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] != "command"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes ``benchmarks.NAME`` what the test writes, run from a folder of its own."""
    root = tmp_path / "root"
    (root / "benchmarks").mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").touch()
    monkeypatch.setattr(running, "ROOT", root)
    monkeypatch.setattr(running, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(running, "current_commit", lambda: COMMIT)

    def write(name: str, body: str) -> Part:
        head = "import json, os, sys, time\nfrom pathlib import Path\n"
        head += "*_, file = [Path(argument) for argument in sys.argv]\n"
        (root / "benchmarks" / f"{name}.py").write_text(head + textwrap.dedent(body))
        return Part(name)

    return write


def reporting(root_count: str = "runs") -> str:
    """A program that counts its runs and reports one figure."""
    report = make_report(MET) | {"machine": MACHINE, "commit": "abc", "crowd": [0] * 5}
    return f"""
        with open({root_count!r}, "a") as runs:
            runs.write("x")
        file.write_text({json.dumps(report)!r})
    """


@pytest.mark.parametrize("measurement", [MET, MISSED, LEFT_OUT, LOST])
def test_measurements_come_out_of_json_as_they_went_in(measurement: Comparison | Missing) -> None:
    fields = json.loads(json.dumps(measurement.as_dict()))
    assert measurement_of(fields).as_dict() == fields


def test_results_are_read_as_they_were_stored_and_in_the_order_of_the_suite(tmp_path: Path) -> None:
    results = [make_result(name) for name in NAMES]
    folder = folder_of(tmp_path, *reversed(results))
    assert folder.results == results
    assert sorted(file.name for file in folder.path.iterdir()) == sorted(f"{n}.json" for n in NAMES)


def test_tables_hold_every_figure_with_its_command_and_its_commit(tmp_path: Path) -> None:
    page = with_tables(EMPTY_PAGE, [folder_of(tmp_path, make_result())])
    source = ["`engine --quick`", "0123456"]
    met = ["one request \\| a pipe, float32", "engine 2 s", "plain loop 4 s", "0.5", "<= 0.6"]
    missed = ["rate, float32", "a 1 req/s", "b 2 req/s", "0.5", ">= 3, missed", "", ""]
    nothing = [""] * 5
    assert rows_of(page) == [
        [*source, *met, "3/3", "0.0"],
        [*source, *missed],
        [*source, "default pool, float32", "left out", *nothing],
        [*source, "modes, float32", "failed", *nothing],
        [*source, "8, latent", "2", "1", "1.50, 1.90, 1.99 s", "0.750", "5, 2, 1"],
    ]
    for words in (
        "A Processor, 2 cores",
        "torch 2.13.0",
        "load average 0.2",
        "ten steps",
        "Below.",
    ):
        assert words in page
    assert "`engine`: the side vanished" in page
    assert "`engine`: it takes the whole memory" in page


def test_program_that_ended_without_figures_is_a_row_that_says_so(tmp_path: Path) -> None:
    lost = make_result("lora", report=None, failure="exit status 1: it is out of order")
    page = with_tables(EMPTY_PAGE, [folder_of(tmp_path, lost)])
    assert rows_of(page) == [["`lora --quick`", "0123456", "everything", "failed", *[""] * 5]]
    assert "`lora` failed: exit status 1: it is out of order" in page


def test_writing_the_tables_again_changes_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, make_result())
    once = with_tables(EMPTY_PAGE, [folder])
    assert with_tables(once, [folder]) == once != EMPTY_PAGE


def test_page_without_marks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no line '<!-- tables of"):
        with_tables(f"{END}\n{BEGIN}", [])


def test_figures_of_modified_files_are_told_as_such(tmp_path: Path) -> None:
    result = make_result(at=Commit("0123456789abcdef", is_modified=True))
    assert rows_of(with_tables(EMPTY_PAGE, [folder_of(tmp_path, result)]))[0][1] == (
        "0123456, modified"
    )


def test_tables_of_the_docs_are_those_of_the_files_beside_the_programs() -> None:
    page = PAGE.read_text()
    assert with_tables(page, all_folders(RESULTS)) == page, "python -m benchmarks.suite --render"
    for row in rows_of(page):
        assert len(row) in (len(TITLES), len(LOAD_TITLES))
        assert re.fullmatch(r"`\w+( [^`]*)?`", row[0])
        assert re.fullmatch(r"[0-9a-f]{7}", row[1]), "kept figures are those of a commit"


def test_every_table_of_the_docs_has_its_commits_in_its_section() -> None:
    """In the rows, or in the words around them."""
    handwritten = PAGE.read_text().partition(END)[2]
    sections = [one for one in re.split(r"^## ", handwritten, flags=re.M) if "\n|---" in one]
    assert len(sections) >= 4
    for section in sections:
        assert re.search(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7}\b", section), section.splitlines()[0]


def test_finished_program_is_not_run_again_for_the_same_commit(
    program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, folder = program("engine", reporting()), ResultsFolder(tmp_path / "quick")
    runs = tmp_path / "root" / "runs"
    (first,) = run_parts([part], folder)
    (kept,) = run_parts([part], folder)
    assert kept == first == folder.find("engine")
    assert (first.failure, first.at, first.command) == (None, COMMIT, part.command)
    assert first.report == json.loads(json.dumps(make_report(MET)))
    assert runs.read_text() == "x"
    list(run_parts([part], folder, has_to_run=True))
    assert runs.read_text() == "xx"
    list(run_parts([part._replace(arguments=("--quick",))], folder))
    assert runs.read_text() == "xxx"
    for other in (Commit("f" * 40, is_modified=False), Commit(COMMIT.commit, is_modified=True)):
        monkeypatch.setattr(running, "current_commit", lambda other=other: other)
        list(run_parts([part], folder))
        list(run_parts([part], folder))
    assert runs.read_text() == "xxx" + "x" + "xx", "of modified files nobody knows"


def test_program_that_fails_stops_no_other_and_is_run_again(program, tmp_path: Path) -> None:
    fails = f"print('out of order in {tmp_path}/root', file=sys.stderr); sys.exit(3)"
    parts = [program("engine", fails), program("lora", reporting())]
    folder = ResultsFolder(tmp_path / "quick")
    failed, done = run_parts(parts, folder)
    assert failed.failure == "exit status 3: out of order in ."
    assert (failed.report, failed.at, failed.machine["num_cores"] >= 1) == (None, COMMIT, True)
    assert done.failure is None
    program("engine", reporting())
    assert [one.failure for one in run_parts(parts, folder)] == [None, None]
    assert (tmp_path / "root" / "runs").read_text() == "xx"


def test_program_that_reports_and_fails_is_kept_with_both(program, tmp_path: Path) -> None:
    reason = f"Traceback:\n  somewhere\nOSError: {tmp_path}/root is full\n"
    report = make_report(MET, Missing("m", "m", "float32", reason, is_failure=True))
    body = f"file.write_text({json.dumps(report | {'machine': MACHINE})!r}); sys.exit(1)"
    (result,) = run_parts([program("engine", body)], ResultsFolder(tmp_path / "quick"))
    assert result.failure == "exit status 1"
    assert [one.name for one in result.measurements] == ["one_request", "m"]
    assert result.measurements[1] == Missing("m", "m", "float32", "OSError: . is full", True)


def test_program_that_hangs_is_ended_with_its_time_and_the_rest_is_not_begun(
    program, tmp_path: Path
) -> None:
    waits = "time.sleep(600)"
    parts = [program("engine", waits), program("lora", reporting())]
    hung, late = run_parts(parts, ResultsFolder(tmp_path / "quick"), limit_s=0.5)
    assert hung.failure is not None
    assert hung.failure.startswith("ended after the 0 s that it had")
    assert late.failure == "not begun: the time for the whole run was used up"
    assert not (tmp_path / "root" / "runs").exists()


def test_commit_that_changes_meanwhile_makes_figures_worthless(
    program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter([COMMIT, Commit("f" * 40, is_modified=False), Commit("f" * 40, False)])
    monkeypatch.setattr(running, "current_commit", lambda: next(commits))
    (result,) = run_parts([program("engine", reporting())], ResultsFolder(tmp_path / "quick"))
    assert result.failure == "files changed while it ran, from 0123456 to fffffff"


def test_two_suites_do_not_measure_at_once(program, tmp_path: Path) -> None:
    parts = [program("engine", reporting()), program("lora", reporting())]
    first = run_parts(parts, ResultsFolder(tmp_path / "quick"))
    next(first)
    with pytest.raises(BusyError, match="still measuring"):
        next(run_parts(parts, ResultsFolder(tmp_path / "full")))
    assert next(first).part == "lora"


def test_program_of_a_killed_suite_keeps_others_out_until_it_ends(program, tmp_path: Path) -> None:
    program("engine", "print('begun', file=sys.stderr, flush=True); sys.stdin.read()")
    script = """
        import sys
        from pathlib import Path
        from benchmarks.suite import running
        from benchmarks.suite.parts import Part
        from benchmarks.suite.results import ResultsFolder
        root, lock, kept = map(Path, sys.argv[1:])
        running.ROOT, running.LOCK = root, lock
        list(running.run_parts([Part("engine")], ResultsFolder(kept)))
    """
    lock, kept = tmp_path / "lock", tmp_path / "quick"
    suite = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "root", lock, kept],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert suite.stdin is not None
    assert suite.stderr is not None
    with suite.stdin, suite.stderr:
        while suite.stderr.readline() != "begun\n":
            assert suite.poll() is None, "the program was not begun"
        suite.kill()
        suite.wait()
        parts = [program("lora", reporting())]
        with pytest.raises(BusyError):
            list(run_parts(parts, ResultsFolder(kept)))
    with lock.open("w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)  # until the program has ended
    assert [one.failure for one in run_parts(parts, ResultsFolder(kept))] == [None]


def test_whole_suite_writes_the_page_and_ends_with_1_if_a_program_failed(
    program, tmp_path: Path
) -> None:
    for part in QUICK:
        program(part.name, reporting())
    program("handoff", "sys.exit('no store')")
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(EMPTY_PAGE)
    options = {"results": results, "page": page}
    assert main(["--quick"], **options) == 1
    commands = [row[0] for row in rows_of(page.read_text())]
    assert commands == [f"`{part.command.removeprefix('python -m benchmarks.')}`" for part in QUICK]
    assert "`handoff` failed: exit status 1: no store" in page.read_text()
    program("handoff", reporting())
    assert main(["--quick", "--only", "handoff"], **options) == 0
    assert main(["--quick"], **options) == 0
    runs = (tmp_path / "root" / "runs").read_text()
    assert len(runs) == len(QUICK), "what was finished is not run again"
    assert main(["--render"], **options) == 0
    assert "failed" not in page.read_text()


def test_another_name_keeps_another_machine(program, tmp_path: Path) -> None:
    program("handoff", reporting())
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(EMPTY_PAGE)
    for name in ("slow-machine", "quick"):
        arguments = ["--quick", "--only", "handoff", "--name", name]
        assert main(arguments, results=results, page=page) == 0
    assert re.findall("^### (.*)", page.read_text(), re.M) == ["quick", "slow-machine"]


@pytest.mark.parametrize(
    "arguments",
    [["--only", "naps"], ["--name", "../else"], ["--quick", "--only", "connections"]],
)
def test_options_that_cannot_be_meant_end_the_suite(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_programs_of_the_suite_are_there() -> None:
    assert {part.name for part in QUICK} <= set(NAMES)
    assert all((ROOT / "benchmarks" / f"{part.name}.py").exists() for part in FULL)
    assert QUICK[0].command == (
        "python -m benchmarks.engine --quick --dtype float32 --only one-request"
    )


def test_what_the_suite_writes_does_not_make_files_modified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.machine.ROOT", tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    written = tmp_path / "benchmarks" / "results" / "quick" / "engine.json"
    written.parent.mkdir(parents=True)
    written.write_text("{}")
    assert describe_commit()["is_modified"] is False
    assert changes_digest() is None
    (tmp_path / "code.py").write_text("2")
    assert describe_commit()["is_modified"] is True
    digest = changes_digest()
    assert digest is not None
    (tmp_path / "code.py").write_text("3")
    assert changes_digest() not in (None, digest)
