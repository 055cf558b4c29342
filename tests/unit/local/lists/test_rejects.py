"""The bad lines of a list: skipped and written to a file, unless the whole list is in another format."""

import json
from pathlib import Path

import pytest

from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.lists.checked_list import BY_CONTENT, ListUse, open_list

GOOD = "http://a.example/"


def read(folder: Path, *lines: str, rejects: Path | None = None) -> int:
    """Read a list with these lines, and return the number of its fetches."""
    listed = folder / "my list"
    listed.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    with open_list(str(listed), ListUse(rejects=rejects), BY_CONTENT) as stream:
        return stream.count


def rejected(folder: Path, *lines: str) -> list[dict[str, object]]:
    """Return the rejects of a list with these lines."""
    read(folder, *lines, rejects=folder / "rejects")
    return [json.loads(line) for line in (folder / "rejects").read_text().splitlines()]


def test_each_bad_line_is_written_with_its_number_and_the_reason(tmp_path: Path) -> None:
    """Bad lines include a header, and markup among URLs. A list without bad lines leaves an empty file."""
    lines = rejected(tmp_path, "url", GOOD, " ftp://ü/ ", "<p>", '{"url": 1}')

    assert [(1, "url"), (3, "ftp://ü/"), (4, "<p>"), (5, '{"url": 1}')] == [
        (line["line"], line["text"]) for line in lines
    ]
    assert all(line["error"] for line in lines)
    assert [] == rejected(tmp_path, GOOD)
    with pytest.raises(CommandError, match="every line is invalid"):
        rejected(tmp_path, "no fetch at all")
    assert 1 == json.loads((tmp_path / "rejects").read_text())["line"]


@pytest.mark.parametrize("lines", [("<html>", "<a>"), ("[", f'"{GOOD}"', "]"), ("{", "}")])
def test_a_list_in_another_format_is_refused_as_a_whole(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """Its lines are not fetches that could be repaired one by one."""
    with pytest.raises(CommandError, match="looks like"):
        rejected(tmp_path, *lines)

    assert not (tmp_path / "rejects").exists()


def test_a_refused_list_names_the_remedy(tmp_path: Path) -> None:
    """The error proposes to convert the encoding, or to enqueue only the valid lines."""
    with pytest.raises(CommandError) as caught:
        read(tmp_path, GOOD, "caf\udce9")
    message = str(caught.value)

    assert "my list: nothing was enqueued" in message
    assert f"iconv -f WINDOWS-1252 -t UTF-8 '{tmp_path}/my list'" in message
    assert "--skip-invalid REJECTS" in message
