"""Which version an api process has to serve from when on, and whether it may still answer with the one it has.

Every move of the champion has a number, and a moment once it is released. `Turns` holds the moves that this process
does not serve yet, with those of their snapshots that are loaded. `ServingModel` loads what is missing.

A move may name a *canary* beside the champion, which answers a share of the users. To start one, to promote it and to
take it back are moves like any other, so all that holds for a version holds for each user's version.

**May it still answer?** A process may have missed a release. It knows that it has not, in two ways:

* Its *lease*: it is registered until a moment of Postgres' clock. No move that it has not loaded is released for an
  earlier moment (`Takeovers.release`), if it is registered as one that refuses to be behind.
* A *look* at the releases: half of the swap lead, from when it began, no release of that time takes over.

Before it has told that it has a version ready, the lease counts; from then on, until the version is released, the
looks do. With neither it may be behind.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from service.serving.canary_share import CanaryShare
from service.serving.clock import ServerClock, elapsed
from service.serving.snapshot import Snapshot

__all__ = ["Canary", "Champion", "Turn", "Turns"]

NONE = -1
"""Number of the move where there is none."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that answers a share of the users while the champion answers the others."""

    version: int
    period: int
    """The period that the version was last trained on."""
    files: tuple[str, ...]
    """As of `Champion`."""
    share: CanaryShare
    """Of the users."""


@dataclass(frozen=True, slots=True)
class Champion:
    """A version that the alias `champion` names, or has named."""

    version: int
    period: int
    """The period that the version was last trained on."""
    files: tuple[str, ...]
    """SHA-256 of the files of its snapshot, in hex: the base, then its deltas, oldest first."""
    active_from: datetime | None
    """When it takes over, on the clock of Postgres; None while it waits until enough processes have loaded it."""
    move: int = 0
    """Number of the move of the alias; a later move has a higher one, whatever its version."""
    canary: Canary | None = None
    """The version beside it; None where it answers everybody."""

    @property
    def versions(self) -> "tuple[Champion | Canary, ...]":
        """What has to be loaded."""
        return (self,) if self.canary is None else (self, self.canary)


@dataclass(slots=True)
class Turn:
    """A move, with what is loaded of it."""

    champion: Champion
    loaded: dict[int, Snapshot]
    """By version."""

    @property
    def missing(self) -> list[Champion | Canary]:
        """What is not loaded."""
        return [each for each in self.champion.versions if each.version not in self.loaded]

    @property
    def snapshot(self) -> Snapshot | None:
        """The champion's; None where not all of the move is loaded."""
        return None if self.missing else self.loaded[self.champion.version]

    @property
    def canary(self) -> tuple[CanaryShare, Snapshot] | None:
        """The share of the canary, and its snapshot; None where the move has none, or it is not loaded."""
        of = self.champion.canary
        return None if of is None or of.version not in self.loaded else (of.share, self.loaded[of.version])


class Turns:
    """The moves of the champion that come after the one that is served.

    Args:
        clock: of Postgres.
        lead_seconds: the swap lead.
    """

    def __init__(self, clock: ServerClock, *, lead_seconds: float) -> None:
        self._clock = clock
        self._look_seconds = lead_seconds / 2
        self._turns: deque[Turn] = deque()  # by move
        self._looked = self._promised_from = self._leased_until = -float("inf")
        self._promised_move = NONE
        self.served_move = NONE
        """Number of the move whose version is served."""
        self.served_version = NONE

    def __bool__(self) -> bool:
        return bool(self._turns)

    @property
    def snapshots(self) -> list[Snapshot]:
        """Those that are loaded."""
        return [snapshot for turn in self._turns for snapshot in turn.loaded.values()]

    @property
    def missing(self) -> list[Champion | Canary]:
        """Versions that are not loaded, oldest move first."""
        return [version for turn in self._turns for version in turn.missing]

    @property
    def ready_version(self) -> int:
        """The newest version that is loaded."""
        return next((turn.snapshot.version for turn in reversed(self._turns) if turn.snapshot), self.served_version)

    @property
    def waiting(self) -> bool:
        """Whether a version waits until enough processes have loaded it."""
        return bool(self._turns) and self._turns[-1].champion.active_from is None

    @property
    def next_seconds(self) -> float:
        """Seconds until the next loaded one takes over; infinite where there is none with a moment."""
        now, error = self._clock.read()
        coming = [moment(turn.champion) + error - now for turn in self._turns if turn.snapshot is not None]
        return max(0.0, min(coming, default=float("inf")))

    def turning_seconds(self, now: float, error: float) -> float:
        """Seconds until a take-over is surely past, if it may be now by some process's clock; else 0.

        Args:
            now: of the clock.
            error: of it.
        """
        return next(
            (
                at + error - now
                for turn in self._turns
                if turn.snapshot is not None and -error < now - (at := moment(turn.champion)) < error
            ),
            0.0,
        )

    def follow(self, champions: Sequence[Champion], loaded: Sequence[Snapshot], *, looked: float) -> None:
        """Take over what there is to come.

        Args:
            champions: what is served now and what comes, oldest first.
            loaded: snapshots that need not be loaded again.
            looked: when the look at them began, by `elapsed`.
        """
        self._looked = looked
        by_version = {snapshot.version: snapshot for snapshot in (*loaded, *self.snapshots)}
        self._turns = deque(
            Turn(
                champion,
                {each.version: by_version[each.version] for each in champion.versions if each.version in by_version},
            )
            for champion in champions
            if champion.move > self.served_move
        )

    def put(self, snapshot: Snapshot, in_place_of: Snapshot | None = None) -> None:
        """Use a snapshot for the turns of its version that have none, or another one to be replaced."""
        for turn in self._turns:
            of_turn = any(each.version == snapshot.version for each in turn.champion.versions)
            if of_turn and turn.loaded.get(snapshot.version) is in_place_of:
                turn.loaded[snapshot.version] = snapshot

    def take(self, now: float, error: float, *, first: bool = False) -> Turn | None:
        """What is served from now on, all of it loaded, if that is another move than before.

        Args:
            now: of the clock.
            error: of it.
            first: whether nothing is served yet: the oldest turn is taken then, even before its moment.
        """
        taken: Turn | None = None
        while self._turns:
            turn, due = self._turns[0], now - error
            if len(self._turns) > 1 and moment(self._turns[1].champion) <= due:
                self._turns.popleft()  # its turn is over
            elif turn.snapshot is not None and (moment(turn.champion) <= due or (first and taken is None)):
                taken = self._turns.popleft()
                self.served_move, self.served_version = turn.champion.move, turn.champion.version
            else:
                break
        return taken

    def promise(self) -> tuple[int, int]:
        """The newest move that is loaded, and its version. From now on the process is bound by having told it."""
        newest = next((turn.champion for turn in reversed(self._turns) if turn.snapshot is not None), None)
        if newest is None:
            return self.served_move, self.served_version
        if newest.active_from is None:
            self._promised_move = newest.move
        return newest.move, newest.version

    def lease(self, until: float) -> None:
        """Note that the process is registered until a moment of `elapsed`, and has looked after that."""
        self._leased_until = until

    @property
    def lag_seconds(self) -> float:
        """For how long a version that is not loaded should have been served; 0 where there is none, as far as known."""
        if not self._turns or self._turns[0].snapshot is not None:
            return 0.0
        now, error = self._clock.read()
        return max(0.0, now + error - moment(self._turns[0].champion))

    @property
    def unsure_seconds(self) -> float:
        """For how long a release may have been missed; 0 where none can have been."""
        promised = self.waiting and self._turns[-1].champion.move == self._promised_move
        return max(0.0, elapsed() - (self._looked + self._look_seconds if promised else self._leased_until))

    @property
    def trouble(self) -> str | None:
        """Why the process may be behind; None where it is not."""
        if (seconds := self.lag_seconds) > 0:
            version = self._turns[0].champion.version
            return f"version {version} took over {seconds:.1f} s ago, and this process has not loaded it"
        if (seconds := self.unsure_seconds) == float("inf"):
            return "this process is not registered yet"
        if seconds > 0:
            return f"a newer version may have taken over: Postgres does not tell for {seconds:.1f} s"
        return None


def moment(champion: Champion) -> float:
    """When it takes over, in seconds of the epoch; infinity where that is not known."""
    return float("inf") if champion.active_from is None else champion.active_from.timestamp()
