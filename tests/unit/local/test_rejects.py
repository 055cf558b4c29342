"""The bad lines of a list: skipped and written to a file, unless the whole list is in another format."""

import json
from pathlib import Path

import pytest

from fetchfleet.jobs.contract.fetch_list import parse_list
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.rejects import refuse, skip

GOOD = "http://a.example/"


def rejected(folder: Path, *lines: str) -> list[dict[str, object]]:
    """Return the rejects of a list with these lines."""
    skip("list", parse_list(lines), folder / "rejects")
    return [json.loads(line) for line in (folder / "rejects").read_text().splitlines()]


def test_each_bad_line_is_written_with_its_number_and_the_reason(tmp_path: Path) -> None:
    """Bad lines include a header, and markup among URLs. A list without bad lines leaves an empty file."""
    lines = rejected(tmp_path, "url", GOOD, " ftp://ü/ ", "<p>", '{"url": 1}')

    assert [(1, "url"), (3, "ftp://ü/"), (4, "<p>"), (5, '{"url": 1}')] == [
        (line["line"], line["text"]) for line in lines
    ]
    assert all(line["error"] for line in lines)
    assert [] == rejected(tmp_path, GOOD)
    assert [1] == [line["line"] for line in rejected(tmp_path, "no fetch at all")]


@pytest.mark.parametrize(
    "lines", [("url,id", f"{GOOD},1", f"{GOOD},2"), ("<html>", "<a>"), ("[", f'"{GOOD}"', "]"), ("{", "}")]
)
def test_a_list_in_another_format_is_refused_as_a_whole(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """Rows of a table can look like URLs, with a wrong path."""
    with pytest.raises(CommandError, match="looks like"):
        rejected(tmp_path, *lines)

    assert not (tmp_path / "rejects").exists()


def test_a_refused_list_names_the_remedy() -> None:
    """The error proposes to convert the encoding, or to enqueue only the valid lines."""
    message = str(refuse("my list", parse_list([GOOD, "caf\udce9"])))

    assert "my list: nothing was enqueued" in message
    assert "iconv -f WINDOWS-1252 -t UTF-8 'my list'" in message
    assert "--skip-invalid REJECTS" in message
