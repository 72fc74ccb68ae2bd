"""Moments of the fields that enter as numbers: what standardises them, kept from period to period."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asmg.field_columns import FieldColumns
from asmg.layout import NO_VALUE

__all__ = ["LEAST_DEVIATION", "NumberMoments"]

LEAST_DEVIATION = 1e-3
"""Added to every standard deviation; a number whose deviation is not even that is read as its mean."""


@dataclass(frozen=True)
class NumberMoments:
    """Fading sums over the numbers of K fields. Nothing in it ever changes."""

    rows: Tensor
    """int64 [K], ascending: the row that each number's field has in the field table."""
    sums: Tensor
    """float64 [K, 3]: of 1, of the numbers and of their squares."""

    @classmethod
    def initial(cls) -> "NumberMoments":
        """Of no fields."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64))

    def prepare(self, fields: FieldColumns) -> FieldColumns:
        """The fields with the scale of their numbers; of one that no period has brought yet, by its own moments."""
        if not fields.has_numbers:
            return fields
        known = self.scales()
        scale = fields.scale.clone()
        for row, sums in _sums(fields).items():
            at = fields.numbers == row
            scale[:, at] = torch.tensor(known.get(row) or _scale(sums)).unsqueeze(1)
        return replace(fields, scale=scale)

    def scales(self) -> dict[int, tuple[float, float]]:
        """Row of each number's field → what is taken off the number, and what it is multiplied by then."""
        return {row: _scale(sums) for row, sums in zip(self.rows.tolist(), self.sums, strict=True)}

    def learned(self, fields: FieldColumns | None, decay: float) -> "NumberMoments":
        """With one more period; older ones count `decay` of what they did."""
        merged = {row: decay * sums for row, sums in zip(self.rows.tolist(), self.sums, strict=True)}
        for row, sums in ({} if fields is None else _sums(fields)).items():
            merged[row] = merged[row] + sums if row in merged else sums
        rows = sorted(merged)
        sums_of = torch.stack([merged[row] for row in rows]) if rows else torch.zeros(0, 3, dtype=torch.float64)
        return NumberMoments(torch.tensor(rows, dtype=torch.int64), sums_of)

    def forgotten(self, rows: Tensor) -> "NumberMoments":
        """As if nobody had ever seen the fields whose numbers have these rows (int64 [n], also others)."""
        kept = ~torch.isin(self.rows, rows)
        return self if bool(kept.all()) else NumberMoments(self.rows[kept], self.sums[kept])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; nothing where there are no fields."""
        return {"numbers.rows": self.rows, "numbers.sums": self.sums} if len(self.rows) else {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "NumberMoments":
        """The inverse of `tensors`, from among others."""
        found = cls.initial()
        return cls(tensors.get("numbers.rows", found.rows), tensors.get("numbers.sums", found.sums))


def _scale(sums: Tensor) -> tuple[float, float]:
    """Mean, and one by the standard deviation, of float64 [3]."""
    count, total, squares = sums.tolist()
    mean = total / max(count, 1e-9)
    deviation = max(0.0, squares / max(count, 1e-9) - mean**2) ** 0.5
    return mean, 1 / (deviation + LEAST_DEVIATION) if deviation > LEAST_DEVIATION else 0.0


def _sums(fields: FieldColumns) -> dict[int, Tensor]:
    """Row of each number's field → float64 [3], over the interactions that have one."""
    found: dict[int, Tensor] = {}
    for column in torch.nonzero(fields.numbers != NO_VALUE).flatten().tolist():
        row = int(fields.numbers[column])
        values = fields.weights[:, column][fields.rows[:, column] == row].double()
        sums = torch.stack([torch.tensor(float(len(values)), dtype=torch.float64), values.sum(), (values**2).sum()])
        found[row] = found[row] + sums if row in found else sums
    return found
