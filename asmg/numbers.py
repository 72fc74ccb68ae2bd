"""Moments of the numeric fields, kept from period to period, by which their numbers are standardised."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asmg.field_columns import FieldColumns
from asmg.layout import NO_VALUE

__all__ = ["LEAST_DEVIATION", "NumberMoments"]

LEAST_DEVIATION = 1e-3
"""Added to every standard deviation. Numbers with a smaller deviation than this are read as 0 (their mean)."""


@dataclass(frozen=True)
class NumberMoments:
    """Sums over the numbers of K fields, older periods fading. Immutable."""

    rows: Tensor
    """int64 [K], ascending: each field's row in the field table."""
    sums: Tensor
    """float64 [K, 3]: the sums of 1, of the numbers and of their squares."""

    @classmethod
    def initial(cls) -> "NumberMoments":
        """The moments before the first period: of no fields."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64))

    def prepare(self, fields: FieldColumns) -> FieldColumns:
        """The fields with the scale of their numbers. A field that is new in this period is scaled by its own
        moments.
        """
        if not fields.has_numbers:
            return fields
        known = self.scales()
        scale = fields.scale.clone()
        for row, sums in _sums(fields).items():
            at = fields.numbers == row
            scale[:, at] = torch.tensor(known.get(row) or _scale(sums)).unsqueeze(1)
        return replace(fields, scale=scale)

    def scales(self) -> dict[int, tuple[float, float]]:
        """Row of each field → what is subtracted from its numbers, and the factor applied afterwards."""
        return {row: _scale(sums) for row, sums in zip(self.rows.tolist(), self.sums, strict=True)}

    def learned(self, fields: FieldColumns | None, decay: float) -> "NumberMoments":
        """The moments after one more period; the weight of earlier ones is multiplied by `decay`, in (0, 1]."""
        merged = {row: decay * sums for row, sums in zip(self.rows.tolist(), self.sums, strict=True)}
        for row, sums in ({} if fields is None else _sums(fields)).items():
            merged[row] = merged[row] + sums if row in merged else sums
        rows = sorted(merged)
        sums_of = torch.stack([merged[row] for row in rows]) if rows else torch.zeros(0, 3, dtype=torch.float64)
        return NumberMoments(torch.tensor(rows, dtype=torch.int64), sums_of)

    def forgotten(self, rows: Tensor) -> "NumberMoments":
        """The moments without the fields at these rows (int64 [n]); other rows are ignored."""
        kept = ~torch.isin(self.rows, rows)
        return self if bool(kept.all()) else NumberMoments(self.rows[kept], self.sums[kept])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores; none without fields."""
        return {"numbers.rows": self.rows, "numbers.sums": self.sums} if len(self.rows) else {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "NumberMoments":
        """The inverse of `tensors`; other tensors are ignored."""
        found = cls.initial()
        return cls(tensors.get("numbers.rows", found.rows), tensors.get("numbers.sums", found.sums))


def _scale(sums: Tensor) -> tuple[float, float]:
    """The mean and the inverse of the standard deviation, from sums float64 [3]."""
    count, total, squares = sums.tolist()
    mean = total / max(count, 1e-9)
    deviation = max(0.0, squares / max(count, 1e-9) - mean**2) ** 0.5
    return mean, 1 / (deviation + LEAST_DEVIATION) if deviation > LEAST_DEVIATION else 0.0


def _sums(fields: FieldColumns) -> dict[int, Tensor]:
    """Row of each field → sums float64 [3] over the interactions that have a number."""
    found: dict[int, Tensor] = {}
    for column in torch.nonzero(fields.numbers != NO_VALUE).flatten().tolist():
        row = int(fields.numbers[column])
        values = fields.weights[:, column][fields.rows[:, column] == row].double()
        sums = torch.stack([torch.tensor(float(len(values)), dtype=torch.float64), values.sum(), (values**2).sum()])
        found[row] = found[row] + sums if row in found else sums
    return found
