"""The card of a prepared log: what was read, by which rule, and what was left out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from asmg.log_format import LogFormatError

__all__ = ["FORMAT_VERSION", "Card", "SourceFile", "read_card"]

FORMAT_VERSION = 1
"""Version of the format of prepared logs; a reader refuses any other."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that was read."""

    file: str
    """Path relative to the given file or folder."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """Digest in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The description of a prepared log."""

    dataset: str
    """Name of the source."""
    rows: int
    """Number of interactions."""
    positives: int
    """Number of interactions with label 1."""
    users: int
    """Number of distinct users."""
    items: int
    """Number of distinct items."""
    categories: int
    """Number of distinct categories; 0 if items have none."""
    first: str
    """Time of the first row, RFC 3339."""
    last: str
    """Time of the last row."""
    rule: tuple[str, ...]
    """Short sentences: which rows were kept, which are positives, how negatives were sampled."""
    seed: int | None
    """Seed of the sampled negatives; None without any."""
    negatives_per_positive: int
    """Sampled negatives per positive; 0 without any."""
    without_negative: int
    """Number of positives without negatives, because their user has had every item."""
    sources: tuple[SourceFile, ...]
    """The files that were read."""
    rows_read: int
    """Number of rows of the source's log."""
    dropped: Mapping[str, int]
    """Reason → number of dropped rows."""
    duplicates_kept: int
    """Number of rows equal to an earlier one in user, item, time and label, in sources that keep such rows."""
    out_of_order: int
    """Number of rows read whose time is before that of the previous row."""
    log_sha256: str
    """Digest of log.parquet."""
    asmg_version: str
    """Version of the package that prepared the log."""
    features: Mapping[str, Any] | None = None
    """The schema of features.toml as JSON values; None without fields."""

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return {"format_version": FORMAT_VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Card":
        """The inverse of `to_json`.

        Raises:
            ValueError: the values are no card of this format version.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {FORMAT_VERSION}; received {values.get('format_version')!r}")
        values = {"features": None, **values}  # missing in cards of earlier versions
        expected = {field.name for field in fields(cls)} | {"format_version"}
        if set(values) != expected:
            wrong = sorted(expected ^ set(values))
            raise ValueError(f"the fields of a card; received more or fewer: {', '.join(wrong)}")
        own = {name: value for name, value in values.items() if name != "format_version"}
        own |= {"rule": tuple(own["rule"]), "sources": tuple(SourceFile(**source) for source in own["sources"])}
        return cls(**own)


def read_card(folder: Path) -> Card:
    """Read the card of a prepared log.

    Raises:
        LogFormatError: the card is missing or unreadable.
    """
    file = folder / "card.json"
    expected = "the card of a log that `asmg experiment prepare` has written"
    if not file.is_file():
        raise LogFormatError(file, expected, "no such file")
    try:
        return Card.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LogFormatError(file, expected, f"another content ({error})") from error
