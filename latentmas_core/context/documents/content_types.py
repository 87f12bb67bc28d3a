"""What a web server says of its content: the format, the charset, how it is packed."""

import zlib
from collections.abc import Iterator
from email.message import Message

from latentmas_core.context.documents.readers import Format, format_of
from latentmas_core.errors import DocumentError

_FORMATS = {
    "text/plain": Format.TEXT,
    "text/markdown": Format.MARKDOWN,
    "text/x-markdown": Format.MARKDOWN,
    "text/csv": Format.CSV,
    "text/tab-separated-values": Format.CSV,
    "text/html": Format.HTML,
    "application/xhtml+xml": Format.HTML,
    "application/json": Format.JSON,
    "text/json": Format.JSON,
    "application/pdf": Format.PDF,
}
# Servers say these of files that they know nothing about.
_VAGUE = frozenset({"", "text/plain", "application/octet-stream", "binary/octet-stream"})
# What text on the web is written in. Python knows more codecs, and not all are made for strangers.
_UTF8 = {"utf-8", "utf8"}
_WIDE = {"utf-16", "utf-16le", "utf-16be"}
_WESTERN = {"us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "latin1", "windows-1252"}
_EASTERN = {"iso-8859-2", "windows-1250", "windows-1251", "koi8-r"}
_ASIAN = {"shift_jis", "euc-jp", "euc-kr", "gb2312", "gbk", "gb18030", "big5"}
_CHARSETS = _UTF8 | _WIDE | _WESTERN | _EASTERN | _ASIAN
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def format_of_response(content_type: str, path: str, url: str) -> Format:
    """The format that ``content_type`` says; where that is vague, the ending of ``path``.

    Raises DocumentError for a picture, a program, and whatever else has no reader.
    """
    message = _parsed(content_type)
    kind = message.get_content_type() if content_type else ""
    if kind in _VAGUE and (by_name := format_of(path)):
        return by_name
    if kind.endswith("+json"):
        return Format.JSON
    if kind not in _FORMATS:
        raise DocumentError(
            f"url {url!r} is {kind or 'of no known type'}. Use one that is served as "
            f"{', '.join(_FORMATS)}.",
            param="documents",
        )
    return _FORMATS[kind]


def recoded(content: bytes, content_type: str, url: str) -> bytes:
    """Text in the charset that ``content_type`` names, in UTF-8; untouched if it names none."""
    charset = str(_parsed(content_type).get_content_charset() or "utf-8")
    if charset not in _CHARSETS:
        raise DocumentError(
            f"url {url!r} is in the charset {charset[:40]!r}, which is not read. Serve it as "
            "UTF-8.",
            param="documents",
        )
    if charset in _UTF8:
        return content
    return content.decode(charset, errors="replace").encode()


class Unpacker:
    """Bytes as they come off the wire to bytes of the document, never more than a limit at once."""

    def __init__(self, content_encoding: str, url: str) -> None:
        """Raises DocumentError for a packing that was not asked for and is not read."""
        name = content_encoding.strip().lower()
        if name not in ("", "identity", *_WINDOW_BITS):
            raise DocumentError(
                f"url {url!r} is packed as {name[:40]!r}, which is not read. Serve it unpacked, or "
                "as gzip.",
                param="documents",
            )
        self._url = url
        self._inflater = zlib.decompressobj(_WINDOW_BITS[name]) if name in _WINDOW_BITS else None

    def unpack(self, packed: bytes, max_bytes: int) -> Iterator[bytes]:
        """At most ``max_bytes`` at a time, so that a small bomb fills no memory: the caller stops
        when it has had enough."""
        if self._inflater is None:
            yield packed
            return
        while packed:
            try:
                yield self._inflater.decompress(packed, max_bytes)
            except zlib.error:
                raise self._broken() from None
            packed = self._inflater.unconsumed_tail

    def finish(self) -> None:
        """Raises DocumentError if what was packed ended before its end."""
        if self._inflater is not None and not self._inflater.eof:
            raise self._broken()

    def _broken(self) -> DocumentError:
        return DocumentError(
            f"url {self._url!r} is packed, and cannot be unpacked. Serve it unpacked.",
            param="documents",
        )


def _parsed(content_type: str) -> Message:
    message = Message()
    message["Content-Type"] = " ".join(content_type.split()) or "application/octet-stream"
    return message
