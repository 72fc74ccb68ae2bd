"""What `service.serving.swap` is given to follow the champion with."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from service.serving.turns import Champion

__all__ = ["FetchChampions", "FetchFile"]


class FetchChampions(Protocol):
    """Looks up what is served and what takes over next."""

    async def __call__(self) -> Sequence[Champion]:
        """What is served now and what comes, oldest first, at least one; raises whatever keeps it from being read."""


class FetchFile(Protocol):
    """Brings a file of a snapshot onto this host."""

    async def __call__(self, digest: str, folder: Path, pace: Callable[[float], Awaitable[None]] | None = None) -> Path:
        """It as a complete file in `folder`; raises whatever keeps it from being read.

        After each piece it awaits `pace` with the seconds that the piece took.
        """
