"""What the fields of a request are to a snapshot: the hashes by which it knows their values, and what each counts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from xxhash import xxh64_intdigest

from asmg.features import MISSING, NUMBER, Field, Schema, encode, name_of_value, number, time_values
from asmg.layout import FURTHEST
from service.serving.forward import NO_VALUES, OF_CONTEXT, OF_ITEM, OF_USER, FieldValues

__all__ = ["FieldReader"]

Given = Mapping[str, Any]
"""Name of a field → its value, as the client sent it; checked by the schema."""


class FieldReader:
    """Reads fields as the model of one snapshot learned them: by its schema, and with its scale of numbers."""

    def __init__(self, schema: Schema, scales: Mapping[str, tuple[float, float]]) -> None:
        """Take over what the snapshot's header says.

        Args:
            schema: of the model.
            scales: name of each field that enters as a number → what is taken off it, and what it is then
                multiplied by.
        """
        self.schema, self._scales = schema, scales
        self._of_context, self._of_user = schema.of("context"), schema.of("user")

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
        if not self._of_context and not self._of_user:
            return NO_VALUES
        of_time = time_values(self.schema, np.array([timestamp_ms])) if self.schema.time else {}
        context = {**context, **{name: str(value[0]) for name, value in of_time.items()}}
        found = [
            (*one, OF_CONTEXT) for field in self._of_context for one in self._values(field, context.get(field.name))
        ]
        found += [(*one, OF_USER) for field in self._of_user for one in self._values(field, user.get(field.name))]
        for place, own in enumerate(contexts):
            for field in self._of_context if own else ():
                if own is None or field.name not in own or field.training_only:
                    continue
                instead = [(name, -weight) for name, weight in self._values(field, context.get(field.name))]
                found += [(*one, OF_ITEM + place) for one in (*self._values(field, own[field.name]), *instead)]
        return FieldValues(
            np.array([xxh64_intdigest(name.encode()) for name, _, _ in found], np.uint64),
            np.array([weight for _, weight, _ in found], np.float32),
            np.array([owner for _, _, owner in found], np.int32),
        )

    def of_item(self, given: Given) -> list[tuple[str, float]]:
        """Names and weights of what an item with these features reads of the field table."""
        return [one for field in self.schema.of("item") for one in self._values(field, given.get(field.name))]

    def _values(self, field: Field, given: Any) -> Iterator[tuple[str, float]]:
        if field.training_only:
            given = None
        if field.by_table:
            for value in encode(field, given):
                yield name_of_value(field.name, value), 1.0
            return
        found = number(field, given)
        if found != found:  # NaN: it is missing
            yield name_of_value(field.name, MISSING), 1.0
        else:
            mean, by = self._scales.get(field.name, (0.0, 0.0))
            yield name_of_value(field.name, NUMBER), min(max((found - mean) * by, -FURTHEST), FURTHEST)
