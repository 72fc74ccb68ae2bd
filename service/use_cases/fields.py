"""Values of fields that clients send: checked by the schema, and written as they are stored.

`service.http.bodies` and the routers call it for contexts and features; the OpenAPI document describes them with it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import orjson

from asmg.features import MAX_NUMBER, MAX_VALUE_LENGTH, Field, Of, Schema
from service.errors import FieldError
from service.limits import MAX_CONTEXT_BYTES, MAX_INTEGER_ID, MIN_INTEGER_ID

__all__ = ["FIELDS_OF", "allowed", "cleaned", "described", "faults", "written"]

FIELDS_OF = "x-fields-of"
"""Marks a schema in the OpenAPI document whose properties are the fields of the context, a user or an item."""

SHOWN_CHARACTERS = 100
"""Characters of an unknown field's name that an error shows."""


def faults(schema: Schema, of: Of, values: Mapping[str, Any] | None, path: str) -> Iterator[FieldError]:
    """What is wrong with the values that a client sent.

    Args:
        schema: of the fields.
        of: `context`, `user` or `item`.
        values: by the names of the fields.
        path: of the object that holds them in the body, such as `interactions[3].context`.
    """
    if not values:
        return
    found = schema.faults(of, values)
    for fault in found:
        yield FieldError(f"{path}.{fault.name[:SHOWN_CHARACTERS]}", fault.expected, fault.received)
    if not found and (size := len(msgspec.json.encode(cleaned(values)))) > MAX_CONTEXT_BYTES:
        yield FieldError(path, f"at most {MAX_CONTEXT_BYTES} bytes as JSON", f"{size}")


def allowed(schema: Schema, of: Of, values: Mapping[str, Any]) -> bool:
    """A quick check: if it is true, `faults` finds nothing wrong; if it is false, `faults` has to decide."""
    return schema.allows(of, values) and len(msgspec.json.encode(values)) <= MAX_CONTEXT_BYTES


def cleaned(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values without the missing ones, where `faults` finds nothing wrong. Equal values have equal sorted JSON."""
    known = {name: value for name, value in (values or {}).items() if value is not None and value not in ("", [])}
    # Only a field that is a number may be so large. orjson writes integers of 64 bits only.
    large = {
        name: float(value)
        for name, value in known.items()
        if type(value) is int and not MIN_INTEGER_ID <= value <= MAX_INTEGER_ID
    }
    return known | large


def written(values: Mapping[str, Any] | None) -> str | None:
    """`cleaned` as a JSON text with sorted keys; None where all values are missing."""
    known = cleaned(values)
    return orjson.dumps(known, option=orjson.OPT_SORT_KEYS).decode() if known else None


def described(node: Any, schema: Schema) -> Any:
    """A part of the OpenAPI document, with the fields of the schema in place of `FIELDS_OF`."""
    if isinstance(node, list):
        return [described(part, schema) for part in node]
    if not isinstance(node, dict):
        return node
    if FIELDS_OF not in node:
        return {name: described(part, schema) for name, part in node.items()}
    properties = {name: _described(field) for name, field in schema.declared(node[FIELDS_OF]).items()}
    rest = {name: part for name, part in node.items() if name != FIELDS_OF}
    return {**rest, "properties": properties, "additionalProperties": False}


def _described(field: Field) -> dict[str, Any]:
    """The JSON schema of a field's values."""
    scalar = [
        {"type": "string", "maxLength": MAX_VALUE_LENGTH, "pattern": r"^[^\x00]*$"},
        {"type": "integer", "minimum": MIN_INTEGER_ID, "maximum": MAX_INTEGER_ID},
        {"type": "boolean"},
    ]
    if field.kind == "categorical":
        return {"anyOf": [*scalar, {"type": "null"}]}
    if field.kind == "multi":
        return {"type": ["array", "null"], "items": {"anyOf": scalar}, "maxItems": field.most}
    return {"type": ["number", "null"], "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
