"""A ZIP file with the digest of each entry, as WACZ 1.1.1 requires."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from fetchfleet import __version__

WACZ_VERSION = "1.1.1"
DATAPACKAGE = "datapackage.json"


class Package:
    """Writes the entries one after the other. Call `finish` at the end, and `close` in any case.

    created: the time of all entries, in UTC.
    """

    def __init__(self, file: IO[bytes], created: datetime) -> None:
        self._created = created
        self._zip = ZipFile(file, "w")
        self._resources: list[dict[str, Any]] = []

    def add(self, path: str, blocks: Iterable[bytes], *, compress: bool = False) -> None:
        """Add an entry of any size. compress: readers do not need parts of it. Raises OSError."""
        digest, size_bytes = hashlib.sha256(), 0
        with self._zip.open(self._info(path, compress=compress), "w", force_zip64=True) as entry:
            for block in blocks:
                entry.write(block)
                digest.update(block)
                size_bytes += len(block)
        name = path.rpartition("/")[2].lower()
        self._resources.append(
            {"name": name, "path": path, "hash": f"sha256:{digest.hexdigest()}", "bytes": size_bytes}
        )

    def finish(self, title: str | None, description: str | None) -> None:
        """Add the list of entries and its digest, and complete the ZIP file. Raises OSError."""
        described = {"title": title, "description": description}
        listed = {
            "profile": "data-package",
            "resources": self._resources,
            **{name: text for name, text in described.items() if text},
            "created": f"{self._created:%Y-%m-%dT%H:%M:%SZ}",
            "wacz_version": WACZ_VERSION,
            "software": f"fetchfleet {__version__}",
        }
        text = json.dumps(listed, indent=2).encode()
        digest = {"path": DATAPACKAGE, "hash": f"sha256:{hashlib.sha256(text).hexdigest()}"}
        self._zip.writestr(self._info(DATAPACKAGE, compress=True), text)
        self._zip.writestr(
            self._info("datapackage-digest.json", compress=True), json.dumps(digest, indent=2).encode()
        )
        self._zip.close()

    def close(self) -> None:
        """Close a file that is not finished. Ignores errors."""
        with suppress(OSError):
            self._zip.close()

    def _info(self, path: str, *, compress: bool) -> ZipInfo:
        info = ZipInfo(path, self._created.timetuple()[:6])
        info.compress_type = ZIP_DEFLATED if compress else ZIP_STORED
        info.external_attr = 0o644 << 16
        return info
