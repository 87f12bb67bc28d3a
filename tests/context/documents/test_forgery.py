"""Addresses that are meant to make the service fetch what only it can reach: none is fetched."""

import pytest

from latentmas_core.context.documents.fetching import Fetcher, FetchPolicy
from latentmas_core.context.documents.pinned import system_resolver
from latentmas_core.errors import DocumentError
from tests.context.documents.web import OTHER_PUBLIC, PUBLIC, Names, Network, redirect, response

LOOPBACK = [
    "http://127.0.0.1/",
    "https://127.0.0.1/",
    "http://127.0.0.1:80/admin",
    "HTTP://127.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::7f00:1]/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
]
INSIDE = [
    "http://10.0.0.1/",
    "http://172.16.5.4/",
    "http://192.168.0.1/",
    "http://0xc0a80001/",
    "http://3232235521/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://[fd00::1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://169.254.1.1/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://224.0.0.1/",
    "http://[ff02::1]/",
    "http://255.255.255.255/",
]
METADATA = [
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[fd00:ec2::254]/",
    "http://168.63.129.16/",
]
NO_WEB_ADDRESS = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "ftp://public.example/a",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "data:text/plain,secret",
    "jar:http://public.example!/",
    "//127.0.0.1/",
    "/etc/passwd",
    "http:/127.0.0.1/",
    "http:127.0.0.1",
    "http://",
    "http:///etc/passwd",
    "http://[::1/",
    "http://[::1]x/",
    "http://a%2eb/",
]
TRICKS = [
    "http://public.example@127.0.0.1/",
    "http://127.0.0.1@public.example/",
    "http://user:secret@public.example/",
    "http://@public.example/",
    "http://public.example:80@127.0.0.1/",
    "http://public.example\\@127.0.0.1/",
    "http://127.0.0.1\\.public.example/",
    " http://public.example/",
    "http://public.example/ HTTP/1.1\r\nHost: inside",
    "http://pub\nlic.example/",
    "http://public.example\t/",
    "http://public.example\x00.inside/",
    "http://public.example:22/",
    "http://public.example:6379/",
    "http://public.example:0/",
    "http://public.example:99999/",
    "http://public.example:80:80/",
    "http://public.example:-80/",
]
NAMES = {
    "public.example": [[PUBLIC]],
    "inside.example": [["10.1.2.3"]],
    "127.0.0.1.nip.example": [["127.0.0.1"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "half.example": [[PUBLIC, "192.168.1.1"]],
    "six.example": [[OTHER_PUBLIC, "::1"]],
    "zoned.example": [["fe80::1%eth0"]],
    "broken.example": [["not an address"]],
    "empty.example": [[]],
}


async def check_not_fetched(fetcher: Fetcher, url: str, network: Network, hops: int = 0) -> str:
    with pytest.raises(DocumentError) as refusal:
        await fetcher.fetch(url)
    assert len(network.connected) == hops
    return refusal.value.message


@pytest.mark.parametrize("url", LOOPBACK + INSIDE + METADATA)
async def test_an_address_in_figures_is_refused_in_every_spelling(url: str) -> None:
    network = Network()
    fetcher = Fetcher(resolver=system_resolver, network=network)
    message = await check_not_fetched(fetcher, url, network)
    assert "address" in message or "host" in message


@pytest.mark.parametrize("url", METADATA)
async def test_the_class_of_a_metadata_address_is_named(url: str) -> None:
    network = Network()
    message = await check_not_fetched(Fetcher(network=network), url, network)
    assert "a cloud metadata address" in message


@pytest.mark.parametrize("url", NO_WEB_ADDRESS + TRICKS)
async def test_what_is_no_plain_web_address_is_refused_before_any_lookup(url: str) -> None:
    network, names = Network(), Names(NAMES)
    await check_not_fetched(Fetcher(resolver=names, network=network), url, network)
    assert names.asked == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "public.example"])
async def test_a_name_with_any_address_that_is_not_public_is_refused(name: str) -> None:
    network = Network()
    fetcher = Fetcher(resolver=Names(NAMES), network=network)
    message = await check_not_fetched(fetcher, f"http://{name}/", network)
    assert name in message
    assert all(found not in message.replace(name, "") for found in NAMES[name][0])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "//169.254.169.254/latest/",
        "http://inside.example/",
        "file:///etc/passwd",
        "gopher://inside.example/_x",
        "http://user@public.example/",
        "http://public.example:22/",
        "http://[::ffff:10.0.0.1]/",
    ],
)
async def test_a_redirect_is_checked_like_the_first_address(location: str, status: int) -> None:
    network = Network(redirect(location, status))
    names = Names(NAMES | {"127.0.0.1": [["127.0.0.1"]], "169.254.169.254": [["169.254.169.254"]],
                           "::ffff:10.0.0.1": [["::ffff:10.0.0.1"]]})  # fmt: skip
    fetcher = Fetcher(resolver=names, network=network)
    await check_not_fetched(fetcher, "http://public.example/", network, hops=1)
    assert network.connected == [(PUBLIC, 80)]


async def test_a_name_that_changes_between_lookups_gains_nothing() -> None:
    names = Names({"rebind.example": [[PUBLIC], ["127.0.0.1"]]})
    network = Network(response(b"public text"))
    document = await Fetcher(resolver=names, network=network).fetch("http://rebind.example/a.txt")
    assert document.text == "public text"
    assert names.asked == ["rebind.example"]
    assert network.connected == [(PUBLIC, 80)]


async def test_a_name_that_changes_before_a_redirect_to_itself_is_refused() -> None:
    names = Names({"rebind.example": [[PUBLIC], ["127.0.0.1"]]})
    network = Network(redirect("/again"), response(b"secret"))
    fetcher = Fetcher(resolver=names, network=network)
    message = await check_not_fetched(fetcher, "http://rebind.example/", network, hops=1)
    assert "rebind.example stands for a loopback address" in message


async def test_an_operator_may_allow_a_network_and_no_other() -> None:
    policy = FetchPolicy(allowed_networks=("10.1.0.0/16",))
    network = Network(response(b"intranet"))
    fetcher = Fetcher(policy, resolver=Names(NAMES), network=network)
    assert (await fetcher.fetch("http://inside.example/")).text == "intranet"
    assert network.connected == [("10.1.2.3", 80)]
    await check_not_fetched(fetcher, "http://half.example/", network, hops=1)


async def test_an_operator_may_name_the_only_hosts() -> None:
    policy = FetchPolicy(allowed_hosts=("public.example",))
    names = Names(NAMES | {"other.example": [[PUBLIC]]})
    network = Network(response(b"text"), redirect("http://other.example/"))
    fetcher = Fetcher(policy, resolver=names, network=network)
    assert (await fetcher.fetch("http://public.example/")).text == "text"
    message = await check_not_fetched(fetcher, "http://other.example/", network, hops=1)
    assert "allowed_hosts" in message
    await check_not_fetched(fetcher, "http://public.example/", network, hops=2)


def test_the_bar_of_addresses_is_met() -> None:
    assert len({*LOOPBACK, *INSIDE, *METADATA, *NO_WEB_ADDRESS, *TRICKS}) >= 50
