"""What the fields of a request are to a snapshot: the hashes by which it knows their values, and what each counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from xxhash import xxh64_intdigest

from asmg.features import (
    MISSING,
    NUMBER,
    Field,
    Of,
    Schema,
    ValueFault,
    encode,
    name_of_value,
    number,
    time_values,
)
from asmg.layout import FURTHEST
from service.serving.forward import NO_VALUES, OF_CONTEXT, OF_ITEM, OF_USER, FieldValues

__all__ = ["FieldReader"]

NO_SCALE = (0.0, 0.0)
"""Of a field of which the model has seen no number: all of them weigh nothing."""

REMEMBERED = 1024
"""Values of a field whose hashes are remembered: with names of 256 characters half a megabyte."""

MINUTE_MS = 60_000

Given = Mapping[str, Any]
"""Name of a field → its value, as the client sent it."""

Read = tuple[tuple[int, ...], float]
"""Hashes of the values that are read of one field, and the weight of each."""


class FieldReader:
    """Reads fields as the model of one snapshot learned them: by its schema, and with its scale of numbers.

    A request was checked by the schema of the process, which need not be that of the model. So nothing is refused here:
    a field that the model does not have is left out, and a value that its field cannot have is missing.
    """

    def __init__(self, schema: Schema, scales: Mapping[str, tuple[float, float]]) -> None:
        """Take over what the snapshot's header says.

        Args:
            schema: of the model.
            scales: name of each field that enters as a number → what is taken off it, and what it is then
                multiplied by.
        """
        self.schema, self._scales = schema, scales
        context = self._known("context")
        self._of_context = {one.field.name: one for one in context if not one.field.training_only}
        self._never_given = [value for one in context if one.field.training_only for value in one.read(None)[0]]
        self._of_user = {one.field.name: one for one in self._known("user")}
        self._of_item = self._known("item")
        self._of_time = [_KnownField(field, NO_SCALE) for field in schema.all[: len(schema.time)]]
        self._minute: tuple[int, tuple[int, ...]] = (-1, ())

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FieldReader":
        """The inverse of `to_json`."""
        scales = {name: (float(mean), float(by)) for name, (mean, by) in values["scales"].items()}
        return cls(Schema.from_json(values["schema"]), scales)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"schema": self.schema.to_json(), "scales": {name: list(scale) for name, scale in self._scales.items()}}

    def read(
        self,
        context: Given,
        user: Given,
        contexts: Sequence[Given | None] = (),
        *,
        timestamp_ms: int,
    ) -> FieldValues:
        """The fields of one request.

        A field that is not given is missing, which is a value too. One for training only is missing in any case.

        Args:
            context: of the request.
            user: the features of the user.
            contexts: of single candidates; what one says stands in the place of what `context` says. Empty, or one for
                each candidate.
            timestamp_ms: when it is asked, milliseconds since 1970.
        """
        hashes = [*self._at(timestamp_ms), *self._never_given]
        weights = [1.0] * len(hashes)
        of_all = {name: known.read(context.get(name)) for name, known in self._of_context.items()}
        for found, weight in of_all.values():
            hashes += found
            weights += [weight] * len(found)
        owners = [OF_CONTEXT] * len(hashes)
        for name, known in self._of_user.items():
            found, weight = known.read(user.get(name))
            hashes += found
            weights += [weight] * len(found)
        owners += [OF_USER] * (len(hashes) - len(owners))
        for place, own in enumerate(contexts):
            for name, value in own.items() if own else ():
                if name in of_all:
                    (found, weight), (less, less_weight) = self._of_context[name].read(value), of_all[name]
                    hashes += (*found, *less)
                    weights += [weight] * len(found) + [-less_weight] * len(less)
            owners += [OF_ITEM + place] * (len(hashes) - len(owners))
        if not hashes:
            return NO_VALUES
        return FieldValues(np.array(hashes, np.uint64), np.array(weights, np.float32), np.array(owners, np.int32))

    def of_item(self, given: Given) -> list[tuple[str, float]]:
        """Names and weights of what an item with these features reads of the field table."""
        found = [(known.field.name, *known.values(given.get(known.field.name))) for known in self._of_item]
        return [(name_of_value(name, value), weight) for name, values, weight in found for value in values]

    def _known(self, of: Of) -> list["_KnownField"]:
        return [
            _KnownField(field, self._scales.get(name, NO_SCALE)) for name, field in self.schema.declared(of).items()
        ]

    def _at(self, timestamp_ms: int) -> tuple[int, ...]:
        """Hashes of hour and weekday, computed once a minute: clocks are set back and forth at a full one."""
        minute, found = self._minute
        if minute != timestamp_ms // MINUTE_MS:
            shown = time_values(self.schema, np.array([timestamp_ms]))
            found = tuple(value for known in self._of_time for value in known.read(str(shown[known.field.name][0]))[0])
            self._minute = timestamp_ms // MINUTE_MS, found
        return found


class _KnownField:
    """One field as a model has it. It remembers hashes, which take longer to compute than all else here."""

    def __init__(self, field: Field, scale: tuple[float, float]) -> None:
        self.field, self._kind, self._scale = field, field.kind, scale
        self._missing: Read = ((self._hash_of(MISSING),), 1.0)
        self._hashes: dict[str, int] = {}

    def read(self, given: Any) -> Read:
        """What is read of the field where this is given."""
        if given is None:
            return self._missing
        try:  # most often it is text that came before
            if self._kind == "categorical" and type(given) is str:
                return (self._hashes[given],), 1.0
            if self._kind == "multi" and type(given) is list and 0 < len(given) <= self.field.most:
                return tuple(sorted({self._hashes[value] for value in given})), 1.0
        except (KeyError, TypeError):
            pass
        values, weight = self.values(given)
        if values == (MISSING,):
            return self._missing
        return tuple(sorted([self._hash(value) for value in values])), weight

    def values(self, given: Any) -> tuple[tuple[str, ...], float]:
        """The same, with the values themselves."""
        try:
            if self.field.by_table:
                return encode(self.field, given), 1.0
            found = number(self.field, given)
        except ValueFault:
            return (MISSING,), 1.0
        if found != found:  # NaN: it is missing
            return (MISSING,), 1.0
        mean, by = self._scale
        return (NUMBER,), min(max((found - mean) * by, -FURTHEST), FURTHEST)

    def _hash(self, value: str) -> int:
        found = self._hashes.get(value)
        if found is None:
            if len(self._hashes) >= REMEMBERED:
                self._hashes.clear()
            found = self._hashes[value] = self._hash_of(value)
        return found

    def _hash_of(self, value: str) -> int:
        return xxh64_intdigest(name_of_value(self.field.name, value).encode())
