"""The file name that a response suggests, by Content-Disposition, URL and media type. Pure.

All of it is from the host and may be hostile. The values are not safe as file names yet.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote

from fetchfleet.jobs.contract.names import split_extension, unquoted

MAX_VALUE_CHARS = 4096
"""The start of a Content-Disposition that is read."""

_PARAMETER = re.compile(r";\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;\"]*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SEPARATORS = re.compile(r"[/\\]")
_CHARSETS = frozenset({"utf-8", "iso-8859-1"})  # RFC 8187 §3.2.1 and RFC 5987 §3.2

EXTENSIONS = {
    "application/epub+zip": ".epub",
    "application/geo+json": ".geojson",
    "application/gzip": ".gz",
    "application/javascript": ".js",
    "application/json": ".json",
    "application/jsonl": ".jsonl",
    "application/ld+json": ".jsonld",
    "application/msword": ".doc",
    "application/pdf": ".pdf",
    "application/rss+xml": ".rss",
    "application/rtf": ".rtf",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/wasm": ".wasm",
    "application/x-7z-compressed": ".7z",
    "application/x-bzip2": ".bz2",
    "application/x-ndjson": ".ndjson",
    "application/x-tar": ".tar",
    "application/x-xz": ".xz",
    "application/xhtml+xml": ".xhtml",
    "application/xml": ".xml",
    "application/yaml": ".yaml",
    "application/zip": ".zip",
    "application/zstd": ".zst",
    "audio/aac": ".aac",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "font/otf": ".otf",
    "font/ttf": ".ttf",
    "font/woff": ".woff",
    "font/woff2": ".woff2",
    "image/apng": ".apng",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/jp2": ".jp2",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/jxl": ".jxl",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tiff",
    "image/vnd.microsoft.icon": ".ico",
    "image/webp": ".webp",
    "image/x-icon": ".ico",
    "text/calendar": ".ics",
    "text/css": ".css",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/javascript": ".js",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/tab-separated-values": ".tsv",
    "text/xml": ".xml",
    "video/mp4": ".mp4",
    "video/mpeg": ".mpeg",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "video/x-msvideo": ".avi",
}
"""Extensions by media type. Fixed, so that names do not depend on the system or the version of Python."""


class ContentName(NamedTuple):
    """The file name of a response."""

    stem: str
    """The name without its extension; never empty."""
    extension: str
    """With its dot, in lower case; empty if it is unknown."""


def content_name(
    url: str, fetch_url: str, disposition: str | None = None, content_type: str | None = None
) -> ContentName:
    """Return the file name of a response.

    url: of the request that was answered. disposition, content_type: header fields, as ISO 8859-1.
    """
    stem, extension = split_extension(file_name_of(disposition)) if disposition else ("", "")
    for from_url in (url, fetch_url) if url != fetch_url else (url,):
        if not stem or not extension:
            own_stem, own_extension = split_extension(last_segment(from_url))
            stem, extension = stem or own_stem, extension or own_extension
    if not extension and content_type:
        extension = EXTENSIONS.get(content_type.partition(";")[0].strip().lower(), "")
    return ContentName(stem or "index", extension.lower())


def last_segment(url: str) -> str:
    """Return the decoded last segment of the path of a canonical URL; empty if the path ends in a slash."""
    path = url.partition("?")[0]
    return unquoted(path[path.rindex("/") + 1 :])


def file_name_of(disposition: str) -> str:
    """Return the file name of a Content-Disposition (RFC 6266), without folders; empty if it has none.

    `filename*` takes precedence. A `filename` in UTF-8 is accepted too, as in browsers.
    """
    found = _PARAMETER.findall(f";{disposition[:MAX_VALUE_CHARS]}")
    names = {name.lower(): value.strip() for name, value in reversed(found)}
    for text in (_extended(names.get("filename*", "")), _token_text(names.get("filename", ""))):
        name = _SEPARATORS.split(text)[-1].strip()
        if name.strip("."):
            return name
    return ""


def _extended(value: str) -> str:
    """Return the text of an extended value (RFC 8187), empty if it is malformed."""
    charset, _, rest = value.partition("'")
    _, quote, encoded = rest.partition("'")
    if not quote or charset.lower() not in _CHARSETS:
        return ""
    try:
        return unquote(encoded, encoding=charset, errors="strict")
    except UnicodeDecodeError:
        return ""


def _token_text(value: str) -> str:
    """Return the text of a token or a quoted string, which may have the bytes of UTF-8."""
    text = _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text
