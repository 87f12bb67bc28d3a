"""``latentmas chat`` on a pseudo-terminal: slash commands, the live view, Ctrl-C and Ctrl-D."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import SHORT, Service
from tests.cli.terminal import TIMEOUT_S, Terminal, chat
from tests.deployments.page.scripted import ANSWER

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def used_local_terminal(tiny_llama, tmp_path_factory) -> Iterator[Terminal]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user")))
        with Terminal("-m", "tests.cli.gated_chat", str(tiny_llama), *SHORT) as terminal:
            terminal.read_to_prompt()
            yield terminal
            terminal.press("d")
            assert terminal.exit_status() == 0  # the program checks that nothing is left


@pytest.fixture(scope="module")
def used_remote_terminal(running_service: Service) -> Iterator[Terminal]:
    with chat("--endpoint", running_service.url) as terminal:
        terminal.read_to_prompt()
        yield terminal


def as_at_first(terminal: Terminal) -> Terminal:
    for line in ("/clear", "/lora off", "/rag off", "/mode latent", "/pipeline hierarchical"):
        terminal.say(line)
    return terminal


@pytest.fixture
def local_terminal(used_local_terminal: Terminal) -> Terminal:
    return as_at_first(used_local_terminal)


@pytest.fixture
def remote_terminal(service: Service, used_remote_terminal: Terminal) -> Terminal:
    return as_at_first(used_remote_terminal)


@pytest.fixture(params=["local", "remote"])
def terminal(request) -> Terminal:
    return request.getfixturevalue(f"{request.param}_terminal")


def saved(terminal: Terminal, path) -> list[dict[str, str]]:
    """What was said, as the chat itself writes it down."""
    assert "written to" in terminal.say(f"/save {path}")
    return json.loads(path.read_text())


def wait_until_asked(service: Service) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not service.reasoner.requests:
        assert time.monotonic() < deadline, "no question came to the service"
        time.sleep(0.01)


def test_agents_are_shown_while_they_think_and_the_answer_follows(terminal):
    printed = terminal.say(QUESTION)
    for name in ("planner", "critic", "refiner", "judger"):
        assert name in printed
    assert "done" in printed
    assert "hierarchical, latent:" in printed


def test_hand_offs_of_a_service_are_shown_in_bytes(service, remote_terminal):
    assert "MiB of memory handed over" in remote_terminal.say(QUESTION)


def test_help_lists_every_command(terminal):
    printed = terminal.say("/help")
    for command in ("help", "clear", "save", "pipeline", "mode", "lora", "rag", "sessions", "exit"):
        assert f"/{command}" in printed


def test_a_second_question_is_asked_with_the_first_and_its_answer(terminal, tmp_path):
    terminal.say(QUESTION)
    terminal.say("And of Italy?")
    messages = saved(terminal, tmp_path / "talk.json")
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert [one["content"] for one in messages[::2]] == [QUESTION, "And of Italy?"]


def test_history_reaches_the_service(service, remote_terminal):
    remote_terminal.say(QUESTION)
    remote_terminal.say("And of Italy?")
    history = service.reasoner.requests[-1].history
    assert [(one.role, one.content) for one in history] == [
        ("user", QUESTION),
        ("assistant", ANSWER),
    ]


def test_clear_forgets_what_was_said(terminal, tmp_path):
    terminal.say(QUESTION)
    terminal.say("/clear")
    assert saved(terminal, tmp_path / "talk.json") == []


def test_save_writes_over_its_own_file_only(terminal, tmp_path):
    saved(terminal, tmp_path / "own.json")
    saved(terminal, tmp_path / "own.json")
    (tmp_path / "other.json").write_text("precious")
    assert "exists already" in terminal.say(f"/save {tmp_path / 'other.json'}")
    assert (tmp_path / "other.json").read_text() == "precious"


def test_save_into_a_folder_that_is_not_there_is_refused(terminal, tmp_path):
    assert "cannot be written" in terminal.say(f"/save {tmp_path / 'no' / 'talk.json'}")


def test_pipeline_lists_and_chooses(terminal):
    listed = terminal.say("/pipeline")
    assert "* hierarchical: planner, critic, refiner, judger" in listed
    assert "  parallel: medical, math, coder, judger" in listed
    terminal.say("/pipeline parallel")
    assert "* parallel" in terminal.say("/pipeline")
    assert "parallel, latent:" in terminal.say(QUESTION)


def test_unknown_pipeline_is_refused_and_nothing_changes(terminal):
    assert "'no_such' does not exist" in terminal.say("/pipeline no_such")
    assert "* hierarchical" in terminal.say("/pipeline")


def test_mode_tells_and_chooses(terminal):
    assert "latent" in terminal.say("/mode")
    terminal.say("/mode single")
    assert "hierarchical, single:" in terminal.say(QUESTION)
    assert "'loud' does not exist" in terminal.say("/mode loud")


def test_lora_of_a_service_is_used_until_it_is_off(service, remote_terminal):
    assert "No adapter" in remote_terminal.say("/lora off")
    assert "use mine" in remote_terminal.say("/lora mine")
    remote_terminal.say(QUESTION)
    assert set(service.reasoner.requests[-1].adapters.values()) == {"mine"}
    remote_terminal.say("/lora off")
    remote_terminal.say(QUESTION)
    assert service.reasoner.requests[-1].adapters == {}


def test_lora_in_this_process_is_loaded_from_its_folder(local_terminal, adapter_folder):
    assert "use mine" in local_terminal.say(f"/lora {adapter_folder}")
    assert "All agents use mine" in local_terminal.say("/lora")
    assert "hierarchical, latent:" in local_terminal.say(QUESTION)
    assert "No adapter" in local_terminal.say("/lora off")


def test_lora_that_is_not_there_is_refused_and_nothing_changes(terminal):
    assert "error:" in terminal.say("/lora no_such_adapter")
    assert "No adapter" in terminal.say("/lora")


def test_rag_is_read_listed_and_dropped(terminal, tmp_path):
    (tmp_path / "hours.txt").write_text("The library opens at nine.")
    assert "Agents read hours.txt." in terminal.say(f"/rag {tmp_path / 'hours.txt'}")
    assert "Agents read hours.txt." in terminal.say("/rag")
    assert "latent:" in terminal.say(QUESTION)
    assert "No document is read." in terminal.say("/rag off")


def test_document_that_is_not_there_is_refused_and_nothing_changes(terminal):
    assert "cannot be read" in terminal.say("/rag no_such.txt")
    assert "No document is read." in terminal.say("/rag")


def test_sessions_of_a_service_are_listed(remote_terminal):
    assert "  kept: One? (2 turns)" in remote_terminal.say("/sessions")


def test_sessions_of_this_process_are_listed(local_terminal):
    local_terminal.say("/sessions mine")
    local_terminal.say(QUESTION)
    assert f"* mine: {QUESTION} (1 turns)" in local_terminal.say("/sessions")


def test_unknown_command_is_refused_with_a_hint(terminal):
    assert "Did you mean /pipeline?" in terminal.say("/pipelin parallel")
    assert "/help lists" in terminal.say("/xyzzy")


def test_a_line_can_be_edited(service, remote_terminal):
    left = "\x1b[D"
    remote_terminal.say(f"Whn?{left}{left}e")
    assert service.reasoner.requests[-1].question == "When?"


def test_text_that_would_steer_the_terminal_is_shown_without_its_power(service, remote_terminal):
    service.reasoner.answer = "red \x1b[31m bell \x07 end"
    remote_terminal.child.sendline(QUESTION)
    remote_terminal.wait_for("red \ufffd[31m bell \ufffd end")
    remote_terminal.read_to_prompt()


def test_ctrl_c_in_an_answer_ends_it_at_the_service_and_keeps_the_talk_whole(
    service, remote_terminal
):
    service.reasoner.may_go_on.clear()
    remote_terminal.child.sendline("A question whose answer takes long")
    wait_until_asked(service)
    remote_terminal.press("c")
    assert "given up" in remote_terminal.read_to_prompt()
    assert service.reasoner.has_left.wait(TIMEOUT_S)
    service.reasoner.may_go_on.set()
    assert ANSWER in remote_terminal.say(QUESTION)
    request = service.reasoner.requests[-1]
    assert (request.question, request.history) == (QUESTION, ())


@pytest.mark.parametrize("place", ["/clear", "/sessions interrupted"])
def test_ctrl_c_in_an_answer_of_this_process_keeps_the_talk_whole(local_terminal, tmp_path, place):
    """In memory, and in a database."""
    local_terminal.say(place)
    local_terminal.child.sendline("A question whose answer takes long")
    local_terminal.wait_for("HELD")
    local_terminal.press("c")
    assert "given up" in local_terminal.read_to_prompt()
    assert "latent:" in local_terminal.say(QUESTION)
    messages = saved(local_terminal, tmp_path / "talk.json")
    assert [one["content"] for one in messages[::2]] == [QUESTION]


@pytest.mark.parametrize(("key", "status"), [("d", 0), ("c", 130)])
def test_keys_at_the_prompt_leave(service, key, status):
    with chat("--endpoint", service.url) as terminal:
        terminal.read_to_prompt()
        terminal.press(key)
        assert terminal.exit_status() == status


def test_exit_leaves(service):
    with chat("--endpoint", service.url) as terminal:
        terminal.read_to_prompt()
        terminal.child.sendline("/exit")
        assert terminal.exit_status() == 0


def test_ctrl_c_ends_a_single_question_with_status_130(service):
    service.reasoner.may_go_on.clear()
    ask = ("-m", "latentmas_core.cli", "ask", QUESTION, "--endpoint", service.url)
    with Terminal(*ask) as terminal:
        wait_until_asked(service)
        terminal.press("c")
        assert terminal.exit_status() == 130
    assert service.reasoner.has_left.wait(TIMEOUT_S)
