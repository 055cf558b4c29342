"""The formats of lists, from their bytes to fetches."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetchfleet.jobs.contract.fetch import Fetch
from fetchfleet.worker.body import zstd
from fetchfleet.worker.errors import CommandError
from fetchfleet.worker.local.lists.checked_list import ListUse, open_list
from fetchfleet.worker.local.lists.formats.aria2 import Aria2Reader
from fetchfleet.worker.local.lists.formats.expansion import expanded
from fetchfleet.worker.local.lists.formats.parquet import ParquetReader
from fetchfleet.worker.local.lists.formats.recognition import FORMATS
from fetchfleet.worker.local.lists.formats.sitemaps import INDEX, SitemapReader
from fetchfleet.worker.local.lists.formats.tables import TableForm, TableReader
from fetchfleet.worker.local.lists.rows import BadRow, ListError, ListOptions, Reader

URLS = ["http://a.example/1", "http://b.example/2"]
DIGEST = "0123456789abcdef" * 4
SITEMAP_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
)


def fetches_of(folder: Path, content: bytes, name: str = "list", **options: Any) -> list[Fetch]:
    """Return the fetches of a file with this content."""
    (folder / name).write_bytes(content)
    expand = options.pop("expand", False)
    with open_list(str(folder / name), ListUse(expand=expand), ListOptions(**options)) as stream:
        return list(stream.fetches())


def urls_of(folder: Path, text: str, **options: Any) -> list[str]:
    """Return the URLs of a file with this text."""
    return [fetch.url for fetch in fetches_of(folder, text.encode(), **options)]


def refusal(folder: Path, content: bytes, **options: Any) -> str:
    """Return the error for a file with this content."""
    with pytest.raises(CommandError) as caught:
        fetches_of(folder, content, **options)
    assert 2 == caught.value.exit_code
    assert str(folder) in str(caught.value)
    return str(caught.value)


TABLES = [
    'id,name,image_url\n1,"a, b",{0}\n2,c,{1}\n',
    "\ufeffurl,id\n{0},1\n{1},2\n",
    "url;id\n{0};1\n{1};2\n",
    "1|{0}\n2|{1}\n",
    "{0}\ta\n{1}\tb\n",
    "n\tURL\n1\t{0}\n2\t{1}\n",
    '"{0}"\n"{1}"\n',
    "{0},red shoe\n{1},boot\n",
    "id, url\n1, {0}\n2, {1}\n",
    "sep=;\nid;url\n1;{0}\n2;{1}\n",
    "SEP=,\n1,{0}\n2,{1}\n",
    "1. {0}\n2.  {1}\n",
    "- {0}\n- {1}\n",
    "image url\n{0}\n{1}\n",
    '\n# a comment\nurl,note\r\n{0},"two\nlines"\r\n\r\n{1},\r\n',
]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_with_one_column_of_urls_is_read(tmp_path: Path, table: str) -> None:
    """Any delimiter, with and without a header, quoted cells and blank lines."""
    assert URLS == urls_of(tmp_path, table.format(*URLS))


def test_columns_become_fields(tmp_path: Path) -> None:
    """They are given by name or number. An empty cell sets no field."""
    table = f"id,page,image,path,sum\n7,http://p/1,{URLS[0]},x/1.jpg,{DIGEST}\n8,http://p/2,{URLS[1]},,\n"
    named = fetches_of(
        tmp_path,
        table.encode(),
        url_column="image",
        dest_column="4",
        sha256_column="sum",
        meta_columns=("id", "page"),
    )
    rest = fetches_of(tmp_path, table.encode(), url_column="3", meta_columns=("all",))

    first = Fetch(url=URLS[0], dest="x/1.jpg", sha256=DIGEST, meta={"id": "7", "page": "http://p/1"})
    assert [first, Fetch(url=URLS[1], meta={"id": "8", "page": "http://p/2"})] == named
    assert {"id": "8", "page": "http://p/2", "path": "", "sum": ""} == rest[1].meta


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("a,b\n1,2\n", {"format": "csv"}, "no column has URLs only; give it with --url-col"),
        (f"u,v\n{URLS[0]},{URLS[1]}\n", {"url_column": "w"}, "--url-col w: no such column in the first line"),
        (f"u\n{URLS[0]}\n", {"dest_column": "w"}, "--dest-col w: no such column; its columns are 'u'"),
        (f"1,{URLS[0]}\n", {"meta_columns": ("all",)}, "--meta-cols all: the table has no header"),
        (
            f"n,url\n1,{URLS[0]}\n2\n",
            {"url_column": "url"},
            "line 3: has 1 columns; the URLs are in column 2",
        ),
        (f"n,url\n1,{URLS[0]}\n\n3,ftp://x\n", {}, "line 4: url: not an http or https URL"),
        (f"n,url\n1,{URLS[0]}\n" * 40 + "é,caf\n", {"url_column": "url"}, "line 3: url:"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(
    tmp_path: Path, table: str, options: dict[str, Any], message: str
) -> None:
    """The error names the file, the line and the option."""
    assert message in refusal(tmp_path, table.encode(), **options)


def test_a_text_of_valid_urls_is_never_a_table(tmp_path: Path) -> None:
    """Commas, semicolons and quotes are part of URLs."""
    text = "http://a/1,2\nhttp://a/3,4\nhttp://a/5,6\n"

    assert text.split() == urls_of(tmp_path, text)
    assert ["http://a/1", "http://a/3", "http://a/5"] == urls_of(tmp_path, text, url_column="1")


def test_written_tables_are_read_back(tmp_path: Path) -> None:
    """The module csv writes each dialect."""
    for dialect, delimiter in (("excel", ","), ("excel-tab", "\t"), ("unix", ";")):
        out = io.StringIO()
        writer = csv.writer(out, dialect, delimiter=delimiter)
        writer.writerow(["title", "url"])
        writer.writerows([[f'"{n}", and; more\there', f"http://a.example/{n},{n};{n}"] for n in range(200)])
        assert 200 == len(urls_of(tmp_path, out.getvalue())), dialect


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("text", ["{0}\n{1}\n", "url,n\n{0},1\n{1},2\n", '{{"url":"{0}"}}\n{1}\n'])
def test_each_format_may_be_compressed(tmp_path: Path, compression: str, text: str) -> None:
    """The first bytes show it. A gzip file may have several members, a zstd file several frames."""
    compress: Any = {"gzip": gzip.compress, "zstd": zstd.compress, "none": bytes}[compression]
    content = text.format(*URLS).encode()

    packed = compress(content[:9]) + compress(content[9:])
    assert URLS == [fetch.url for fetch in fetches_of(tmp_path, packed)]


def test_a_list_may_be_compressed_twice(tmp_path: Path) -> None:
    """A third time it is binary."""
    once = gzip.compress("\n".join(URLS).encode())

    assert URLS == [fetch.url for fetch in fetches_of(tmp_path, gzip.compress(once))]
    assert "binary" in refusal(tmp_path, gzip.compress(gzip.compress(once)))


def test_a_table_of_a_separator_only_lacks_the_column(tmp_path: Path) -> None:
    """It has no first row."""
    assert "--url-col url: no such column" in refusal(tmp_path, b"sep=;\n", url_column="url")


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_damaged_compression_names_the_file(tmp_path: Path, compress: Any) -> None:
    """Cut short, changed, or followed by other bytes."""
    packed = compress("".join(f"http://a.example/{n}\n" for n in range(5000)).encode())

    refusal(tmp_path, packed[:-9])
    refusal(tmp_path, packed[: len(packed) // 2] + b"garbage" + packed[len(packed) // 2 + 7 :])
    refusal(tmp_path, packed + b"garbage")


def parquet(**columns: list[Any]) -> bytes:
    """Return a Parquet file with row groups of 100 rows."""
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=100)
    return out.getvalue()


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    """The column of URLs is found by its content, or by the name url. Values become JSON."""
    numbers = list(range(300))
    urls = [f"http://a.example/{n}" for n in numbers]
    content = parquet(id=numbers, image=urls, sum=[bytes.fromhex(DIGEST)] * 300, tags=[["a", None]] * 300)
    found = fetches_of(tmp_path, content, meta_columns=("id", "tags"), sha256_column="sum")

    assert urls == [fetch.url for fetch in found]
    assert ({"id": 299, "tags": ["a", None]}, DIGEST) == (found[-1].meta, found[-1].sha256)
    assert urls == [fetch.url for fetch in fetches_of(tmp_path, parquet(page=urls, url=urls))]
    assert urls == [fetch.url for fetch in fetches_of(tmp_path, parquet(page=urls, x=urls), url_column="2")]
    assert "give the column of URLs with --url-col NAME" in refusal(tmp_path, parquet(a=urls, b=urls))
    assert "row 2: url:" in refusal(tmp_path, parquet(url=[*urls[:1], None, *urls]))
    assert "not a valid Parquet file" in refusal(tmp_path, content[:-20])


def table_of(**columns: Any) -> bytes:
    """Return a Parquet file with these columns of Arrow. A name that ends with _ repeats the one without."""
    file = io.BytesIO()
    pq.write_table(pa.table(list(columns.values()), [name.rstrip("_") for name in columns]), file)
    return file.getvalue()


def test_times_in_nanoseconds_become_meta_in_microseconds(tmp_path: Path) -> None:
    """Pandas writes such columns. Python has no nanoseconds."""
    columns = {
        "at": pa.array([1001, None], pa.timestamp("ns", "UTC")),
        "time": pa.array([2002, 2003], pa.time64("ns")),
        "took": pa.array([3003, 3004], pa.duration("ns")),
    }

    [first, second] = fetches_of(tmp_path, table_of(url=pa.array(URLS), **columns), meta_columns=("all",))

    assert {
        "at": "1970-01-01T00:00:00.000001Z",
        "time": "00:00:00.000002",
        "took": "PT0.000003S",
    } == first.meta
    assert second.meta["at"] is None


def test_urls_of_parquet_may_be_categories_or_bytes(tmp_path: Path) -> None:
    """Older writers store texts as bytes, and pandas stores repeated ones as a dictionary."""
    as_bytes = table_of(url=pa.array([url.encode() for url in URLS]))

    assert fetches_of(tmp_path, table_of(a=pa.array(URLS).dictionary_encode()))
    assert URLS == [fetch.url for fetch in fetches_of(tmp_path, as_bytes, url_column="url")]


def test_parquet_that_has_no_single_value_is_refused(tmp_path: Path) -> None:
    """The error names the column with the name of another, or the value that is not UTF-8."""
    urls, numbers = pa.array(URLS), pa.array([1, 2])
    no_text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"\xff"]).buffers())

    assert "--url-col NAME" in refusal(tmp_path, table_of(url=urls, url_=urls))
    same = table_of(url=urls, c=numbers, c_=numbers)
    assert "several columns are named 'c'" in refusal(tmp_path, same, meta_columns=("c",))
    assert URLS == [fetch.url for fetch in fetches_of(tmp_path, same)]
    assert "not a valid Parquet file" in refusal(tmp_path, table_of(url=urls, t=no_text), meta_columns=("t",))


ARIA2 = f"""# downloads
{URLS[0]}\thttp://mirror.example/1
  out=one.iso
  dir=isos/
  checksum=sha-256={DIGEST}
  header=Accept: text/csv
  header=X-Token: a:b
  split=5
{URLS[1]}
 dir=rest
\treferer=http://r.example/
{URLS[1]}
"""


def test_aria2_input_files_keep_names_digests_and_headers(tmp_path: Path) -> None:
    """The first of several mirrors is fetched. Options about how aria2 downloads have no effect."""
    assert [
        Fetch(
            url=URLS[0],
            dest="isos/one.iso",
            sha256=DIGEST,
            headers={"Accept": "text/csv", "X-Token": "a:b"},
        ),
        Fetch(url=URLS[1], dest="rest/{stem}{ext}", headers={"Referer": "http://r.example/"}),
        Fetch(url=URLS[1]),
    ] == fetches_of(tmp_path, ARIA2.encode())
    assert [URLS[0], URLS[1]] == urls_of(tmp_path, f"{URLS[0]}\thttp://m/\n{URLS[1]}\n")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("checksum=md5=00", "line 1: checksum=md5: only sha-256 is checked"),
        ("ftp-user=x", "line 1: the option ftp-user of aria2 is not supported"),
        ("dir=/home/me", "line 1: dest: '/home/me"),
    ],
)
def test_an_option_of_aria2_without_counterpart_is_refused(tmp_path: Path, option: str, message: str) -> None:
    """Otherwise a body would lack its check, or be at another place."""
    assert message in refusal(tmp_path, f"{URLS[0]}\n  {option}\n".encode())


def sitemap(*entries: str) -> bytes:
    """Return a sitemap with these entries."""
    return f"{SITEMAP_HEAD}{''.join(f'<url>{entry}</url>' for entry in entries)}</urlset>".encode()


def test_a_sitemap_is_read(tmp_path: Path) -> None:
    """Only the location of each entry counts; those of images have another namespace."""
    image = '<image:image xmlns:image="http://x"><image:loc>http://i/</image:loc></image:image>'
    entries = (
        f"<loc> {URLS[0]}?a=1&amp;b=2\n</loc><lastmod>2026-01-01</lastmod>{image}",
        f"<loc>{URLS[1]}</loc>",
    )
    prefixed = f'<s:urlset xmlns:s="http://x"><s:url><s:loc>{URLS[1]}</s:loc></s:url></s:urlset>'

    assert [f"{URLS[0]}?a=1&b=2", URLS[1]] == [fetch.url for fetch in fetches_of(tmp_path, sitemap(*entries))]
    assert URLS[1:] == [fetch.url for fetch in fetches_of(tmp_path, gzip.compress(prefixed.encode()))]
    assert "URL 2: url: not an http" in refusal(tmp_path, sitemap(f"<loc>{URLS[0]}</loc>", "<loc>/x</loc>"))


@pytest.mark.parametrize(
    "content",
    [
        sitemap(f"<loc>{URLS[0]}</loc>")[:-3],
        SITEMAP_HEAD.encode() + b"<a>" * 5000,
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><urlset><url><loc>&b;</loc></url></urlset>',
        b'<?xml version="1.0" encoding="nope"?><urlset/>',
        b'<?xml version="1.0" encoding="hex"?><urlset/>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><urlset><url><loc>http://a/</loc></url></urlset>',
    ],
)
def test_a_damaged_or_hostile_sitemap_is_refused(tmp_path: Path, content: bytes) -> None:
    """Entities are never defined, and no file is included."""
    assert "not a valid sitemap" in refusal(tmp_path, content)


@pytest.mark.parametrize("token", [b"<!--", b"<", b"<a b='", b"<?"])
def test_a_tag_or_comment_without_end_does_not_fill_the_memory(tmp_path: Path, token: bytes) -> None:
    """A sitemap of a few KB, compressed, could have one of many GB."""
    content = SITEMAP_HEAD.encode() + token + b"a" * (3 << 20)

    assert "a tag or comment of more than 1,048,576 bytes" in refusal(tmp_path, gzip.compress(content))


def test_rows_without_end_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each of their parts is short: options of aria2, and cells with line breaks."""
    options = URLS[0].encode() + b"\n" + b"  split=1\n" * 300_000
    cells = f"url,x\n{URLS[0]},1\n{URLS[1]}".encode() + b',"aaaa\n"' * 1_200_000

    assert "its options have more than 2,097,152 characters" in refusal(tmp_path, options)
    message = refusal(tmp_path, cells, url_column="url")
    assert "line 3: a row is longer than 8,388,608 characters" in message


def test_a_page_is_not_a_sitemap(tmp_path: Path) -> None:
    """HTML and other XML stay refused."""
    assert "looks like HTML or XML" in refusal(tmp_path, b"<!doctype html>\n<a href='http://a/'>x</a>\n")


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("http://h/{0..3}", ["http://h/0", "http://h/1", "http://h/2", "http://h/3"]),
        ("http://h/{008..010}.jpg", ["http://h/008.jpg", "http://h/009.jpg", "http://h/010.jpg"]),
        ("http://h/{10..0..5}", ["http://h/10", "http://h/5", "http://h/0"]),
        ("http://h/{a..c}", ["http://h/a", "http://h/b", "http://h/c"]),
        ("http://{a,b}/{1,}", ["http://a/1", "http://a/", "http://b/1", "http://b/"]),
        ("http://h/", ["http://h/"]),
    ],
)
def test_patterns_are_expanded(tmp_path: Path, text: str, urls: list[str]) -> None:
    """The last pattern changes first. JSON stays as it is."""
    assert urls == list(expanded(text))
    assert [*urls, "http://j/"] == urls_of(tmp_path, f'{text}\n{{"url":"http://j"}}\n', expand=True)


@pytest.mark.parametrize(
    "text", ["http://h/{x}", "http://h/{1..2", "http://h/{{1..2}}", "http://h/{1..5..0}"]
)
def test_an_invalid_pattern_is_a_bad_line(tmp_path: Path, text: str) -> None:
    """It is never fetched literally with `--expand`, and always without."""
    assert "line 1: url:" in refusal(tmp_path, text.encode(), expand=True)
    assert 1 == len(urls_of(tmp_path, text))


def test_a_line_expands_to_a_bounded_number_of_urls() -> None:
    """The number is known before any URL is made."""
    for text in ("http://h/{0..99999999999}", "http://h/{0..9999}/{0..9999}", "http://h/" + "{a,b}" * 60):
        [row] = expanded(text)
        assert isinstance(row, BadRow)


READERS: list[Reader] = [
    Aria2Reader(),
    SitemapReader("x"),
    SitemapReader("x", INDEX),
    TableReader("x", TableForm(",", 0, None), ListOptions()),
    TableReader("x", TableForm("\t", 1, ["a", "b"], 1), ListOptions(meta_columns=("all",), dest_column="a")),
    ParquetReader("x", ListOptions()),
]


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        st.binary(max_size=400),
        st.text(alphabet="a,\t\"'\n\r =#;<>{}/:.é", max_size=300).map(str.encode),
        st.lists(
            st.sampled_from(["<urlset>", "<url>", "<loc>", "</loc>", "</url>", "</urlset>", "&a;", "x"])
        ).map(lambda parts: "".join(parts).encode()),
        st.binary(max_size=100).map(lambda middle: b"PAR1" + middle + b"PAR1"),
    )
)
def test_any_bytes_are_rows_or_an_error_that_names_the_file(content: bytes) -> None:
    """No reader raises another error or reads on forever."""
    for reader in READERS:
        try:
            rows = list(reader.read(io.BytesIO(content)))
        except ListError as error:
            assert str(error).startswith("x: ")  # noqa: PT017 other bytes are rows
        else:
            assert len(rows) <= len(content)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.sampled_from([None, *FORMATS]), st.sampled_from([None, "1", "a"]))
def test_any_file_is_a_list_or_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, form: str | None, column: str | None
) -> None:
    """It holds for each format and column that a user may name."""
    folder = tmp_path_factory.getbasetemp()
    try:
        fetches_of(folder, content, "any", format=form, url_column=column)
    except CommandError as error:
        assert str(error).startswith(f"{folder}/any: ")  # noqa: PT017 other files are lists
