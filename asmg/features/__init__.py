"""Fields: known properties of an interaction's context, its user and its item. Needs no torch: serving imports it."""

from asmg.features.clock import find_zone, time_values
from asmg.features.field import MAX_EDGES, MAX_LIST_VALUES, Enter, Field, Kind, Of, SchemaError
from asmg.features.schema import DEFAULT, MAX_FIELDS, RESERVED_NAMES, TIME_FIELDS, Schema
from asmg.features.values import (
    MAX_NUMBER,
    MAX_VALUE_LENGTH,
    MISSING,
    NUMBER,
    Scalar,
    Value,
    ValueFault,
    bucket_values,
    check,
    encode,
    name_of_value,
    number,
    numbers,
)

__all__ = [
    "DEFAULT",
    "MAX_EDGES",
    "MAX_FIELDS",
    "MAX_LIST_VALUES",
    "MAX_NUMBER",
    "MAX_VALUE_LENGTH",
    "MISSING",
    "NUMBER",
    "RESERVED_NAMES",
    "TIME_FIELDS",
    "Enter",
    "Field",
    "Kind",
    "Of",
    "Scalar",
    "Schema",
    "SchemaError",
    "Value",
    "ValueFault",
    "bucket_values",
    "check",
    "encode",
    "find_zone",
    "name_of_value",
    "number",
    "numbers",
    "time_values",
]
