"""Documents and tools: flags and ``/rag``, in this process and against a service."""

from functools import partial

import pytest

from latentmas_core import ConfigError, EngineConfig, LatentMASSystem
from latentmas_core.cli import flags as cli_flags
from latentmas_core.cli.local import LocalBackend
from latentmas_core.cli.rag import as_field, name_of, read_json, read_source
from latentmas_core.context.tools import Tool
from tests.cli.conftest import SHORT, run_cli
from tests.cli.conftest import read_json as read_result
from tests.scripted_model import CONCLUSION, make_scripted_model

QUESTION = "When does the library open?"
TEXT = "The library opens at nine and closes at six."
SHOWN = (*SHORT, "--mode", "single")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hours.txt").write_text(TEXT)
    (tmp_path / "fees.md").write_text("# Fees\n\nA card costs five euros.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def texts_of(request) -> list[str]:
    return [one if isinstance(one, str) else one.text for one in request.documents]


def test_a_document_is_shown_to_the_agents(place, folder):
    place.ask_well("ask", QUESTION, *SHOWN, "--rag-docs", str(folder / "hours.txt"))
    assert texts_of(place.asked()) == [TEXT]
    assert place.asked().documents[0].name == "hours.txt"


def test_a_folder_is_read_whole_and_what_is_left_out_is_told(place, folder):
    result = place.ask_well("ask", QUESTION, *SHOWN, "--rag-docs", str(folder))
    assert [one.name for one in place.asked().documents] == ["fees.md", "hours.txt"]
    assert "picture.png" in result.stderr


def test_documents_may_be_json(place):
    documents = f'["{TEXT}", {{"name": "fees", "text": "five euros"}}]'
    place.ask_well("ask", QUESTION, *SHOWN, "--rag-docs-json", documents)
    assert texts_of(place.asked()) == [TEXT, "five euros"]


def test_flags_for_documents_add_up_in_their_order(place, folder):
    flags = ("--rag-docs", str(folder / "hours.txt"), "--rag-docs", str(folder / "fees.md"))
    place.ask_well("ask", QUESTION, *SHOWN, *flags, "--rag-docs-json", '"more"')
    assert [text[:5] for text in texts_of(place.asked())] == ["The l", "# Fee", "more"]


def test_address_goes_to_the_service_which_fetches_it(service):
    flags = ("--rag-data-url", "https://example.com/hours.html")
    run_cli("ask", QUESTION, "--endpoint", service.url, *flags)
    assert service.reasoner.requests[-1].documents[0].url == flags[1]


def test_address_within_ones_own_network_is_not_fetched_in_this_process(local):
    flags = ("--rag-data-url", "http://127.0.0.1/hours.html")
    result = run_cli("ask", QUESTION, *SHOWN, *flags)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "127.0.0.1" in result.stderr


def test_citations_are_told_under_the_answer_and_in_the_json(local, folder):
    flags = (*SHOWN, "--rag-docs", str(folder / "hours.txt"))
    assert "[1] hours.txt, line 1" in run_cli("ask", QUESTION, *flags).stderr
    result = read_result(run_cli("ask", QUESTION, *flags, "--output-json"))
    assert [citation["text"] for citation in result["citations"]] == [TEXT]


@pytest.mark.parametrize(
    ("flag", "value", "status"),
    [
        ("--rag-docs", "no/such/file.txt", 1),
        ("--rag-docs-json", "{broken", 2),
        ("--rag-docs-json", "5", 2),
        ("--rag-docs-json", '{"text": "a", "colour": "red"}', 2),
        ("--rag-data-url", "http://" + "a" * 3000, 2),
    ],
)
def test_what_is_no_document_is_refused_before_anything_is_asked(place, flag, value, status):
    result = place.ask("ask", QUESTION, *SHOWN, flag, value)
    assert (result.exit_code, result.stdout) == (status, "")
    assert (flag if status == 2 else "cannot be read") in " ".join(result.stderr.split())
    assert place.requests == []


def test_broken_pdf_is_a_failure_that_names_it(place, tmp_path):
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.4 broken")
    result = place.ask("ask", QUESTION, *SHOWN, "--rag-docs", str(tmp_path / "scan.pdf"))
    assert result.exit_code == 1
    assert "scan.pdf" in result.stderr


def test_tools_are_off_unless_they_are_enabled(place):
    place.ask_well("ask", QUESTION, *SHORT)
    assert place.asked().enable_tools is False


def test_tools_are_enabled_for_all_questions(service):
    run_cli("ask", QUESTION, "--endpoint", service.url, "--enable-tools")
    assert service.reasoner.requests[-1].enable_tools is True


@pytest.fixture
def weather(tmp_path, monkeypatch) -> None:
    """In this process answers a model that calls the tool "weather" where it is shown tools."""

    def weather_of(city: str) -> str:
        return f"rain in {city}"

    def opens(model_name, conversations) -> LatentMASSystem:
        folder = make_scripted_model(tmp_path / "scripted")
        config = EngineConfig(model_name=str(folder), device="cpu", kv_cache_bytes=2**24)
        system = LatentMASSystem(engine_config=config).add_default_agents()
        tool = Tool.from_function(weather_of, name="weather", description="What it is like there.")
        return system.add_tool(tool)

    monkeypatch.setattr(cli_flags, "LocalBackend", partial(LocalBackend, opens=opens))


def test_calls_of_tools_are_told_and_the_answer_rests_on_them(weather):
    asked = ("ask", "How is Paris?", "--mode", "single", "--temperature", "0", "--enable-tools")
    result = run_cli(*asked)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Let me look.\n\n{''.join(CONCLUSION)}\n"
    assert 'weather is called: {"city": "Paris"}' in result.stderr
    assert "weather answered: rain in Paris" in result.stderr


def test_calls_of_tools_are_in_the_json(weather):
    asked = ("ask", "How is Paris?", "--mode", "single", "--temperature", "0", "--enable-tools")
    result = read_result(run_cli(*asked, "--output-json"))
    assert [(one["name"], one["text"]) for one in result["tool_calls"]] == [
        ("weather", "rain in Paris")
    ]


def test_model_without_tools_says_so_in_this_process(local):
    result = run_cli("ask", QUESTION, *SHORT, "--enable-tools")
    assert result.exit_code == 1
    assert "tools" in result.stderr


def test_rag_in_a_chat_adds_lists_and_drops(place, folder):
    lines = [f"/rag {folder / 'hours.txt'}", "One?", "/rag", "/rag off", "Two?", "/rag nowhere.txt"]
    result = place.ask("chat", *SHOWN, stdin="\n".join(lines))
    first, second = place.requests[-2:]
    assert texts_of(first) == [TEXT]
    assert second.documents == ()
    assert result.stderr.count("Agents read hours.txt.") == 2
    assert "No document is read." in result.stderr
    assert "cannot be read" in " ".join(result.stderr.split())


def test_source_is_an_address_where_it_looks_like_one(folder):
    (linked,), _ = read_source("HTTPS://example.com/a.pdf")
    assert name_of(linked) == "HTTPS://example.com/a.pdf"
    assert as_field([linked, "text"]) == [{"url": "HTTPS://example.com/a.pdf"}, "text"]


def test_hundred_and_one_documents_are_too_many():
    with pytest.raises(ConfigError, match="up to 100"):
        read_json(str(["a"] * 101).replace("'", '"'))
