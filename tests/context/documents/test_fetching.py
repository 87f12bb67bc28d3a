import asyncio
import gzip
import json
import zlib

import pytest

from latentmas_core.context.documents.document import InlineDocument, LinkedDocument
from latentmas_core.context.documents.fetching import Fetcher, FetchPolicy
from latentmas_core.context.documents.gathering import gather_documents
from latentmas_core.context.documents.readers import ReadLimits
from latentmas_core.errors import DocumentError
from tests.context.documents.pdfs import pdf_of
from tests.context.documents.web import OTHER_PUBLIC, PUBLIC, Names, Network, redirect, response

HOST = "a.example"


def fetcher_of(network: Network, policy: FetchPolicy | None = None, **kwargs) -> Fetcher:
    names = Names({HOST: [[PUBLIC]], "b.example": [[OTHER_PUBLIC]]})
    return Fetcher(policy or FetchPolicy(), resolver=names, network=network, **kwargs)


async def test_the_connection_goes_to_the_address_and_the_name_to_the_server() -> None:
    network = Network(response(b"hello"))
    document = await fetcher_of(network).fetch(f"https://{HOST}/notes/a.txt?v=1#part")
    assert (document.name, document.text) == ("a.txt", "hello")
    assert document.url == f"https://{HOST}/notes/a.txt?v=1"
    assert network.connected == [(PUBLIC, 443)]
    assert network.server_names == [HOST]
    assert network.sent.startswith(b"GET /notes/a.txt?v=1 HTTP/1.1\r\n")
    assert f"host: {HOST}\r\n".encode() in network.sent.lower()


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    network = Network(response(b"hello"))
    await fetcher_of(network).fetch(f"http://{HOST}/")
    assert network.connected == [(PUBLIC, 80)]
    assert b"authorization" not in network.sent.lower()
    assert b"cookie" not in network.sent.lower()


async def test_the_next_address_is_tried_where_the_first_does_not_answer() -> None:
    network = Network(response(b"hello"), unreachable=[PUBLIC])
    names = Names({HOST: [[PUBLIC, OTHER_PUBLIC]]})
    await Fetcher(resolver=names, network=network).fetch(f"http://{HOST}/")
    assert network.connected == [(OTHER_PUBLIC, 80)]


async def test_redirects_are_followed_to_their_end() -> None:
    network = Network(
        redirect("/b"), redirect("https://b.example/c/"), redirect("d.md"), response(b"found")
    )
    document = await fetcher_of(network).fetch(f"http://{HOST}/a")
    assert (document.name, document.url) == ("d.md", "https://b.example/c/d.md")
    assert network.connected == [
        (PUBLIC, 80),
        (PUBLIC, 80),
        (OTHER_PUBLIC, 443),
        (OTHER_PUBLIC, 443),
    ]


async def test_more_redirects_than_the_limit_are_refused() -> None:
    network = Network(*[redirect("/again")] * 9)
    with pytest.raises(DocumentError, match=r"redirects more than max_redirects \(5\)"):
        await fetcher_of(network).fetch(f"http://{HOST}/")
    assert len(network.connected) == 6


@pytest.mark.parametrize(
    ("content_type", "path", "body", "text"),
    [
        ("text/plain; charset=utf-8", "/a", "grün".encode(), "grün"),
        ("text/html; charset=ISO-8859-1", "/", "<p>grün</p>".encode("latin-1"), "grün"),
        ("text/markdown", "/a.txt", b"# T", "# T"),
        ("application/json", "/api", b'{"a": 1}', "a: 1"),
        ("application/ld+json", "/api", b'{"a": 1}', "a: 1"),
        ("text/csv", "/rows", b"a,b\n1,2", "a: 1 | b: 2"),
        ("application/pdf", "/print", pdf_of("Printed."), "Printed."),
        ("application/octet-stream", "/a.json", b"[7]", "7"),
        ("text/plain", "/a.csv", b"a\n1", "a: 1"),
        ("", "/a.pdf", pdf_of("Printed."), "Printed."),
    ],
)
async def test_the_content_type_says_how_it_is_read(
    content_type: str, path: str, body: bytes, text: str
) -> None:
    network = Network(response(body, content_type=content_type))
    assert (await fetcher_of(network).fetch(f"http://{HOST}{path}")).text == text


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity"])
async def test_packed_content_is_unpacked(coding: str) -> None:
    text = b"words " * 5000
    body = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding](text)
    network = Network(response(body, Content_Encoding=coding))
    assert (await fetcher_of(network).fetch(f"http://{HOST}/a.txt")).text.encode() == text


BOMB = gzip.compress(b"0" * 2_000_000)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (response(b"x" * 2000), r"has 2000 bytes, .* max_bytes \(1000\)"),
        (b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 2000, "over 1000 bytes"),
        (response(BOMB[:900], Content_Encoding="gzip"), "over 1000 bytes"),
        (response(b"short", content_length="900"), "cannot be reached"),
        (response(gzip.compress(b"text")[:-6], Content_Encoding="gzip"), "cannot be unpacked"),
        (response(b"text", Content_Encoding="gzip"), "cannot be unpacked"),
        (response(b"text", Content_Encoding="br"), "packed as 'br'"),
        (response(b"x", content_type="image/png"), "is image/png. Use one that is served as"),
        (response(b"x", content_type=""), "of no known type"),
        (response(b"x", content_type="text/plain; charset=punycode"), "charset 'punycode'"),
        (response(b"\xff\xff", content_type="text/plain"), "not text"),
        (response(b"{", content_type="application/json"), "no valid JSON"),
        (response(b"", content_type="text/plain"), "holds no text"),
        (response(b"secret page", status=404), "answers with 404"),
        (response(b"secret page", status=500), "answers with 500"),
        (response(status=302), "answers with 302"),
        (b"no http at all\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 30_000, "cannot be reached"),
        (b"", "cannot be reached"),
    ],
)
async def test_an_answer_that_is_no_document_is_refused(answer: bytes, why: str) -> None:
    network = Network(answer)
    with pytest.raises(DocumentError, match=why) as refusal:
        await fetcher_of(network, FetchPolicy(max_bytes=1000)).fetch(f"http://{HOST}/page")
    assert "secret" not in refusal.value.message
    assert refusal.value.param == "documents"


async def test_a_long_query_is_not_told_in_messages() -> None:
    with pytest.raises(DocumentError) as refusal:
        await fetcher_of(Network(response(status=404))).fetch(f"http://{HOST}/p?token=secret")
    assert "secret" not in refusal.value.message
    assert f"'http://{HOST}/p'" in refusal.value.message


async def test_names_that_nobody_knows_and_servers_that_are_away_are_told() -> None:
    with pytest.raises(DocumentError, match="cannot be reached"):
        await fetcher_of(Network()).fetch("http://unknown.example/")
    with pytest.raises(DocumentError, match="cannot be reached"):
        await fetcher_of(Network(unreachable=[PUBLIC])).fetch(f"http://{HOST}/")


async def test_limits_of_reading_hold_for_what_was_fetched() -> None:
    network = Network(response(b"x" * 20))
    with pytest.raises(DocumentError, match=r"max_chars \(10\)"):
        await fetcher_of(network, limits=ReadLimits(max_chars=10)).fetch(f"http://{HOST}/a.txt")


async def test_a_server_that_never_ends_is_left_after_the_timeout() -> None:
    done = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        await reader.read()  # until the other side is gone
        writer.close()
        done.set()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        policy = FetchPolicy(
            timeout_s=0.2, allowed_ports=(port,), allowed_networks=("127.0.0.0/8",)
        )
        with pytest.raises(DocumentError, match=r"took longer than timeout_s \(0\.2\)"):
            await Fetcher(policy).fetch(f"http://127.0.0.1:{port}/")
        await done.wait()


async def test_a_document_comes_over_a_real_connection_where_that_is_allowed() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(json.dumps({"a": "b"}).encode(), content_type="application/json"))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        policy = FetchPolicy(allowed_ports=(port,), allowed_networks=("127.0.0.0/8",))
        document = await Fetcher(policy).fetch(f"http://127.0.0.1:{port}/x")
        assert (document.name, document.text) == ("x", "a: b")


async def test_documents_are_gathered_in_the_order_of_the_request() -> None:
    network = Network(response(b"fetched"))
    inputs = [
        "plain",
        LinkedDocument(url=f"http://{HOST}/a.txt"),
        InlineDocument(text="inline"),
        InlineDocument(name="named", text="own"),
    ]
    documents = await gather_documents(inputs, fetcher_of(network), max_chars=100)
    assert [(document.name, document.text) for document in documents] == [
        ("document 1", "plain"),
        ("a.txt", "fetched"),
        ("document 3", "inline"),
        ("named", "own"),
    ]


async def test_one_document_that_cannot_be_had_fails_them_all() -> None:
    inputs = ["plain", LinkedDocument(url=f"http://{HOST}/gone.txt")]
    with pytest.raises(DocumentError, match="cannot be reached"):
        await gather_documents(inputs, fetcher_of(Network(unreachable=[PUBLIC])), max_chars=100)


async def test_documents_that_are_too_long_together_are_not_all_fetched() -> None:
    network = Network(*[response(b"x" * 60)] * 9)
    inputs = ["y" * 30, *(LinkedDocument(url=f"http://{HOST}/{n}.txt") for n in range(9))]
    with pytest.raises(DocumentError, match=r"makes 150 characters .* max_chars \(100\)"):
        await gather_documents(inputs, fetcher_of(network), max_chars=100)
    assert len(network.connected) < 9


async def test_redirect_to_what_is_no_address_is_refused() -> None:
    with pytest.raises(DocumentError, match="redirects to what is no address"):
        await fetcher_of(Network(redirect("http://["))).fetch(f"http://{HOST}/a.txt")
