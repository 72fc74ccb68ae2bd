"""What a chaos run has recorded, and which promises held."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.reports import Promise, promises_json

SHOWN = 5
"""Most faults of a kind that are named; the others are only counted."""


@dataclass
class State:
    """What Postgres holds after the run."""

    events: list[tuple[str, int, str, str, int, int, str]] = field(default_factory=list)
    """Event id, period, user, item, label, milliseconds and content of each stored event."""
    features: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """`user` or `item`, its id and milliseconds of each version of features → its content."""
    periods: dict[int, tuple[str, int | None, int, str | None]] = field(default_factory=dict)
    """Status, version, attempts and error of each period that was sealed."""
    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Period, kind, parent, serving digest and state of each version, see `as_published`."""


@dataclass
class Record:
    """What the clients and the saboteur have done and seen."""

    sent: dict[str, tuple[int, str, str, int, int, str]] = field(default_factory=dict)
    """Period, user, item, label, milliseconds and content of each event that was ever sent, by its id."""
    features: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """Acknowledged versions of features, as `State` has them."""
    acknowledged: set[str] = field(default_factory=set)
    closes: int = 0
    """Acknowledged closes."""
    retried_batches: int = 0
    """Calls that were made again because there was no acknowledgement."""
    resent_batches: int = 0
    """Batches sent again on purpose after they were acknowledged."""
    predictions: Counter[str] = field(default_factory=Counter)
    """Number of predictions by status, or by `timeout` and `refused` (no connection)."""
    server_errors: list[str] = field(default_factory=list)
    """The first predictions answered with 5xx while a snapshot was loaded."""
    failed_predictions: int = 0
    """Number of predictions answered with 5xx while a snapshot was loaded."""
    not_loaded: int = 0
    """Predictions answered with 503 by processes that had not loaded a snapshot yet."""
    newest_version: int = -1
    """The newest version that a prediction was answered with."""
    gone_back: int = 0
    """Predictions answered with an older version than one that had been answered before they were sent."""
    may_be_behind: int = 0
    """Predictions refused with 503 by processes that might have been behind the others."""
    sabotage: list[dict[str, Any]] = field(default_factory=list)
    """What was killed, paused or flushed: victim, way and seconds."""
    recovery_seconds: list[float] = field(default_factory=list)
    """Seconds from the first attempt of a write to its acknowledgement; of writes that were tried again."""
    faults: list[str] = field(default_factory=list)
    """Errors that ended a part of the run itself."""
    finished: bool = True
    """Whether everything was sent, and all updates ended, in time."""
    seconds: float = 0.0


def content_of(values: Mapping[str, Any], weight: float | None = None) -> str:
    """Values of fields and the weight of an event as one text, to be compared."""
    return json.dumps([values, 1.0 if weight is None else float(weight)], sort_keys=True)


def as_published(serving: str | None, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a version was published with, whatever was merged in the background since, or before it.

    Args:
        serving: digest of the newest file of its snapshot.
        state: its state. Of files that build on each other the newest counts, for older ones may be merged.

    Returns:
        `serving`, the digest of the file that was written for the version, and `state`.
    """
    written = state["replaced"][-1] if "replaced" in state else serving
    kept = {name: value for name, value in state.items() if name not in ("compacted", "replaced", "snapshot")}
    newest = {name: _newest(kept[name]) for name in ("parts", "serving", "serving_statistics") if name in kept}
    return {"serving": written, "state": {**kept, **newest}}


def _newest(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _newest(inner) for name, inner in value.items()}
    of_digests = isinstance(value, list) and value and all(isinstance(inner, str) for inner in value)
    return value[-1] if of_digests else value


def judge(
    record: Record, state: State, undisturbed: State | None, closes: int, *, ordered: bool = False
) -> list[Promise]:
    """All promises, in the order in which they are printed.

    Args:
        record: of the disturbed run.
        state: what is stored after it.
        undisturbed: what is stored after the same log without disturbance; None where that run did not end.
        closes: how many periods were to be closed.
        ordered: whether the processes refuse to be behind each other, so that no client may see versions go back.
    """
    ids = [event[0] for event in state.events]
    stored = set(ids)
    lost, foreign = record.acknowledged - stored, stored - record.acknowledged
    repeated = sorted(name for name, count in Counter(ids).items() if count > 1)
    wrong = sorted(event[0] for event in state.events if record.sent.get(event[0]) != event[1:])
    known = record.features.keys() | state.features.keys()
    other = [f"{kind} {id_} at {ms}" for kind, id_, ms in known if _differs(record, state, (kind, id_, ms))]
    return [
        Promise(
            "the run came to its end",
            tuple(record.faults)
            + tuple(
                fault
                for fault, broken in (
                    ("nothing was killed or paused", not record.sabotage),
                    ("not all was sent and updated in time", not record.finished),
                    (f"{record.closes} closes were acknowledged, not {closes}", record.closes != closes),
                )
                if broken
            ),
        ),
        Promise("acknowledged = stored events", _named("lost", lost) + _named("never acknowledged", foreign)),
        Promise("no duplicates", _named("stored more than once", repeated)),
        Promise("each log is what was sent", _named("not as sent", wrong)),
        Promise("features are what was sent", _named("not as sent", other, "features")),
        Promise("each period applied exactly once", _applied(state, closes)),
        Promise("versions of an undisturbed run", _differences(state.versions, undisturbed)),
        Promise("no prediction 5xx while a snapshot is loaded", _server_errors(record)),
        *(
            [Promise("versions never go back", (f"{record.gone_back} predictions",) if record.gone_back else ())]
            if ordered
            else []
        ),
        Promise("predictions were answered", () if record.predictions["200"] else ("none was",)),
    ]


def _differs(record: Record, state: State, version: tuple[str, str, int]) -> bool:
    return record.features.get(version) != state.features.get(version)


def _named(what: str, ids: Any, of: str = "events") -> tuple[str, ...]:
    names = sorted(ids)
    return (f"{len(names)} {of} {what}: {', '.join(names[:SHOWN])}",) if names else ()


def _applied(state: State, closes: int) -> tuple[str, ...]:
    faults = []
    for number in range(1, closes + 1):
        made = [version for version, facts in state.versions.items() if facts["period"] == number]
        status, version, attempts, error = state.periods.get(number, ("missing", None, 0, None))
        if status != "updated":
            faults.append(f"period {number} is {status} after {attempts} attempts: {error}")
        if len(made) != 1 or made != [version]:
            faults.append(f"period {number} names version {version} and has versions {made}")
    extra = sorted(set(state.periods) - set(range(1, closes + 1)))
    return (*faults, *(f"period {number} was sealed, which nobody asked for" for number in extra))


def _differences(versions: Mapping[int, dict[str, Any]], undisturbed: State | None) -> tuple[str, ...]:
    if undisturbed is None:
        return ("there is no undisturbed run to compare with",)
    faults = []
    for version in sorted(versions.keys() | undisturbed.versions.keys()):
        ours, theirs = versions.get(version), undisturbed.versions.get(version)
        if ours is None or theirs is None:
            faults.append(f"version {version} is in one run only")
        elif names := [name for name in ours if ours[name] != theirs.get(name)]:
            faults.append(f"version {version} differs in {', '.join(names)}")
    return tuple(faults)


def _server_errors(record: Record) -> tuple[str, ...]:
    if not record.failed_predictions:
        return ()
    return (f"{record.failed_predictions} predictions: {'; '.join(record.server_errors[:SHOWN])}",)


def to_json(record: Record, promises: list[Promise], seed: int) -> dict[str, Any]:
    """All numbers of the report."""
    figures = {name: value for name, value in vars(record).items() if name not in ("sent", "features", "acknowledged")}
    return {
        "seed": seed,
        **promises_json(promises),
        "figures": {**figures, "sent": len(record.sent), "acknowledged": len(record.acknowledged)},
    }
