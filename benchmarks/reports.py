"""The JSON report of a command (`--report FILE`), and the promises that `asmg chaos` and `asmg bench soak` check."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def check_writable(file: Path | None) -> None:
    """Raise ValueError where a file cannot be written in the end: its folder is missing, or it is a folder."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ValueError(f"{file}: expected the name of a file in a folder that is there")


def write_report(file: Path | None, document: dict[str, Any]) -> None:
    """Write the report where one is wanted."""
    if file is not None:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Promise:
    """One promise of the service, and what was wrong with it."""

    name: str
    faults: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


def promises_json(promises: Sequence[Promise]) -> dict[str, Any]:
    """The promises as a report has them."""
    return {
        "held": all(promise.held for promise in promises),
        "promises": [{"name": p.name, "held": p.held, "faults": list(p.faults)} for p in promises],
    }


def exit_code(promises: Sequence[Promise]) -> int:
    """0 only where all promises held, else 1; the faults go to the standard error."""
    for promise in promises:
        for fault in promise.faults:
            print(f"asmg: {promise.name}: {fault}", file=sys.stderr)
    return 0 if all(promise.held for promise in promises) else 1
