"""What a reader of an HTML page sees of it: text in paragraphs, without markup and scripts."""

import re
from html.parser import HTMLParser

_UNSEEN = {"script", "style", "noscript", "template", "svg"}
_HEADINGS = {"title", "h1", "h2", "h3", "h4", "h5", "h6"}
_PARAGRAPHS = _HEADINGS | {"p", "article", "section", "table", "ul", "ol", "blockquote"}
_PLACES = {"body", "main", "nav", "header", "footer", "aside", "address", "form", "fieldset"}
_CELLS = {"thead", "tbody", "tfoot", "tr", "th", "td", "li", "dl", "dt", "dd"}
_BLOCKS = _PARAGRAPHS | _PLACES | _CELLS | {"br", "hr", "div", "pre", "figure", "figcaption"}


def html_text(page: str) -> str:
    """Never fails: what is no HTML is text."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    text = re.sub(r"[^\S\n]+", " ", "".join(parser.pieces))
    return re.sub(r" ?\n ?", "\n", re.sub(r"\n\s*\n", "\n\n", text)).strip()


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._unseen: str | None = None  # the element that is open and shows nothing

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._unseen is None and tag in _UNSEEN:
            self._unseen = tag
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._unseen:
            self._unseen = None
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._unseen is None:
            self.pieces.append(re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.pieces.append("\n\n" if tag in _PARAGRAPHS else "\n")
