"""``make ask``: the answer as it comes, with a key where the service wants one."""

import pytest

from deployments.ask import KEY_VARIABLE, AskError, ask
from tests.deployments.keys import ALICE, make_access, make_app
from tests.deployments.page.scripted import ANSWER, ScriptedReasoner, serving


@pytest.fixture(scope="module")
def guarded_url():
    with serving(make_app(ScriptedReasoner(), make_access())) as url:
        yield url


def test_key_of_the_environment_lets_it_in(guarded_url, monkeypatch, capsys):
    monkeypatch.setenv(KEY_VARIABLE, ALICE)
    ask(guarded_url, "Why?", pipeline="hierarchical")
    printed = capsys.readouterr().out
    assert f"A: {ANSWER}" in printed
    assert [name in printed for name in ("planner", "critic", "refiner", "judger")] == [True] * 4
    assert ALICE not in printed


def test_without_a_key_it_says_what_is_missing(guarded_url, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(AskError, match="401: an API key is missing"):
        ask(guarded_url, "Why?")
