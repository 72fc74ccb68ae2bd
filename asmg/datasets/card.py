"""The card of a prepared log: what was read, by which rule, and what was left out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from asmg.log_format import LogFormatError

__all__ = ["FORMAT_VERSION", "Card", "SourceFile", "read_card"]

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that was read."""

    file: str
    """Name, relative to what was given."""
    bytes: int
    """Its size."""
    sha256: str
    """Its digest."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a prepared log is."""

    dataset: str
    """Name of the source."""
    rows: int
    """Interactions."""
    positives: int
    """Those with label 1."""
    users: int
    """Distinct users."""
    items: int
    """Distinct items."""
    categories: int
    """Distinct categories; 0 where items have none."""
    first: str
    """Time of the first row, RFC 3339."""
    last: str
    """Time of the last row."""
    rule: tuple[str, ...]
    """What was kept, what is a positive, how negatives were drawn: short sentences."""
    seed: int | None
    """Of the negatives; None where none were sampled."""
    negatives_per_positive: int
    """Sampled; 0 where none were."""
    without_negative: int
    """Positives that got none, because their user has had every item."""
    sources: tuple[SourceFile, ...]
    """What was read."""
    rows_read: int
    """Rows of the source's log."""
    dropped: Mapping[str, int]
    """Reason → rows that were left out for it."""
    duplicates_kept: int
    """Rows equal to an earlier one in user, item, time and label, in sources where that is an event of its own."""
    out_of_order: int
    """Rows read whose time is before that of the row before."""
    log_sha256: str
    """Digest of log.parquet."""
    asmg_version: str
    """What prepared it."""
    features: Mapping[str, Any] | None = None
    """The schema of features.toml as JSON values; None where the log has no fields."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Card":
        """The inverse of `to_json`.

        Raises:
            ValueError: these are not a card's values.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {FORMAT_VERSION}; received {values.get('format_version')!r}")
        values = {"features": None, **values}  # which cards of earlier versions lack
        expected = {field.name for field in fields(cls)} | {"format_version"}
        if set(values) != expected:
            wrong = sorted(expected ^ set(values))
            raise ValueError(f"the fields of a card; received more or fewer: {', '.join(wrong)}")
        own = {name: value for name, value in values.items() if name != "format_version"}
        own |= {"rule": tuple(own["rule"]), "sources": tuple(SourceFile(**source) for source in own["sources"])}
        return cls(**own)


def read_card(folder: Path) -> Card:
    """The card of a prepared log.

    Raises:
        LogFormatError: there is none, or one that cannot be read.
    """
    file = folder / "card.json"
    expected = "the card of a log that `asmg experiment prepare` has written"
    if not file.is_file():
        raise LogFormatError(file, expected, "no such file")
    try:
        return Card.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LogFormatError(file, expected, f"another content ({error})") from error
