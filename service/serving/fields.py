"""Turns the fields of a request into what a snapshot reads of them: hashes of values and their weights.

`service.use_cases.predict` calls `FieldReader.read` for each prediction of a model with fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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
from asmg.kernels.common import Floats, Rows
from asmg.layout import FURTHEST
from service.serving.id_hashes import Hashes, hash_id

__all__ = ["NO_VALUES", "OF_CONTEXT", "OF_ITEM", "OF_USER", "FieldReader", "FieldValues"]

OF_CONTEXT, OF_USER, OF_ITEM = 0, 1, 2
"""Owners of a value in `FieldValues`. `OF_ITEM` + n is the context of the n-th candidate alone."""

NO_SCALE = (0.0, 0.0)
"""Scale of a field of which the model has seen no number: every number gets the weight 0."""

MAX_CACHED_HASHES = 1024
"""Hashes of values that are cached for each field; of names of 256 characters they take half a megabyte."""

MINUTE_MS = 60_000

Given = Mapping[str, Any]
"""Name of a field → its value, as the client sent it."""

_Number = tuple[int, float]
"""Position of a value among all of the request, and its weight."""

Read = tuple[tuple[int, ...], float]
"""Hashes of the values of one field, and the weight of each."""


class FieldValues(NamedTuple):
    """The K values of the fields of one request, in any order."""

    hashes: Hashes
    """By which a snapshot knows each value, uint64 [K]."""
    weights: Floats
    """The factor of each value's vector, float32 [K]: 1, or the standardised number where the value is a number."""
    owners: Rows
    """int32 [K]: `OF_CONTEXT`, `OF_USER`, or `OF_ITEM` + n."""


NO_VALUES = FieldValues(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.int32))
"""The values of a request without fields."""


class FieldReader:
    """Reads fields as the model of one snapshot learned them: by its schema, and with its scales of numbers.

    A request was checked by the schema of the process, which may differ from that of the model. So nothing is refused
    here: a field that the model does not have is left out, and a value that its field cannot have counts as missing.
    """

    def __init__(self, schema: Schema, scales: Mapping[str, tuple[float, float]]) -> None:
        """Prepare the fields of the schema.

        Args:
            schema: of the model.
            scales: by the name of each field that enters as a number, its mean and the factor by which the difference
                to the mean is multiplied.
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

        A field that is not given has the value "missing". A field that is for training only is always missing.

        Args:
            context: of the request.
            user: the features of the user.
            contexts: of single candidates; a value in one of them replaces that of `context`. Empty, or one for each
                candidate.
            timestamp_ms: time of the request, milliseconds since 1970.
        """
        hashes = [*self._at(timestamp_ms), *self._never_given]
        numbers: list[_Number] = []
        _read_all(self._of_context, context, hashes, numbers)
        of_context = len(hashes)
        _read_all(self._of_user, user, hashes, numbers)
        of_items = [OF_CONTEXT] * of_context + [OF_USER] * (len(hashes) - of_context) if contexts else []
        for place, own in enumerate(contexts):
            for name, value in own.items() if own else ():
                if (known := self._of_context.get(name)) is not None:
                    (found, weight), (less, less_weight) = known.read(value), known.read(context.get(name))
                    numbers += [(len(hashes) + n, weight) for n in range(len(found))]
                    hashes += found
                    numbers += [(len(hashes) + n, -less_weight) for n in range(len(less))]
                    hashes += less
            of_items += [OF_ITEM + place] * (len(hashes) - len(of_items))
        if not hashes:
            return NO_VALUES
        weights, owners = np.ones(len(hashes), np.float32), np.zeros(len(hashes), np.int32)  # OF_CONTEXT
        for at, weight in numbers:
            weights[at] = weight
        if contexts:
            owners[:] = of_items
        else:
            owners[of_context:] = OF_USER
        return FieldValues(np.array(hashes, np.uint64), weights, owners)

    def of_item(self, given: Given) -> list[tuple[str, float]]:
        """Names (`name_of_value`) and weights of the values that an item with these features has."""
        found = [(known.field.name, *known.values(given.get(known.field.name))) for known in self._of_item]
        return [(name_of_value(name, value), weight) for name, values, weight in found for value in values]

    def _known(self, of: Of) -> list["_KnownField"]:
        return [
            _KnownField(field, self._scales.get(name, NO_SCALE)) for name, field in self.schema.declared(of).items()
        ]

    def _at(self, timestamp_ms: int) -> tuple[int, ...]:
        """Hashes of hour and weekday, computed once a minute; daylight saving time begins and ends at a full one."""
        minute, found = self._minute
        if minute != timestamp_ms // MINUTE_MS:
            shown = time_values(self.schema, np.array([timestamp_ms]))
            found = tuple(value for known in self._of_time for value in known.read(str(shown[known.field.name][0]))[0])
            self._minute = timestamp_ms // MINUTE_MS, found
        return found


def _read_all(fields: Mapping[str, "_KnownField"], given: Given, hashes: list[int], numbers: list[_Number]) -> None:
    """Append the hashes of each field's values to `hashes`, and the weights that are not 1 to `numbers`."""
    for name, known in fields.items():
        value = given.get(name)
        if type(value) is str and (text := known.texts.get(value)) is not None:  # the usual case: a cached text
            hashes.append(text)
            continue
        found, weight = known.read(value)
        if weight != 1.0:
            numbers.append((len(hashes), weight))  # a number is one value
        hashes += found


class _KnownField:
    """One field of a model. It caches the hashes of values, which take longer to compute than all else here."""

    def __init__(self, field: Field, scale: tuple[float, float]) -> None:
        self.field, self._scale, self._weighs = field, scale, not field.by_table
        self._missing: Read = ((self._hash_of(MISSING),), 1.0)
        self._number = (self._hash_of(NUMBER),)
        self._hashes: dict[str, int] = {}
        self.texts: Mapping[str, int] = self._hashes if field.kind == "categorical" else {}
        """Cached hashes of texts; empty for a field that is not categorical."""

    def read(self, given: Any) -> Read:
        """Hashes and weight of what a client gave for the field."""
        if given is None:
            return self._missing
        try:
            if self._weighs:
                return self._number, self._weight(given)
            if self.field.kind == "multi" and type(given) is list and 0 < len(given) <= self.field.most:
                return tuple(sorted({self._hashes[value] for value in given})), 1.0  # all of them cached
        except (KeyError, TypeError):
            pass
        except ValueFault:
            return self._missing
        values, _ = self.values(given)
        return self._missing if values == (MISSING,) else (tuple(sorted([self._hash(value) for value in values])), 1.0)

    def values(self, given: Any) -> tuple[tuple[str, ...], float]:
        """`read` with the values themselves in place of their hashes."""
        try:
            if not self._weighs:
                return encode(self.field, given), 1.0
            return ((MISSING,), 1.0) if given is None else ((NUMBER,), self._weight(given))
        except ValueFault:
            return (MISSING,), 1.0

    def _weight(self, given: Any) -> float:
        """The standardised number. Raises ValueFault where the field cannot have it."""
        mean, by = self._scale
        return min(max((number(self.field, given) - mean) * by, -FURTHEST), FURTHEST)

    def _hash(self, value: str) -> int:
        found = self._hashes.get(value)
        if found is None:
            if len(self._hashes) >= MAX_CACHED_HASHES:
                self._hashes.clear()
            found = self._hashes[value] = self._hash_of(value)
        return found

    def _hash_of(self, value: str) -> int:
        return hash_id(name_of_value(self.field.name, value))
