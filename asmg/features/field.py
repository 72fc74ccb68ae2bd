"""One field of a schema: its settings and their rules."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from asmg.features.values import MAX_NUMBER

__all__ = ["MAX_EDGES", "MAX_LIST_VALUES", "Enter", "Field", "Kind", "Of", "SchemaError", "shown"]

Of = Literal["context", "user", "item"]
"""The owner of a field."""

Kind = Literal["categorical", "multi", "numeric"]
"""Kind of a field's values, see `Field.kind`."""

Enter = Literal["standardised", "log", "buckets"]
"""How a numeric field enters the model, see `Field.enter`."""

MAX_LIST_VALUES = 32
"""Maximum of `Field.most`; each value of a multi field is a column of every interaction."""

MAX_EDGES = 64
"""Maximum number of a field's bucket edges."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class SchemaError(ValueError):
    """A schema is invalid. Each of `faults` is one line that names the field."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


@dataclass(frozen=True)
class Field:
    """One field.

    Raises:
        SchemaError: a setting is invalid.
    """

    name: str
    """A lower-case letter, then lower-case letters, digits and _; at most 32 characters."""
    of: Of
    """The owner: the interaction itself (context), its user or its item."""
    kind: Kind
    """One of several values (categorical), several of them at a time (multi), or a number (numeric)."""
    most: int = 1
    """Maximum number of values of an interaction, 1 to 32; more than 1 only for multi."""
    enter: Enter | None = None
    """How a numeric field enters the model: standardised; log, sign(x)·log(1+|x|) standardised; buckets, as a
    categorical field whose values are the buckets. None for the other kinds."""
    buckets: tuple[float, ...] = ()
    """Ascending edges for `enter` "buckets"; n edges make n + 1 buckets."""
    training_only: bool = False
    """Whether the field is missing in predictions; only for context fields."""

    def __post_init__(self) -> None:
        if self.kind == "numeric" and self.enter is None:
            object.__setattr__(self, "enter", "standardised")
        if faults := tuple(self._faults()):
            raise SchemaError(faults)

    def _faults(self) -> list[str]:
        found: list[str] = []

        def expect(good: bool, setting: str, expected: str, received: Any) -> None:
            if not good:
                found.append(f"fields.{self.name}{setting}: expected {expected}; received {shown(received)}")

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
        """Whether each value has its own row of the field table; otherwise the field enters as a number."""
        return self.kind != "numeric" or self.enter == "buckets"

    def to_json(self) -> dict[str, Any]:
        """The name and the settings of the field as JSON values, without defaults."""
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


def _are_edges(edges: Sequence[Any]) -> bool:
    """Whether these are 1 to `MAX_EDGES` ascending numbers."""
    numbers = all(
        isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) <= MAX_NUMBER for edge in edges
    )  # False for NaN
    return numbers and 1 <= len(edges) <= MAX_EDGES and all(low < high for low, high in pairwise(edges))


def shown(value: Any) -> str:
    """A value as JSON text for an error message, shortened to 60 characters."""
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
