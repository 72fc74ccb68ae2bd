"""The schema of the fields: their names, what they are of, their kinds, and how they enter the model.

A schema is a TOML file:

    timezone = "Europe/Berlin"      # of hour and weekday; UTC by default
    time = ["hour", "weekday"]      # context fields made of the timestamp, both by default; [] leaves them out

    [fields.device]
    of = "context"                  # context, user or item
    kind = "categorical"            # categorical, multi or numeric

    [fields.tags]
    of = "item"
    kind = "multi"                  # several categorical values at a time
    most = 8                        # of them

    [fields.price]
    of = "item"
    kind = "numeric"
    enter = "log"                   # standardised (by default), log or buckets

    [fields.age]
    of = "user"
    kind = "numeric"
    enter = "buckets"
    buckets = [18, 25, 35, 50]      # ascending edges; a value at an edge belongs to the bucket above it

    [fields.position]
    of = "context"
    kind = "categorical"
    training_only = true            # learned, and missing when predicting
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from asmg.features.values import MAX_NUMBER, ValueFault, check, find_zone, is_plain

__all__ = [
    "DEFAULT",
    "MAX_EDGES",
    "MAX_FIELDS",
    "MAX_LIST_VALUES",
    "RESERVED_NAMES",
    "TIME_FIELDS",
    "Enter",
    "Field",
    "Kind",
    "Of",
    "Schema",
    "SchemaError",
]

Of = Literal["context", "user", "item"]
Kind = Literal["categorical", "multi", "numeric"]
Enter = Literal["standardised", "log", "buckets"]

MAX_FIELDS = 64
"""Fields of a schema, without hour and weekday."""

MAX_LIST_VALUES = 32
"""Largest `most`: each value of a multi field is a column of every interaction."""

DEFAULT_LIST_VALUES = 8
"""`most` of a multi field that does not say it."""

MAX_EDGES = 64
"""Edges of a bucketised field."""

TIME_FIELDS = ("hour", "weekday")
"""Context fields that are made of the timestamp."""

MAX_FILE_BYTES = 1 << 20
"""Of a schema's file: 64 fields with 64 edges each take a tenth of it."""

RESERVED_NAMES = frozenset(
    {
        *TIME_FIELDS,
        *("user", "users", "user_id", "item", "items", "item_id", "id", "event_id", "request_id", "interaction_id"),
        *("label", "weight", "timestamp", "time", "timezone", "period", "history", "category", "categories"),
        *("context", "features", "field", "fields", "score", "statistics"),
    }
)
"""Names that mean something else in a log or a request."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SETTINGS = ("of", "kind", "most", "enter", "buckets", "training_only")


class SchemaError(ValueError):
    """A schema that is not as it has to be; each of `faults` is one line that names the field."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


@dataclass(frozen=True)
class Field:
    """One field.

    Raises:
        SchemaError: a setting is not as it has to be.
    """

    name: str
    """A lower-case letter, then lower-case letters, digits and _; 32 characters at most."""
    of: Of
    """Whose it is: of the interaction itself (context), of its user or of its item."""
    kind: Kind
    """One value of several (categorical), several of them at a time (multi), or a number (numeric)."""
    most: int = 1
    """Values that an interaction can have, 1 to 32; more than 1 for multi only."""
    enter: Enter | None = None
    """How a numeric field enters: standardised; log: sign(x)·log(1+|x|), then standardised; buckets: as a categorical
    field whose values are the buckets. None for the other kinds."""
    buckets: tuple[float, ...] = ()
    """Ascending edges, for `enter` "buckets". n edges make n+1 buckets."""
    training_only: bool = False
    """Whether the field is missing when predicting; for context only."""

    def __post_init__(self) -> None:
        if self.kind == "numeric" and self.enter is None:
            object.__setattr__(self, "enter", "standardised")
        if faults := tuple(self._faults()):
            raise SchemaError(faults)

    def _faults(self) -> list[str]:
        found: list[str] = []

        def expect(good: bool, setting: str, expected: str, received: Any) -> None:
            if not good:
                found.append(f"fields.{self.name}{setting}: expected {expected}; received {_shown(received)}")

        name = self.name
        expect(
            _NAME.fullmatch(str(name)) is not None,
            "",
            "a name of at most 32 characters: a lower-case letter, then lower-case letters, digits and _",
            name,
        )
        expect(self.of in get_args(Of), ".of", "context, user or item", self.of)
        expect(self.kind in get_args(Kind), ".kind", "categorical, multi or numeric", self.kind)
        if self.kind == "multi":
            good = type(self.most) is int and 1 <= self.most <= MAX_LIST_VALUES
            expect(good, ".most", f"a whole number from 1 to {MAX_LIST_VALUES}", self.most)
        elif self.kind in get_args(Kind):
            expect(self.most == 1, ".most", "none, as only a multi field has it", self.most)
        if self.kind == "numeric":
            expect(self.enter in get_args(Enter), ".enter", "standardised, log or buckets", self.enter)
        elif self.kind in get_args(Kind):
            expect(self.enter is None, ".enter", "none, as only a numeric field has it", self.enter)
        if self.enter == "buckets":
            expect(_are_edges(self.buckets), ".buckets", f"1 to {MAX_EDGES} ascending numbers", list(self.buckets))
        else:
            expect(not self.buckets, ".buckets", 'none without enter = "buckets"', list(self.buckets))
        expect(isinstance(self.training_only, bool), ".training_only", "true or false", self.training_only)
        if self.training_only is True and self.of in get_args(Of):
            expect(self.of == "context", ".training_only", "false for a field that is not of the context", True)
        return found

    @property
    def by_table(self) -> bool:
        """Whether each value has a row of its own; else the field enters as a number."""
        return self.kind != "numeric" or self.enter == "buckets"

    def to_json(self) -> dict[str, Any]:
        """The settings of the field, its name included, without those at their defaults."""
        found: dict[str, Any] = {"name": self.name, "of": self.of, "kind": self.kind}
        if self.kind == "multi":
            found["most"] = self.most
        if self.enter is not None:
            found["enter"] = self.enter
        if self.buckets:
            found["buckets"] = list(self.buckets)
        if self.training_only:
            found["training_only"] = True
        return found


@dataclass(frozen=True)
class Schema:
    """All fields of a model.

    Raises:
        SchemaError: a name is reserved or occurs twice, there are too many fields, or `timezone` or `time` is not as it
            has to be.
    """

    fields: tuple[Field, ...] = ()
    """Without those that are made of the timestamp."""
    timezone: str = "UTC"
    """Name in the IANA database of the zone of the fields that are made of the timestamp."""
    time: tuple[str, ...] = TIME_FIELDS
    """Fields that are made of the timestamp: `hour` ("0" to "23"), `weekday` ("0", Monday, to "6"), both or none."""

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        found = [
            f"fields.{name}: expected a name that is not reserved; received {name!r}"
            for name in names
            if name in RESERVED_NAMES
        ]
        if len(self.fields) > MAX_FIELDS:
            found.append(f"fields: expected at most {MAX_FIELDS} fields; received {len(self.fields)}")
        found += [
            f"fields.{name}: expected a name that no other field has; received it {names.count(name)} times"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        if not set(self.time) <= set(TIME_FIELDS) or len(set(self.time)) < len(self.time):
            found.append(f"time: expected hour, weekday, both or none, each once; received {_shown(list(self.time))}")
        try:
            find_zone(self.timezone)
        except ValueError as error:
            found.append(str(error))
        if found:
            raise SchemaError(found)

    @cached_property
    def all(self) -> tuple[Field, ...]:
        """The fields that are made of the timestamp, then `fields`."""
        return (*(Field(name, "context", "categorical") for name in self.time), *self.fields)

    def of(self, of: Of) -> tuple[Field, ...]:
        """Those of `all` that are of the context, the user or the item."""
        return tuple(field for field in self.all if field.of == of)

    def declared(self, of: Of) -> Mapping[str, Field]:
        """Those of `fields` that are of the context, the user or the item, by name: what a client can send."""
        return self._declared[of]

    @cached_property
    def _declared(self) -> dict[Of, dict[str, Field]]:
        owners: tuple[Of, ...] = get_args(Of)
        return {of: {field.name: field for field in self.fields if field.of == of} for of in owners}

    def faults(self, of: Of, values: Mapping[str, Any]) -> list[ValueFault]:
        """What is wrong with the values that a client sends for the context, a user or an item, by the names of the
        fields: an unknown name, or a value that its field cannot have.
        """
        declared, found = self.declared(of), []
        for name, value in values.items():
            try:
                if name not in declared:
                    raise ValueFault(name, _known(declared, of), "a field of another name")
                check(declared[name], value)
            except ValueFault as fault:
                found.append(fault)
        return found

    def allows(self, of: Of, values: Mapping[str, Any]) -> bool:
        """Whether `faults` would find none; it takes less time than to name one."""
        declared = self._declared[of]
        try:
            for name, value in values.items():
                field = declared[name]
                if not is_plain(field, value):
                    check(field, value)
        except (KeyError, ValueFault):
            return False
        return True

    def check_context(self, values: Mapping[str, Any]) -> None:
        """Raise the first ValueFault of the values of a context."""
        self._check("context", values)

    def check_user(self, values: Mapping[str, Any]) -> None:
        """Raise the first ValueFault of the values of a user."""
        self._check("user", values)

    def check_item(self, values: Mapping[str, Any]) -> None:
        """Raise the first ValueFault of the values of an item."""
        self._check("item", values)

    def _check(self, of: Of, values: Mapping[str, Any]) -> None:
        if found := self.faults(of, values):
            raise found[0]

    @classmethod
    def read(cls, path: Path) -> "Schema":
        """The schema in a TOML file.

        Raises:
            OSError: the file cannot be read.
            SchemaError: it holds no schema; each fault names the file.
        """
        data = path.read_bytes()
        try:
            if len(data) > MAX_FILE_BYTES:
                raise SchemaError([f"expected at most {MAX_FILE_BYTES:,} bytes; received {len(data):,}"])
            return cls.from_toml(data.decode())
        except UnicodeDecodeError as error:
            raise SchemaError([f"{path}: expected UTF-8; received another byte at {error.start:,}"]) from None
        except SchemaError as error:
            raise SchemaError([f"{path}: {fault}" for fault in error.faults]) from None

    @classmethod
    def from_toml(cls, text: str) -> "Schema":
        """The schema that a TOML text declares.

        Raises:
            SchemaError: it declares none.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SchemaError([_toml_fault(str(error))]) from None
        tables = values.get("fields", {})
        if not isinstance(tables, Mapping):
            raise SchemaError([f"fields: expected a table for each field, [fields.NAME]; received {_shown(tables)}"])
        return cls._of_settings(values, list(tables.items()))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Schema":
        """The inverse of `to_json`.

        Raises:
            SchemaError: the values are no schema.
        """
        listed = values.get("fields", [])
        if not isinstance(listed, list) or not all(isinstance(field, Mapping) and "name" in field for field in listed):
            raise SchemaError([f"fields: expected a list of objects with a name; received {_shown(listed)}"])
        pairs = [(field["name"], {key: field[key] for key in field if key != "name"}) for field in listed]
        return cls._of_settings(values, pairs)

    @classmethod
    def _of_settings(cls, values: Mapping[str, Any], declared: Sequence[tuple[Any, Any]]) -> "Schema":
        """Read what a file says; all that is wrong is told at once."""
        found = [
            f"{key}: expected timezone, time or fields; received a setting of another name"
            for key in values
            if key not in ("timezone", "time", "fields")
        ]
        timezone, time = values.get("timezone", "UTC"), values.get("time", list(TIME_FIELDS))
        if not isinstance(timezone, str):
            found.append(f"timezone: expected a name of the IANA database; received {_shown(timezone)}")
            timezone = "UTC"
        if not (isinstance(time, list) and all(isinstance(name, str) for name in time)):
            found.append(f"time: expected a list of hour, weekday, both or none; received {_shown(time)}")
            time = []
        fields: list[Field] = []
        for name, settings in declared:
            try:
                fields.append(_field_of(name, settings))
            except SchemaError as error:
                found += error.faults
        try:
            schema = cls(tuple(fields), timezone, tuple(time))
        except SchemaError as error:
            raise SchemaError([*found, *error.faults]) from None
        if found:
            raise SchemaError(found)
        return schema

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON values; the order of its fields is that of its columns, so they are a list."""
        return {
            "timezone": self.timezone,
            "time": list(self.time),
            "fields": [field.to_json() for field in self.fields],
        }

    def to_toml(self) -> str:
        """The schema as the TOML text that `from_toml` reads."""
        lines = [f"timezone = {json.dumps(self.timezone)}", f"time = {json.dumps(self.time)}"]
        for field in self.fields:
            settings = field.to_json()
            lines += ["", f"[fields.{settings.pop('name')}]"]
            lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        return "\n".join([*lines, ""])


DEFAULT = Schema()
"""The schema of who declares none: hour and weekday, in UTC."""


def _known(declared: Mapping[str, Field], of: Of) -> str:
    return f"a field of the {of}: {', '.join(declared)}" if declared else f"no field: the schema has none of the {of}"


def _field_of(name: Any, settings: Any) -> Field:
    if not isinstance(settings, Mapping):
        raise SchemaError([f"fields.{name}: expected a table of {', '.join(_SETTINGS)}; received {_shown(settings)}"])
    expected = f"expected a setting of a field: {', '.join(_SETTINGS)}"
    found = [
        f"fields.{name}.{key}: {expected}; received one of another name" for key in settings if key not in _SETTINGS
    ]
    kind = settings.get("kind")
    edges = settings.get("buckets", [])
    try:
        field = Field(
            name=name,
            of=settings.get("of"),  # type: ignore[arg-type] # checked by Field, as all of them are
            kind=kind,  # type: ignore[arg-type]
            most=settings.get("most", DEFAULT_LIST_VALUES if kind == "multi" else 1),
            enter=settings.get("enter"),
            buckets=tuple(edges) if isinstance(edges, list) else (edges,),
            training_only=settings.get("training_only", False),
        )
    except SchemaError as error:
        raise SchemaError([*found, *error.faults]) from None
    if found:
        raise SchemaError(found)
    return field


def _are_edges(edges: Sequence[Any]) -> bool:
    """Whether these are 1 to `MAX_EDGES` ascending numbers."""
    numbers = all(
        isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) <= MAX_NUMBER for edge in edges
    )  # NaN is not at most anything
    return numbers and 1 <= len(edges) <= MAX_EDGES and all(low < high for low, high in pairwise(edges))


def _toml_fault(message: str) -> str:
    """What is wrong with a text that is not TOML; a name that is declared twice is told as what it is."""
    twice = re.search(r"Cannot declare \(([^)]*)\) twice", message)
    if twice is None:
        return f"expected TOML; received something else: {message}"
    name = ".".join(re.findall(r"'([^']*)'", twice[1]))
    return f"{name}: expected a name that no other field has; received it twice"


def _shown(value: Any) -> str:
    """A value as an error shows it, shortened."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
