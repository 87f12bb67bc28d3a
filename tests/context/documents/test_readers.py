import io
import json
import os
from pathlib import Path

import pytest
from pypdf import PdfWriter

from latentmas_core.context.documents.readers import (
    Format,
    ReadLimits,
    read_bytes,
    read_documents,
    read_file,
    read_folder,
)
from latentmas_core.errors import DocumentError
from tests.context.documents.pdfs import pdf_of


def encrypted(content: bytes) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt("secret", algorithm="AES-256")
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def text_or_refusal(content: bytes, name: str) -> str:
    try:
        return read_bytes(content, name).text
    except DocumentError as refusal:
        return refusal.message


@pytest.mark.parametrize("name", ["a.txt", "a.text", "a.md", "A.MARKDOWN"])
def test_text_is_read_as_it_stands(name: str) -> None:
    document = read_bytes("# Tïtle\n\nBody.\n".encode(), name)
    assert (document.name, document.text) == (name, "# Tïtle\n\nBody.\n")
    assert document.page_starts == ()


def test_marks_of_byte_order_and_foreign_line_ends_are_taken_off() -> None:
    assert read_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree", "a.txt").text == "one\ntwo\nthree"
    assert read_bytes("wide ü".encode("utf-16"), "a.txt").text == "wide ü"


def test_json_becomes_lines_of_paths_and_values_in_paragraphs() -> None:
    value = [
        {"name": "Ada", "born": 1815, "tags": ["maths", "poetry"], "none": None},
        {"name": "Alan", "home": {"city": "London"}, "alive": False},
    ]
    assert read_bytes(json.dumps(value).encode(), "a.json").text == (
        "name: Ada\nborn: 1815\ntags: maths\ntags: poetry\n\n"
        "name: Alan\nhome.city: London\nalive: false"
    )


def test_json_objects_make_a_paragraph_of_each_entry() -> None:
    assert read_bytes(b'{"a": {"b": 1}, "c": [2, 3]}', "a.json").text == "a.b: 1\n\nc: 2\nc: 3"
    assert read_bytes(b'"only words"', "a.json").text == "only words"


def test_half_a_surrogate_pair_in_json_is_replaced() -> None:
    assert read_bytes(b'["x \\ud800 y"]', "a.json").text == "x ? y"


def test_each_row_of_a_table_names_its_columns() -> None:
    table = b'city,people\nOslo,"700,000"\n\nBergen,\n,9\nTurku,1,extra\n'
    assert read_bytes(table, "a.csv").text == (
        "city: Oslo | people: 700,000\ncity: Bergen\npeople: 9\ncity: Turku | people: 1 | extra"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_table_is_found_in_its_first_line(delimiter: str) -> None:
    table = f"a{delimiter}b\n1{delimiter}2\n".encode()
    assert read_bytes(table, "a.csv").text == "a: 1 | b: 2"


def test_a_table_of_one_line_is_that_line() -> None:
    assert read_bytes(b"a,b\n", "a.tsv").text == "a | b"


def test_a_web_page_is_what_its_readers_see() -> None:
    page = (
        b"<html><head><title>Clocks</title><style>p {}</style></head><body><h1>Open</h1>"
        b"<script>alert('x')</script><p>From   ten\nto <b>five</b> &amp; later</p>"
        b"<ul><li>one</li><li>two</li></ul></body></html>"
    )
    text = read_bytes(page, "a.html").text
    assert text == "Clocks\n\nOpen\n\nFrom ten to five & later\n\none\n\ntwo"


def test_pages_of_a_pdf_are_known_by_their_starts() -> None:
    document = read_bytes(pdf_of("First page.", "", "Third page."), "a.pdf")
    assert document.text == "First page.\n\n\n\nThird page."
    third = document.text.index("Third")
    assert document.pages_of(0, 5) == (1, 1)
    assert document.pages_of(third, third + 5) == (3, 3)


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b'{"a": 1', "a.json", "no valid JSON"),
        (b"[NaN]", "a.json", "NaN is no JSON"),
        (b"[" * 100_000, "a.json", "nested too deeply"),
        (b"[" + b"9" * 5_000 + b"]", "a.json", "no valid JSON"),
        (b'a,b\n"open', "a.csv", "no valid CSV"),
        (b"a\n" + b"x" * 200_000, "a.csv", "no valid CSV"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a.txt", "byte 0 is no UTF-8"),
        (b"ELF\x00\x01", "a.md", r"character 3 is U\+0000"),
        ("größe".encode("latin-1"), "a.txt", "byte 2 is no UTF-8"),
        (b"\xff\xfea", "a.txt", "is no UTF-16"),
        (b"%PDF-1.4 cut off", "a.pdf", "no PDF that can be read"),
        (b"no pdf at all", "a.pdf", "no PDF that can be read"),
        (encrypted(pdf_of("Secret.")), "a.pdf", "is encrypted"),
        (pdf_of(""), "a.pdf", r"holds no text. Recognise its text first \(OCR\)"),
        (b"", "a.txt", r"\(0 bytes\) holds no text. Fill it"),
        (b" \n\t", "a.md", "holds no text"),
        (b"[]", "a.json", "holds no text"),
        (b"", "a.csv", "holds no text"),
        (b"<p></p>", "a.html", "holds no text"),
        (b"x", "a.docx", "in no known format. Rename it to end in one of .txt"),
        (b"x", "noending", "in no known format"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_what_cannot_be_read_is_refused_by_name(content: bytes, name: str, why: str) -> None:
    with pytest.raises(DocumentError, match=why) as refusal:
        read_bytes(content, name)
    assert repr(name) in refusal.value.message
    assert refusal.value.param == "documents"


@pytest.mark.parametrize("cut", range(40, 600, 80))
def test_a_pdf_that_was_cut_off_anywhere_is_read_or_refused(cut: int) -> None:
    outcome = text_or_refusal(pdf_of("First page.")[:cut], "a.pdf")
    assert "First" in outcome or "'a.pdf'" in outcome


@pytest.mark.parametrize(
    ("content", "name", "limits", "why"),
    [
        (b"x" * 11, "a.txt", {"max_bytes": 10}, r"11 bytes, .* max_bytes \(10\)"),
        (b"x" * 11, "a.txt", {"max_chars": 10}, r"11 characters, .* max_chars \(10\)"),
        (pdf_of("a", "b", "c"), "a.pdf", {"max_pages": 2}, r"3 pages, .* max_pages \(2\)"),
        (pdf_of("abcd", "efgh"), "a.pdf", {"max_chars": 6}, r"max_chars \(6\)"),
    ],
)
def test_what_is_over_a_limit_is_refused_with_size_and_limit(
    content: bytes, name: str, limits: dict[str, int], why: str
) -> None:
    with pytest.raises(DocumentError, match=why):
        read_bytes(content, name, ReadLimits(**limits))


def test_a_large_file_is_refused_with_its_size_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on disk
    with pytest.raises(DocumentError, match=f"'large.txt' has {2**40} bytes"):
        read_file(path)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DocumentError, match="No such file"):
        read_file(tmp_path / "none.txt")
    with pytest.raises(DocumentError, match="no regular file"):
        read_file(tmp_path)
    with pytest.raises(DocumentError, match="no regular file"):
        read_file(tmp_path / "pipe.txt")


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.json", ".hidden.txt", ".git/x.txt", "logo.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"text"')
    (tmp_path / "away.txt").symlink_to("/etc/hostname")
    reading = read_documents(tmp_path)
    assert [document.name for document in reading.documents] == ["a/b/c.json", "a/z.md", "b.txt"]
    assert reading.skipped == ("logo.png",)
    assert read_documents(tmp_path / "b.txt").documents[0].name == "b.txt"


def test_a_folder_with_more_files_than_the_limit_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("text")
    assert len(read_folder(tmp_path, ReadLimits(max_files=4)).documents) == 4
    with pytest.raises(DocumentError, match=r"more than max_files \(3\)"):
        read_folder(tmp_path, ReadLimits(max_files=3))


def test_a_folder_without_documents_and_one_with_a_broken_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(b"\x89PNG")
    with pytest.raises(DocumentError, match="holds no document"):
        read_folder(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DocumentError, match=r"'broken\.json' is no valid JSON"):
        read_folder(tmp_path)


def test_the_format_that_is_named_goes_before_the_ending() -> None:
    assert read_bytes(b"[1]", "page", written_in=Format.JSON).text == "1"
    assert read_bytes(b"[1]", "page.pdf", written_in=Format.TEXT).text == "[1]"


def test_a_name_that_is_no_text_is_made_one() -> None:
    assert read_bytes(b"x", os.fsdecode(b"caf\xe9.txt")).name == "caf?.txt"
