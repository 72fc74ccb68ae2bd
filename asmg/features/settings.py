"""Reading the settings of fields from TOML or JSON values."""

import re
from collections.abc import Mapping
from typing import Any

from asmg.features.field import Field, SchemaError, shown

__all__ = ["read_field", "toml_fault"]

DEFAULT_LIST_VALUES = 8
"""Default of `most` for a multi field."""

_SETTINGS = ("of", "kind", "most", "enter", "buckets", "training_only")


def read_field(name: Any, settings: Any) -> Field:
    """The field that a table of settings declares.

    Raises:
        SchemaError: the settings are invalid; all faults are listed.
    """
    if not isinstance(settings, Mapping):
        raise SchemaError([f"fields.{name}: expected a table of {', '.join(_SETTINGS)}; received {shown(settings)}"])
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


def toml_fault(message: str) -> str:
    """The fault of invalid TOML from the parser's message; a name that is declared twice gets a message of its own."""
    twice = re.search(r"Cannot declare \(([^)]*)\) twice", message)
    if twice is None:
        return f"expected TOML; received something else: {message}"
    name = ".".join(re.findall(r"'([^']*)'", twice[1]))
    return f"{name}: expected a name that no other field has; received it twice"
