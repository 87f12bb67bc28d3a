"""Reading keys: every wrong file is refused by its place, and never by its content."""

import json
import logging
import os

import pytest
import yaml
from typer.testing import CliRunner

from deployments.access import AccessConfig, Limits, Right
from deployments.api.keys import (
    ADMIN_VARIABLE,
    ASK_VARIABLE,
    CHECK_PERIOD_S,
    KeyRing,
    digest_of,
    new_key,
    open_keys,
    read_keys,
    take_keys,
)
from deployments.args import WITHOUT_PATHS, AppArgs
from deployments.keys_command import keys as keys_command
from latentmas_core.errors import ConfigError
from tests.deployments.keys import ALICE, BOB
from tests.deployments.validating import ROOMY, changed, with_args

HASH = digest_of(ALICE).hex()
GROUPS = [{"name": "all", "agents": ["planner", "judger"]}]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def write(path, *entries):
    path.write_text(yaml.safe_dump({"keys": list(entries)}))
    return path


def entry(name="alice", key=ALICE, **fields):
    return {"name": name, "sha256": digest_of(key).hex()} | fields


def test_file_of_keys_is_read(tmp_path):
    bob = entry("bob", BOB, tenant="team", rights=["ask", "admin"], limits={"max_tokens": 5})
    alice, bob = read_keys(write(tmp_path / "keys.yaml", entry(), bob))
    assert (alice.name, alice.tenant, alice.rights) == ("alice", "alice", {Right.ASK})
    assert (bob.tenant, bob.rights) == ("team", {Right.ASK, Right.ADMIN})
    assert bob.limits == Limits(max_tokens=5)


def test_json_and_a_list_alone_will_do(tmp_path):
    path = tmp_path / "keys"
    path.write_text(json.dumps({"keys": [entry()]}))
    (first,) = read_keys(path)
    path.write_text(yaml.safe_dump([entry()]))
    assert read_keys(path) == (first,)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "is wrong"),
        ("keys: []", "keys: Tuple should have at least 1 item"),
        (f"{ALICE}: alice", "at keys: Field required"),
        (f"keys: [{{name: a, sha256: {HASH}}}]\n{ALICE}: x", "unknown field. Known are keys"),
        (f"keys: [{ALICE}]", "at keys\\[0\\]"),
        (f"keys: [{{name: alice, key: {ALICE}, sha256: {HASH}}}]", "unknown field at keys\\[0\\]"),
        (f"keys: [{{name: alice, sha256: {ALICE}}}]", "at keys\\[0\\].sha256: String should match"),
        (f"keys: [{{name: 'sk {ALICE}', sha256: {HASH}}}]", "at keys\\[0\\].name"),
        (f"keys: [{{name: a, sha256: {HASH}, rights: [{ALICE}]}}]", "rights\\[0\\]: .*'ask' or"),
        (f"keys: [{{name: a, sha256: {HASH}, rights: []}}]", "rights"),
        (f"keys: [{{name: a, sha256: {HASH}, limits: {{max_token: 3}}}}]", "max_requests_per_minu"),
        (f"keys: [{{name: a, sha256: {HASH}, limits: {{max_tokens: 0}}}}]", "limits.max_tokens"),
        (f"keys: [{{name: {ALICE}", "no YAML in line 1"),
        (f"{ALICE}\n\tx: [", "no YAML in line"),
    ],
)
def test_wrong_file_is_told_by_its_place_and_not_by_what_it_holds(tmp_path, document, said):
    path = tmp_path / "keys.yaml"
    path.write_text(document)
    with pytest.raises(ConfigError, match=said) as caught:
        read_keys(path)
    assert str(path) in caught.value.message
    for shown in (str(caught.value), repr(caught.value.__cause__)):
        assert ALICE not in shown
        assert HASH not in shown


def test_file_that_is_not_there_or_is_no_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.*No such file"):
        read_keys(tmp_path / "absent")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.*no UTF-8"):
        read_keys(path)


@pytest.mark.parametrize(
    "second", [entry("alice", BOB), entry("bob", ALICE)], ids=["one name", "one key"]
)
def test_two_entries_of_one_name_or_one_key_are_refused(tmp_path, second):
    with pytest.raises(ConfigError, match=r"(two keys are called|are one key)") as caught:
        read_keys(write(tmp_path / "keys.yaml", entry(), second))
    assert HASH not in caught.value.message


def test_environment_gives_keys_and_keeps_none():
    environ = {
        ASK_VARIABLE: f"alice:{ALICE}, bob:sha256:{digest_of(BOB).hex()}\nlm-nameless-0123456789",
        ADMIN_VARIABLE: "root:lm-root-0123456789abcdef",
        "OTHER": "stays",
    }
    keys = take_keys(environ)
    assert [key.name for key in keys] == ["alice", "bob", "key-3", "root"]
    assert keys[0].digest == digest_of(ALICE)
    assert keys[1].digest == digest_of(BOB)
    assert [Right.ADMIN in key.rights for key in keys] == [False, False, False, True]
    assert environ == {"OTHER": "stays"}


@pytest.mark.parametrize(
    "wrong", ["short", "alice:short", "a b:", "alice:sha256:abcd", "alice:sha256:" + "x" * 64, ":k"]
)
def test_wrong_entry_of_the_environment_is_told_by_its_number(wrong):
    with pytest.raises(ConfigError, match=rf"entry \d of {ASK_VARIABLE}") as caught:
        take_keys({ASK_VARIABLE: wrong})
    assert "short" not in caught.value.message


def test_one_name_in_file_and_environment_is_refused(tmp_path):
    config = AccessConfig(keys_file=write(tmp_path / "keys.yaml", entry()))
    with pytest.raises(ConfigError, match="two keys are called 'alice'"):
        open_keys(config, {ASK_VARIABLE: f"alice:{BOB}"})


def test_open_service_says_so_in_the_log(caplog):
    assert open_keys(AccessConfig(), {}).is_empty
    assert "no API keys" in caplog.text


def test_service_that_requires_keys_does_not_start_without():
    config = AccessConfig(require_keys=True)
    with pytest.raises(ConfigError, match="require_keys"):
        open_keys(config, {ASK_VARIABLE: "  "})
    assert len(open_keys(config, {ASK_VARIABLE: ALICE})) == 1


def test_new_key_of_the_file_holds_and_a_removed_one_does_not_without_a_restart(tmp_path):
    clock = Clock()
    path = write(tmp_path / "keys.yaml", entry())
    keys = KeyRing(path, clock=clock)
    write(path, entry("bob", BOB, tenant="changed"))
    assert keys.find(ALICE) is not None, "the file is looked at only once in a while"
    clock.now += CHECK_PERIOD_S
    assert keys.find(ALICE) is None
    assert keys.find(BOB).tenant == "changed"


@pytest.mark.parametrize("becomes", ["broken", "gone", "empty"])
def test_file_that_becomes_wrong_changes_nothing_and_never_opens_the_service(
    tmp_path, caplog, becomes
):
    clock = Clock()
    path = write(tmp_path / "keys.yaml", entry())
    keys = KeyRing(path, clock=clock)
    match becomes:
        case "gone":
            path.unlink()
        case "empty":
            path.write_text("")
        case "broken":
            path.write_text(f"keys: [{{name: {ALICE}")
    clock.now += CHECK_PERIOD_S
    assert keys.find(ALICE).name == "alice"
    assert keys.find(BOB) is None
    assert not keys.is_empty
    assert "the keys stay as they were" in caplog.text
    assert ALICE not in caplog.text
    write(path, entry("bob", BOB))
    clock.now += CHECK_PERIOD_S
    assert keys.find(BOB).name == "bob"


def test_link_that_is_set_to_another_file_is_seen(tmp_path):
    """That is how Kubernetes changes a mounted secret."""
    clock = Clock()
    link = tmp_path / "keys.yaml"
    link.symlink_to(write(tmp_path / "one", entry()))
    keys = KeyRing(link, clock=clock)
    other = tmp_path / "other"
    other.symlink_to(write(tmp_path / "two", entry("bob", BOB)))
    os.replace(other, link)
    clock.now += CHECK_PERIOD_S
    assert keys.find(BOB) is not None


def test_new_keys_are_long_and_differ():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 40


def test_args_with_a_wrong_keys_file_are_refused_where_its_path_is_of_here(tmp_path):
    values = {"groups": GROUPS, "access": {"keys_file": str(tmp_path / "absent")}}
    with pytest.raises(ValueError, match=r"keys_file .*absent.*cannot be read"):
        AppArgs.model_validate(values)
    assert AppArgs.model_validate(values, context=WITHOUT_PATHS).access.keys_file is not None


def test_validate_names_the_wrong_keys_file_and_none_of_its_content(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{name: {ALICE}}}]")
    result = changed(tmp_path, with_args(access={"keys_file": str(path)}), *ROOMY)
    assert result.exit_code == 1
    assert "applications[0].args.access" in result.stderr
    assert "keys[0].sha256: Field required" in result.stderr
    assert ALICE not in result.output


def test_validate_names_misspelt_limits(tmp_path):
    access = {"limits": {"max_token": 5}}
    result = changed(tmp_path, with_args(access=access), *ROOMY)
    assert "args.access.limits.max_token: unknown key 'max_token'" in result.stderr
    assert "Did you mean 'max_tokens'?" in result.stderr


def make(*arguments):
    return CliRunner().invoke(keys_command, ["new", *arguments])


def test_command_makes_a_key_whose_entry_the_service_takes(tmp_path):
    result = make("alice", "--admin", "--tenant", "team")
    assert result.exit_code == 0, result.output
    path = tmp_path / "keys.yaml"
    path.write_text(result.stdout)
    key = result.stderr.split()[-1]
    assert key not in result.stdout, "the file would hold it"
    found = KeyRing(path).find(key)
    assert (found.name, found.tenant, found.rights) == ("alice", "team", set(Right))


def test_command_makes_an_entry_for_the_environment():
    result = make("alice", "--for", "env")
    variable, _, value = result.stdout.strip().partition("=")
    (key,) = take_keys({variable: value})
    assert key.digest == digest_of(result.stderr.split()[-1])


@pytest.mark.parametrize(
    "arguments",
    [("a b",), ("alice", "--tenant", "a b"), ("alice", "--for", "env", "--tenant", "t")],
)
def test_command_refuses_what_the_service_would(arguments):
    result = make(*arguments)
    assert result.exit_code == 2
    assert "lm-" not in result.output


def test_reading_keys_again_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    path = write(tmp_path / "keys.yaml", entry())
    keys = KeyRing(path, clock=clock)
    write(path, entry(), entry("bob", BOB))
    clock.now += CHECK_PERIOD_S
    keys.find(ALICE)
    assert "the keys were read again: 2" in caplog.text
