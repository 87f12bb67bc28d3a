"""Web addresses in one strict reading, so that what is checked is what is fetched."""

import re
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from latentmas_core.errors import DocumentError

MAX_SHOWN_CHARS = 200

_PORTS = {"http": 80, "https": 443}
# Parsers disagree on these; no address has them unescaped.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@]+)(:[0-9]*)?")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_SAFE = "!$%&'()*+,/:;=?@-._~"


class WebAddress(NamedTuple):
    """``host`` in lower case, without brackets; ``target`` is the path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.target}"


def parsed_url(url: str) -> WebAddress:
    """Raises DocumentError for all but http and https, for credentials, and for what parsers read
    in more than one way."""
    if _AMBIGUOUS.search(url):
        raise _refused(url, "holds a blank, a backslash or a control character. Escape it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url, f"is no address ({error}). Correct it") from None
    if parts.scheme not in _PORTS:
        raise _refused(url, "is not fetched: only http and https are. Change it")
    if "@" in parts.netloc:
        raise _refused(url, "names a user. Leave credentials out")
    if not host:
        raise _refused(url, "names no host. Add it")
    if not _NETLOC.fullmatch(parts.netloc):
        raise _refused(url, "names no valid host. Correct it")
    return WebAddress(
        scheme=parts.scheme,
        host=_ascii(host, url),
        port=_PORTS[parts.scheme] if port is None else port,
        target=quote(parts.path or "/", safe=_SAFE)
        + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""),
    )


def shown(url: str) -> str:
    """``url`` for a message: without credentials, query and fragment, and not too long."""
    place = re.split(r"[?#]", url)[0]
    place = re.sub(r"//[^/]*@", "//", place)
    return place if len(place) <= MAX_SHOWN_CHARS else f"{place[:MAX_SHOWN_CHARS]}..."


def _ascii(host: str, url: str) -> str:
    """The name as a resolver is asked for it. Other scripts are spelt in ASCII (IDNA), which also
    turns digits in circles into digits: whatever comes of it is checked as what it resolves to."""
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _refused(url, "names no valid host. Correct it") from None
    if not _HOST.fullmatch(name.lower()):
        raise _refused(url, "names no valid host. Correct it")
    return name.lower()


def _refused(url: str, why: str) -> DocumentError:
    return DocumentError(f"url {shown(url)!r} {why}, or leave the document out.", param="documents")
