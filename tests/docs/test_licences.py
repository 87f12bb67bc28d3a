"""Every dependency that a user installs is listed with its licence."""

import re

from tools.licences import PAGE, UNTOLD, declared_names, licence_of, needed_by


def listed() -> dict[str, str]:
    rows = re.findall(r"^\| ([\w.-]+) \| (.+) \|$", PAGE.read_text(), flags=re.M)
    return {name: licence for name, licence in rows if name != "package"}


def test_every_declared_dependency_is_listed_with_a_licence() -> None:
    page = listed()
    for name in declared_names():
        assert page[name] not in (UNTOLD, "not installed here"), name


def test_what_is_installed_with_them_is_listed_as_it_says_itself() -> None:
    page = listed()
    # Another build of torch brings packages of its own.
    for name in needed_by(declared_names()) & page.keys():
        assert page[name] == licence_of(name), f"{name}: python -m tools.licences"


def test_what_dependencies_need_is_found_through_others() -> None:
    found = needed_by({"httpx"})
    assert {"httpx", "httpcore", "h11", "certifi"} <= found
