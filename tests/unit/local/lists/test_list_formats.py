"""Files that are not a list of fetches: their format, and a command that converts them."""

import bz2
import io
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchfleet.worker.local.lists.formats.list_formats import binary_format, text_format

TEXT = "http://a.example/1\nhttp://b.example/2\n"
URLS = ["http://a.example/1", "http://b.example/2"]


def zipped(name: str) -> bytes:
    """Return a zip archive with a file of that name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(name, TEXT)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (TEXT.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 my.txt"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "iconv -f UTF-16 "),
        (TEXT.encode("utf-16-le"), "iconv -f UTF-16LE "),
        (TEXT.encode("utf-16-be"), "iconv -f UTF-16BE "),
        (TEXT.encode("utf-32"), "iconv -f UTF-32 "),
        (TEXT.encode("utf-32-le"), "iconv -f UTF-32LE "),
        (TEXT.encode("utf-32-be"), "iconv -f UTF-32BE "),
        (bz2.compress(TEXT.encode()), "bzip2 -dc my.txt"),
        (lzma.compress(TEXT.encode()), "xz -dc my.txt"),
        (zipped("list.txt"), "unzip -p my.txt"),
        (zipped("xl/workbook.xml"), "spreadsheet"),
        (zipped("[Content_Types].xml"), "spreadsheet"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(8), "Excel"),
        (b"SQLite format 3\x00\x10\x00", "SQLite"),
        (b"http://a.example/\x00\n", "byte 17 is NUL"),
    ],
)
def test_a_file_in_another_format_is_named_with_the_remedy(head: bytes, message: str) -> None:
    """The first bytes show the format, also of other encodings without a byte order mark."""
    assert message in str(binary_format(head, "my.txt"))


@pytest.mark.parametrize(
    "head", [b"", TEXT.encode(), "\ufeffhttp://ü/\r\n\x0c".encode(), b"http://a/caf\xe9", b"a\x7fb\x1b"]
)
def test_text_is_left_to_the_reader_of_the_list(head: bytes) -> None:
    """The reader names each bad line."""
    assert binary_format(head, "my.txt") is None


def test_a_file_name_is_quoted_for_the_shell() -> None:
    """The command can be pasted. Standard input has no name."""
    head = TEXT.encode("utf-16")

    assert "'my list.txt' >" in str(binary_format(head, "my list.txt"))
    assert "FILE >" in str(binary_format(head, "-"))


def test_a_json_array_is_named_with_a_command_that_prints_its_elements(tmp_path: Path) -> None:
    """URLs and objects alike."""
    file = tmp_path / "a.json"
    file.write_text('["http://a.example/1", {"url": "http://b.example/2"}]')
    command = str(text_format([file.read_text()], str(file))).partition(": python3")[2]
    command = f"{sys.executable}{command.replace('urls.txt', f'{tmp_path}/urls')}"
    subprocess.run(command, shell=True, check=True)

    assert ["http://a.example/1", '{"url": "http://b.example/2"}'] == (
        tmp_path / "urls"
    ).read_text().splitlines()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (["{", '"url": "http://a"', "}"], "JSON over several lines"),
        (["<!doctype html>", "<a>"], "HTML or XML"),
        (['<?xml version="1.0"?>'], "HTML or XML"),
    ],
)
def test_other_texts_are_named(sample: list[str], message: str) -> None:
    """The first lines of a text show its format."""
    assert message in str(text_format(sample, "x"))


@pytest.mark.parametrize(
    "sample",
    [
        [],
        ["x"],
        URLS,
        [*URLS, "htp://x"],
        ["http://a/1,2", "http://a/3,4", "http://a/5,6"],
        ["htp://a/1;v=1", "http://a/2;v=1", "http://a/3;v=2"],
        ['{"url":"http://a/","meta":[1,2]}', '{"url":"http://b/","meta":[1,2]}', "x,y"],
        ["a,b", "c,d"],
        ["http://a/1,2", "foo bar", "http://b/", "http://c/,,"],
        ["http://a/my photo.jpg", "http://a/my house.jpg"],
        ["[InternetShortcut]", "URL=http://a/"],
        ["sep=;"],
    ],
)
def test_a_list_with_bad_lines_is_not_a_table(sample: list[str]) -> None:
    """Commas and semicolons are part of URLs."""
    assert text_format(sample, "x") is None


@given(st.binary(max_size=200), st.lists(st.text(min_size=1, max_size=50), max_size=10))
def test_any_file_is_named_or_left_to_the_reader(head: bytes, sample: list[str]) -> None:
    """No content raises an error here."""
    assert binary_format(head, "x") != ""
    assert text_format(sample, "x") != ""
