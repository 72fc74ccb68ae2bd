"""The schema of the fields: their names, owners and kinds, and how they enter the model.

A schema is a TOML file:

    timezone = "Europe/Berlin"      # of hour and weekday; UTC by default
    time = ["hour", "weekday"]      # context fields made of the timestamp, both by default; [] for none

    [fields.device]
    of = "context"                  # context, user or item
    kind = "categorical"            # categorical, multi or numeric

    [fields.tags]
    of = "item"
    kind = "multi"                  # several categorical values at a time
    most = 8                        # maximum number of them

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
    training_only = true            # learned, but missing in predictions
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from asmg.features.clock import find_zone
from asmg.features.field import Field, Of, SchemaError, shown
from asmg.features.settings import read_field, toml_fault
from asmg.features.values import ValueFault, check, is_plain

__all__ = ["DEFAULT", "MAX_FIELDS", "RESERVED_NAMES", "TIME_FIELDS", "Schema"]

MAX_FIELDS = 64
"""Maximum number of fields, without hour and weekday."""

TIME_FIELDS = ("hour", "weekday")
"""Names of the context fields that are made of the timestamp."""

MAX_FILE_BYTES = 1 << 20
"""Maximum bytes of a schema file; 64 fields with 64 edges each take a tenth of it."""

RESERVED_NAMES = frozenset(
    {
        *TIME_FIELDS,
        *("user", "users", "user_id", "item", "items", "item_id", "id", "event_id", "request_id", "interaction_id"),
        *("label", "weight", "timestamp", "time", "timezone", "period", "history", "category", "categories"),
        *("context", "features", "field", "fields", "score", "statistics"),
    }
)
"""Names that have another meaning in a log or a request."""


@dataclass(frozen=True)
class Schema:
    """All fields of a model.

    Raises:
        SchemaError: a name is reserved or occurs twice, there are too many fields, or `timezone` or `time` is invalid.
    """

    fields: tuple[Field, ...] = ()
    """The declared fields, without hour and weekday."""
    timezone: str = "UTC"
    """Time zone of hour and weekday, a name of the IANA database."""
    time: tuple[str, ...] = TIME_FIELDS
    """Wanted fields of the timestamp: `hour` ("0" to "23"), `weekday` ("0", Monday, to "6"), both or none."""

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
            found.append(f"time: expected hour, weekday, both or none, each once; received {shown(list(self.time))}")
        try:
            find_zone(self.timezone)
        except ValueError as error:
            found.append(str(error))
        if found:
            raise SchemaError(found)

    @cached_property
    def all(self) -> tuple[Field, ...]:
        """The fields of the timestamp, then the declared ones."""
        return (*(Field(name, "context", "categorical") for name in self.time), *self.fields)

    def of(self, of: Of) -> tuple[Field, ...]:
        """All fields of an owner."""
        return tuple(field for field in self.all if field.of == of)

    def declared(self, of: Of) -> Mapping[str, Field]:
        """The declared fields of an owner by name: those that a client can send."""
        return self._declared[of]

    @cached_property
    def _declared(self) -> dict[Of, dict[str, Field]]:
        owners: tuple[Of, ...] = get_args(Of)
        return {of: {field.name: field for field in self.fields if field.of == of} for of in owners}

    def faults(self, of: Of, values: Mapping[str, Any]) -> list[ValueFault]:
        """The faults of values that a client sends for an owner: unknown names, and values not allowed for their field.

        Args:
            of: the owner.
            values: name of a field → value.
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
        """Whether `faults` finds none; faster than `faults`."""
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
        """Raise the first ValueFault of a context's values."""
        self._check("context", values)

    def check_user(self, values: Mapping[str, Any]) -> None:
        """Raise the first ValueFault of a user's values."""
        self._check("user", values)

    def check_item(self, values: Mapping[str, Any]) -> None:
        """Raise the first ValueFault of an item's values."""
        self._check("item", values)

    def _check(self, of: Of, values: Mapping[str, Any]) -> None:
        if found := self.faults(of, values):
            raise found[0]

    @classmethod
    def read(cls, path: Path) -> "Schema":
        """The schema in a TOML file.

        Raises:
            OSError: the file cannot be read.
            SchemaError: the schema is invalid; each fault names the file.
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
        """The schema of a TOML text.

        Raises:
            SchemaError: the schema is invalid.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SchemaError([toml_fault(str(error))]) from None
        tables = values.get("fields", {})
        if not isinstance(tables, Mapping):
            raise SchemaError([f"fields: expected a table for each field, [fields.NAME]; received {shown(tables)}"])
        return cls._from_settings(values, list(tables.items()))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Schema":
        """The inverse of `to_json`.

        Raises:
            SchemaError: the schema is invalid.
        """
        listed = values.get("fields", [])
        if not isinstance(listed, list) or not all(isinstance(field, Mapping) and "name" in field for field in listed):
            raise SchemaError([f"fields: expected a list of objects with a name; received {shown(listed)}"])
        pairs = [(field["name"], {key: field[key] for key in field if key != "name"}) for field in listed]
        return cls._from_settings(values, pairs)

    @classmethod
    def _from_settings(cls, values: Mapping[str, Any], declared: Sequence[tuple[Any, Any]]) -> "Schema":
        """The schema of parsed settings; all faults are reported together."""
        found = [
            f"{key}: expected timezone, time or fields; received a setting of another name"
            for key in values
            if key not in ("timezone", "time", "fields")
        ]
        timezone, time = values.get("timezone", "UTC"), values.get("time", list(TIME_FIELDS))
        if not isinstance(timezone, str):
            found.append(f"timezone: expected a name of the IANA database; received {shown(timezone)}")
            timezone = "UTC"
        if not (isinstance(time, list) and all(isinstance(name, str) for name in time)):
            found.append(f"time: expected a list of hour, weekday, both or none; received {shown(time)}")
            time = []
        fields: list[Field] = []
        for name, settings in declared:
            try:
                fields.append(read_field(name, settings))
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
        """The schema as JSON values; `fields` is a list in the order of the columns."""
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
"""The default schema: hour and weekday in UTC."""


def _known(declared: Mapping[str, Field], of: Of) -> str:
    return f"a field of the {of}: {', '.join(declared)}" if declared else f"no field: the schema has none of the {of}"
