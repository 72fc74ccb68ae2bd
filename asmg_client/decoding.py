"""JSON to frozen dataclasses, by the types of their fields. Unknown members, as of a newer service, are left out."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from asmg_client.errors import InvalidAnswer

__all__ = ["decoded"]

T = TypeVar("T")

Reader = Callable[[Any], Any]


def decoded(kind: type[T], value: Any) -> T:
    """The JSON value as an object of this class; numbers, booleans and strings are taken as they come.

    Args:
        kind: a dataclass, whose fields are scalars, times, dataclasses, or sequences and mappings of them.
        value: as `json.loads` gives it.

    Raises:
        InvalidAnswer: a member is missing, or is no object, no array or no time where there must be one.
    """
    try:
        return cast(T, _reader(cast(Any, kind))(value))
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidAnswer(f"expected {kind.__name__}; received something else: {error}") from error


@cache
def _reader(kind: Any) -> Reader:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _object_reader(cast(type, kind))
    if kind is datetime:
        return datetime.fromisoformat
    if origin in (Union, types.UnionType):
        [inner] = [_reader(argument) for argument in arguments if argument is not type(None)]
        return lambda value: None if value is None else inner(value)
    if origin is Sequence:
        item = _reader(arguments[0])
        return _as_list if item is _as_it_is else lambda value: [item(part) for part in _as_list(value)]
    if origin is Mapping:
        member = _reader(arguments[1])
        return lambda value: {name: member(part) for name, part in value.items()}
    return _as_it_is


def _object_reader(kind: type) -> Reader:
    hints = get_type_hints(kind)
    readers = [(field.name, _reader(hints[field.name]), _is_optional(field)) for field in dataclasses.fields(kind)]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"expected an object; received {type(value).__name__}")
        members = {}
        for name, reader, optional in readers:
            if name in value:
                members[name] = reader(value[name])
            elif not optional:
                raise ValueError(f"{kind.__name__} without {name}")
        return kind(**members)

    return read


def _is_optional(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected an array; received {type(value).__name__}")
    return value


def _as_it_is(value: Any) -> Any:
    return value
