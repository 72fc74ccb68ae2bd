"""The options of `asmg import`, and the digest that identifies an import."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import orjson

from asmg.datasets.generic import LogOptions
from asmg.datasets.scan import Malformed
from asmg.log_format import CutBy

__all__ = ["ImportOptions"]

DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest: 64 bits."""

EVENT_ID_VERSION = 2
"""Changes whenever event ids number other rows than before: an import begun by an older release is then another one."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Which log is imported, and how it becomes periods."""

    file: Path
    by: CutBy = "day"
    """What the log is cut into periods by, see `asmg.datasets.cut`."""
    size: int = 1
    """Size or number of the periods, in the unit that `by` implies."""
    log: LogOptions = field(default_factory=LogOptions)
    """What the columns are called and mean."""
    malformed: Malformed = "error"
    """What to do with a row that cannot be read."""
    negatives: int = 1
    """Negatives sampled for each positive of a log of positives only."""
    seed: int = 0
    """Seed of the negatives."""
    append: bool = False
    """Whether the open period may hold other events already."""
    worker: bool = True
    """Whether to start a worker; without, one has to run elsewhere."""

    def __post_init__(self) -> None:
        if self.malformed not in get_args(Malformed):
            raise ValueError(f"malformed: expected error or drop; received {self.malformed!r}")

    def digest(self) -> str:
        """Identify this import: equal for equal content of the file and equal options that shape the events."""
        with self.file.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        shaping = {name: getattr(self, name) for name in ("by", "size", "malformed", "negatives", "seed")}
        shaping |= {"log": asdict(self.log) | {"future_seconds": None}, "order": EVENT_ID_VERSION}
        whole = orjson.dumps([content, shaping], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(whole).hexdigest()[:DIGEST_LENGTH]
