"""The page's files as they are served: what they are, what browsers are told of them, and that they
need nothing and nobody else."""

import fnmatch
import posixpath
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from deployments.playground.routes import ASSETS, MEDIA_TYPES, PAGE_PATHS, PAGES
from tests.deployments.http_calls import assert_error
from tests.deployments.keys import client_of, make_access, make_app

ROOM = ASSETS.parent
PATH_OF_PAGE = {ROOM / name: path for path, name in PAGES.items()}
FILES = [*PATH_OF_PAGE, *sorted(ASSETS.iterdir())]
MAX_LINES = 400
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Markup(HTMLParser):
    """Every tag with its attributes, and the text within scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.embedded = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.embedded += data.strip()

    @property
    def links(self) -> list[str]:
        return [
            value or ""
            for _, attributes in self.tags
            for name, value in attributes.items()
            if name in ("href", "src", "action")
        ]


@pytest.fixture(params=PATH_OF_PAGE, ids=lambda page: page.name)
def markup(request: pytest.FixtureRequest) -> Markup:
    return Markup(request.param.read_text())


def policy_of(response: httpx.Response) -> dict[str, str]:
    rules = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (rule.partition(" ") for rule in rules)}


def path_of(file: Path) -> str:
    return PATH_OF_PAGE.get(file, f"/playground/{file.name}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
async def test_file_is_served_with_its_type_and_the_policy(client, file):
    response = await client.get(path_of(file))
    assert response.status_code == 200
    assert response.content == file.read_bytes()
    assert response.headers["content-type"] == MEDIA_TYPES[file.suffix]
    assert policy_of(response) == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
async def test_head_tells_the_same_without_the_file(client, path):
    whole, head = await client.get(path), await client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    ignored = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in whole.headers.items() if k not in ignored
    }


@pytest.mark.parametrize("path", ["/", "/playground/main.js"])
async def test_what_has_not_changed_is_not_sent_again(client, path):
    tag = (await client.get(path)).headers["etag"]
    response = await client.get(path, headers={"if-none-match": tag})
    assert (response.status_code, response.content) == (304, b"")
    assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground",
        "/playground/",
        "/playground/nothing.js",
        "/playground/index.html",
        "/playground/docs.html",
        "/playground/routes.py",
        "/playground/../routes.py",
        "/playground/%2e%2e/routes.py",
        "/playground/..%2froutes.py",
        "/playground/..%5croutes.py",
        "/playground//etc/passwd",
        "/playground/%00",
        "/playground/" + "x" * 5000,
        "/index.html",
        "/redoc",
    ],
)
async def test_what_is_no_file_of_the_page_is_404_in_the_one_shape(client, path):
    response = await client.get(path, follow_redirects=True)
    assert_error(response, 404, code="not_found")


@pytest.mark.parametrize("path", ["/", "/playground/main.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_the_page_is_only_read(client, path, method):
    response = await client.request(method, path)
    assert_error(response, 405, code="method_not_allowed")


async def test_the_page_needs_no_key_and_what_is_beside_it_does(reasoner):
    async with client_of(make_app(reasoner, make_access())) as client:
        for path in PAGE_PATHS:
            assert (await client.get(path)).status_code == 200
        for path in ("/playground/nothing.js", "/playground/../routes.py", "/playground/"):
            assert_error(await client.get(path), 401, code="invalid_api_key")


async def test_the_page_works_under_a_prefix(reasoner):
    transport = httpx.ASGITransport(make_app(reasoner, make_access()), root_path="/team/app")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        bare = await client.get("/team/app")
        assert bare.is_redirect, "its relative URLs would lead past the prefix"
        assert bare.headers["location"] == "http://test/team/app/"
        for path in PAGES:
            page = await client.get(f"/team/app{path}")
            assert page.status_code == 200
            for link in Markup(page.text).links:
                if not link.startswith("#"):
                    assert (await client.get(f"/team/app/{link}")).status_code == 200, link


async def test_the_page_is_no_call_of_the_api(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not PAGE_PATHS & set(paths)


def test_markup_has_no_script_no_style_and_no_handler_of_its_own(markup):
    assert markup.embedded == ""
    for tag, attributes in markup.tags:
        assert tag != "style"
        assert not {name for name in attributes if name == "style" or name.startswith("on")}
        assert tag != "script" or attributes["type"] == "module"


def test_links_are_relative_and_to_files_that_are_there(markup):
    ids = {attributes.get("id") for _, attributes in markup.tags}
    assert len(markup.links) > 5
    for link in markup.links:
        if link.startswith("#"):
            assert link[1:] in ids
        elif link.startswith("playground/"):
            assert (ROOM / link.replace("playground/", "assets/")).is_file(), link
        else:
            assert link in ("docs", "./", "openapi.json")


def test_every_field_has_a_label_and_every_reference_an_element(markup):
    ids = [attributes["id"] for _, attributes in markup.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in markup.tags if tag == "label"}
    fields = [attributes for tag, attributes in markup.tags if tag in ("select", "textarea")]
    fields += [
        attributes
        for tag, attributes in markup.tags
        if tag == "input" and attributes["type"] not in ("radio", "checkbox")
    ]
    assert fields
    assert {field["id"] for field in fields} <= labelled
    for _, attributes in markup.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attributes or attributes[name] in ids


def test_every_file_is_used_by_a_page():
    links = [link for page in PATH_OF_PAGE for link in Markup(page.read_text()).links]
    used = {posixpath.basename(link) for link in links}
    waiting = [name for name in used if name.endswith(".js")]
    while waiting:
        text = (ASSETS / waiting.pop()).read_text()
        new = set(re.findall(r'from "\./([\w.]+)"', text)) - used
        used |= new
        waiting += new
    assert {path.name for path in ASSETS.iterdir()} == used - {"", "docs", "openapi.json"} - {
        link for link in links if link.startswith("#")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_names_no_other_host_and_makes_no_markup_of_text(file):
    text = file.read_text().replace(SVG_NAMESPACE, "")
    assert not re.findall(r"\b(?:https?|wss?|ftp):|//\w+\.\w|@import|url\(", text)
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    assert not re.findall(sinks, text)
    assert not re.findall(r'"on\w+":|\bstyle: \{|"style":|setAttribute\("style"', text)
    assert len(text.splitlines()) < MAX_LINES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_wheel_carries_the_file(file):
    project = tomllib.loads((ASSETS.parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]
    wanted = [*patterns["*"], *patterns["deployments.playground"]]
    name = file.relative_to(ASSETS.parent).as_posix()
    assert any(
        fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")
        for pattern in wanted
    )
