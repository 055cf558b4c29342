"""A list that is read twice: its checks, its digest, its files, and what happens if they change."""

import hashlib
import io
import os
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetchfleet.jobs.contract.fetch import Fetch, encode
from fetchfleet.jobs.contract.fetch_list import parse_list
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.lists import dest_log, fetch_stream, sources
from fetchfleet.worker.local.lists.checked_list import BY_CONTENT, ListUse, open_list
from fetchfleet.worker.local.lists.dest_log import DestLog
from fetchfleet.worker.local.lists.dry_run import MAX_HOSTS, HostCounts, report
from fetchfleet.worker.local.lists.fetch_stream import FetchStream
from fetchfleet.worker.local.lists.rows import ListChangedError, ListError
from fetchfleet.worker.policy.file import parse_policy

LINES = st.lists(
    st.sampled_from(
        [
            "http://a.example/",
            "http://a.example/%zz?q=ü#x",
            "HTTPS://[::1]:443/a b",
            "https://ü.example",
            '{"url":"http://b.example/","dest":"x"}',
            '{"url":"http://b.example/","dest":"x","if_exists":"skip"}',
            '{"url":"http://b.example/","dest":"y","key":"k"}',
            '{"url":"http://c.example","headers":{"A":"b"}}',
            "ftp://bad",
            "",
            "# comment",
        ]
    ),
    max_size=30,
)


def opened(*paths: Path, rejects: Path | None = None, expand: bool = False) -> FetchStream:
    """Check the list in the only file, or in all files that match the only pattern."""
    return open_list(str(*paths), ListUse(rejects=rejects, expand=expand), BY_CONTENT)


def digest_of(fetches: list[Fetch]) -> str:
    """Return the digest of a list that older versions computed."""
    return hashlib.sha256(b"".join(msgspec.json.encode(fetch) + b"\n" for fetch in fetches)).hexdigest()


@settings(deadline=None, max_examples=60)
@given(LINES, st.sampled_from([0, 2, 1000]), st.sampled_from([1, 3]))
def test_both_passes_agree_with_the_grammar(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], kept: int, in_memory: int
) -> None:
    """Fetches, invalid lines and digest do not depend on whether the list stays in memory."""
    folder = tmp_path_factory.getbasetemp()
    listed, rejects = folder / "agrees", folder / "rejects"
    listed.write_text("\n".join(lines))
    expected = parse_list(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_stream, "KEPT", kept)
        patch.setattr(DestLog.__init__, "__defaults__", (in_memory,))
        if not expected.fetches:
            with pytest.raises(CommandError):
                opened(listed, rejects=rejects)
            return
        with opened(listed, rejects=rejects) as stream:
            fetches = stream.fetches()
            assert isinstance(fetches, list) == (len(expected.fetches) <= kept)
            assert expected.fetches == list(fetches) == list(stream.fetches())
            assert digest_of(expected.fetches) == stream.digest
            assert len(expected.bad_lines) == stream.skipped
            assert stream.batch_id == stream.digest[:16]
    rejected = [msgspec.json.decode(line) for line in rejects.read_bytes().splitlines()]
    assert [(line.number, line.error) for line in expected.bad_lines] == [
        (line["line"], line["error"]) for line in rejected
    ]


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60).map(lambda path: f"http://a.example/{path}"))
def test_the_digest_of_a_url_needs_no_fetch(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    """The JSON of a canonical URL has no escapes, so that a long list needs no object for each line."""
    listed = tmp_path_factory.getbasetemp() / "url"
    listed.write_bytes(f"http://a.example/\n{url}\n".encode(errors="surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_stream, "KEPT", 0)
        try:
            with opened(listed) as stream:
                assert digest_of(list(stream.fetches())) == stream.digest
        except CommandError as error:
            assert "url:" in str(error)  # noqa: PT017 other URLs are valid


def test_a_change_applies_to_both_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that set fields are part of the digest, and so of the batch ID."""
    monkeypatch.setattr(fetch_stream, "KEPT", 1)
    listed = tmp_path / "list"
    listed.write_text("http://a.example/1\nhttp://a.example/2\n")

    def change(fetch: Fetch) -> Fetch:
        return msgspec.structs.replace(fetch, headers={"A": "b"})

    with open_list(str(listed), ListUse([change]), BY_CONTENT) as stream, opened(listed) as plain:
        assert [{"A": "b"}, {"A": "b"}] == [fetch.headers for fetch in stream.fetches()]
        assert digest_of(list(stream.fetches())) == stream.digest != plain.digest


def test_several_files_are_one_list(tmp_path: Path) -> None:
    """They are read in the order of their names. Errors name the file. A dest is unique in all of them."""
    for name, text in {
        "b.txt": "http://b/\n",
        "a.txt": "http://a/\n\n",
        "c.csv": "n,url\n1,http://c/\n",
    }.items():
        (tmp_path / name).write_text(text)
    with opened(tmp_path / "*.*") as stream:
        assert ["http://a/", "http://b/", "http://c/"] == [fetch.url for fetch in stream.fetches()]
        assert [f"{tmp_path}/c.csv: CSV: its URLs are in column 2 ('url')"] == stream.notes

    dest = '{"url":"http://d/","dest":"d"}'
    (tmp_path / "a.txt").write_text(f"\n{dest}\n")
    (tmp_path / "b.txt").write_text(f"http://b/\nftp://x\n{dest}\n")
    rejects = tmp_path / "rejects"
    with pytest.raises(CommandError) as caught:
        opened(tmp_path / "*.txt")
    with opened(tmp_path / "*.txt", rejects=rejects) as stream:
        assert (2, 2) == (stream.count, stream.skipped)

    assert f"{tmp_path}/b.txt: line 2: url:" in str(caught.value)
    assert f"b.txt: line 3: dest: 'd' is also the dest of line 2 of {tmp_path}/a.txt" in str(caught.value)
    assert [f"{tmp_path}/b.txt"] * 2 == [
        msgspec.json.decode(line)["file"] for line in rejects.read_bytes().splitlines()
    ]
    with pytest.raises(ListError, match="no file matches"):
        opened(tmp_path / "*.jsonl")


def test_a_file_whose_name_is_a_pattern_is_read(tmp_path: Path) -> None:
    """A name that exists is never a pattern."""
    (tmp_path / "a[1].txt").write_text("http://a/\n")
    with opened(tmp_path / "a[1].txt") as stream:
        assert 1 == stream.count


def write(path: Path, text: str, mode: str) -> None:
    """Write a text to a file, so that the time of the change is another one."""
    before = path.stat().st_mtime_ns
    with path.open(mode) as file:
        file.write(text)
    os.utime(path, ns=(before, before + 1))


@pytest.mark.parametrize("kept_open", [0, 1])
@pytest.mark.parametrize("mode", ["a", "w"])
def test_a_file_that_changes_after_its_check_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, kept_open: int
) -> None:
    """Otherwise fetches that were not checked would be enqueued."""
    monkeypatch.setattr(fetch_stream, "KEPT", 1)
    monkeypatch.setattr(sources, "KEPT_OPEN", kept_open)
    listed = tmp_path / "list"
    listed.write_text("http://a/1\nhttp://a/2\n")
    with opened(listed) as stream:
        assert 2 == len(list(stream.fetches()))
        write(listed, "ftp://bad\n\n\n", mode)
        with pytest.raises(ListChangedError, match="list: changed after it was checked"):
            list(stream.fetches())


def test_a_list_may_be_renamed_or_deleted_after_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is still known."""
    monkeypatch.setattr(fetch_stream, "KEPT", 1)
    listed = tmp_path / "list"
    listed.write_text("http://a/1\nhttp://a/2\n")
    with opened(listed) as stream:
        listed.rename(tmp_path / "old")
        listed.write_text("http://other/\n")
        (tmp_path / "old").unlink()
        assert ["http://a/1", "http://a/2"] == [fetch.url for fetch in stream.fetches()]


def test_a_pipe_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to an unnamed temporary file, compressed, from which it is read twice."""
    monkeypatch.setattr(fetch_stream, "KEPT", 1)
    monkeypatch.setattr(sources, "KEPT_IN_MEMORY_BYTES", 100)
    text = "".join(f"http://a.example/{number}\n" for number in range(20_000)).encode()
    with sources.spooled("-", io.BytesIO(text)) as source:
        for _ in range(2):
            with source.opened() as first, source.opened() as second:
                assert text[:50] == first.read(50)
                assert text == second.read()
                assert text[50:] == first.read()
        [file] = source.own
        assert os.fstat(file.fileno()).st_size < len(text) / 2
    assert [] == list(tmp_path.iterdir())


def test_a_line_of_any_length_is_one_bad_line(tmp_path: Path) -> None:
    """Its rest is skipped, so that it does not fill the memory."""
    listed, rejects = tmp_path / "list", tmp_path / "rejects"
    listed.write_text(f"http://a/\nhttp://b/{'x' * 5_000_000}\nhttp://c/\n")
    with opened(listed, rejects=rejects) as stream:
        assert ["http://a/", "http://c/"] == [fetch.url for fetch in stream.fetches()]
    assert 1 == rejects.read_text().count('"line":2')


def test_too_many_repeated_dests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would have to stay in memory."""
    monkeypatch.setattr(dest_log, "MAX_CONFLICTS", 3)
    listed = tmp_path / "list"
    listed.write_bytes((encode(Fetch(url="http://a/", dest="x")) + b"\n") * 9)
    with pytest.raises(ListError, match="more than 3 fetches have the dest of an earlier fetch"):
        opened(listed)


def test_an_expanded_line_keeps_its_number(tmp_path: Path) -> None:
    """A bad URL of a pattern is named by its line."""
    listed = tmp_path / "list"
    listed.write_text("http://{a,b}/\nhttp://a/{1..3}\nhttp://{c,d e}/\n")
    with pytest.raises(CommandError, match="line 3: url:"):
        opened(listed, expand=True)


POLICY = """
[default]
concurrency = 10
[host."slow.example"]
rate_per_s = 0.5
"""


def test_a_dry_run_estimates_by_the_slowest_host() -> None:
    """The limit that takes longest determines the time: rate, concurrency, or the slots of all workers."""
    hosts = HostCounts()
    for host, number in (("slow.example", 60), ("big.example", 2000), ("small.example", 1)):
        for _ in range(number):
            hosts.add(f"http://{host}/")
    policy = parse_policy(POLICY)

    lines = list(report(hosts, policy, 256))
    assert ["big.example", "2,000", "97.0%", "100", "s"] == lines[1].split()
    assert ["slow.example", "60", "2.9%", "2", "min"] == lines[2].split()
    assert "at least 2 min, determined by slow.example (rate_per_s = 0.5); assumes 0.5 s a fetch" in lines[-1]
    assert "about 4 min, determined by the workers (4 fetches at once)" in list(report(hosts, policy, 4))[-1]


def test_a_dry_run_shows_the_largest_hosts_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts beyond a number are counted together, so that the memory is bounded."""
    monkeypatch.setattr("fetchfleet.worker.local.lists.dry_run.MAX_HOSTS", 30)
    hosts = HostCounts()
    for number in range(40):
        hosts.add(f"http://h{number}.example/")
    lines = list(report(hosts, parse_policy(""), 0))

    assert 30 < MAX_HOSTS
    assert 23 == len(lines)
    assert "10 other hosts or more" in lines[-2]
    assert lines[-2].split()[-2:] == ["20", "50.0%"]


def open_files() -> set[str]:
    """Return the descriptors of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_closing_a_stream_closes_its_files(tmp_path: Path) -> None:
    """It holds even if a later file is refused."""
    (tmp_path / "a").write_text("http://a/\n")
    (tmp_path / "b").write_bytes(b"%PDF\x00")
    before = open_files()
    with ExitStack(), pytest.raises(CommandError, match="a PDF"):
        opened(tmp_path / "?")
    assert before == open_files()
