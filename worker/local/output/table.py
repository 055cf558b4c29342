"""Results as a table: columns for the fields of a result, and for the keys of `meta`. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from types import UnionType
from typing import Any, NamedTuple, get_args

import msgspec

from fetchfleet.jobs.contract.fetch import encode
from fetchfleet.jobs.contract.result import Result
from fetchfleet.jobs.contract.safe_text import shown

FIRST = ("url", "outcome", "reason", "status", "bytes", "sha256", "path", "id")
"""The fields that most readers need. The other fields follow in their own order."""

META = "meta"

MAX_META_COLUMNS = 500
"""The most keys of `meta` in all. If there are more, as one for each fetch, it is one column of JSON."""

MAX_INT = (1 << 63) - 1

MAX_EXACT_INT = 1 << 53
"""Integers up to this size are exact as a float."""


class Kind(StrEnum):
    """The type of a column."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    TEXT = "text"
    """Strings as they are, any other value as JSON."""


class ReportRow(Result, frozen=True, kw_only=True):
    """A line of a report in JSON Lines."""

    redacted: bool = False
    """True if the command that wrote the line has masked secrets."""


class RowMeta(msgspec.Struct):
    """The part of a line that decides which columns the table has."""

    meta: Any = None
    redacted: bool = False


class ReportColumn(NamedTuple):
    """A column of the table."""

    name: str
    kind: Kind
    read: Callable[[ReportRow], Any]

    def values(self, rows: Sequence[ReportRow]) -> list[Any]:
        """Return the values of the column. An integer that has no column type, which is forged, is None."""
        values = list(map(self.read, rows))
        if self.kind is Kind.INT:
            return [value if value is None or abs(value) <= MAX_INT else None for value in values]
        if self.kind is Kind.TEXT:
            return [value if value is None or isinstance(value, str) else _json(value) for value in values]
        return values


class MetaColumns:
    """The columns that the `meta` of all results need."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}
        self._bare_kinds: set[str] = set()
        """The types of each `meta` that is not an object."""
        self._redacted = False

    def add(self, rows: Iterable[RowMeta]) -> None:
        """Add the `meta` of results."""
        for row in rows:
            self._redacted |= row.redacted
            if not isinstance(row.meta, dict):
                self._bare_kinds |= _kinds_of(row.meta)
            elif len(self._kinds) <= MAX_META_COLUMNS:
                for key, value in row.meta.items():
                    if (kinds := self._kinds.get(key)) is None:
                        kinds = self._kinds[key] = set()
                    kinds |= _kinds_of(value)

    def columns(self) -> list[ReportColumn]:
        """Return all columns of the table. Names differ by more than case, because readers may ignore it."""
        columns = _fields(Result)
        if len(self._kinds) > MAX_META_COLUMNS:
            columns.append(ReportColumn(META, Kind.TEXT, attrgetter(META)))
        else:
            columns += [
                ReportColumn(f"{META}.{shown(key)}", _kind_of(kinds), _item(key))
                for key, kinds in self._kinds.items()
            ]
            if self._bare_kinds:
                columns.append(ReportColumn(META, _kind_of(self._bare_kinds), _bare_meta))
        if self._redacted:
            columns.append(ReportColumn("redacted", Kind.BOOL, attrgetter("redacted")))
        taken: set[str] = set()
        return [column._replace(name=_free_name(column.name, taken)) for column in columns]


def line_of(row: Mapping[str, Any]) -> bytes:
    """Return the JSON of a result from its row. Cells may be text.

    Columns do not show every type in `meta`, so a result with `meta` has it among the fields that it omits.
    Raises msgspec.DecodeError.
    """
    fields = {name: cell for name, cell in row.items() if cell is not None and name != META}
    omitted = fields.get("omitted")
    if omitted is not None:
        has_meta = any(row[name] is not None for name in row if name.partition(".")[0] == META)
        fields["omitted"] = [*msgspec.json.decode(omitted, type=list[str]), *([META] if has_meta else [])]
    return encode(msgspec.convert(fields, ReportRow, strict=False))


def _fields(of: type[msgspec.Struct], prefix: str = "") -> list[ReportColumn]:
    """Return a column for each field, those of nested objects included."""
    columns: list[ReportColumn] = []
    for field in msgspec.structs.fields(of):
        optional = isinstance(field.type, UnionType)
        of_field = get_args(field.type)[0] if optional else field.type
        if field.name == META:
            continue
        if isinstance(of_field, type) and issubclass(of_field, msgspec.Struct):
            columns += _fields(of_field, f"{prefix}{field.name}.")
        else:
            columns.append(
                ReportColumn(field.name, _KINDS.get(of_field, Kind.TEXT), attrgetter(prefix + field.name))
            )
    order = {name: place for place, name in enumerate(FIRST)}
    return sorted(columns, key=lambda column: order.get(column.name, len(FIRST)))


_KINDS = {bool: Kind.BOOL, int: Kind.INT, float: Kind.FLOAT}


def _kinds_of(value: Any) -> set[str]:
    """Return the type of a JSON value; `big` for an integer that is not exact as a float; none for null."""
    if value is None:
        return set()
    kind = _KINDS.get(type(value), Kind.TEXT)
    if kind is Kind.INT and abs(value) > MAX_EXACT_INT:
        return {"big"} if abs(value) <= MAX_INT else {Kind.TEXT}
    return {kind}


def _kind_of(kinds: set[str]) -> Kind:
    """Return the type of a column that has values of these types."""
    if kinds == {Kind.BOOL}:
        return Kind.BOOL
    if kinds and kinds <= {Kind.INT, "big"}:
        return Kind.INT
    return Kind.FLOAT if kinds and kinds <= {Kind.INT, Kind.FLOAT} else Kind.TEXT


def _item(key: str) -> Callable[[ReportRow], Any]:
    return lambda row: row.meta.get(key) if isinstance(row.meta, dict) else None


def _bare_meta(row: ReportRow) -> Any:
    return None if isinstance(row.meta, dict) else row.meta


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, with a number if another column has it, and take it."""
    free, number = name, 1
    while free.casefold() in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free.casefold())
    return free


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
