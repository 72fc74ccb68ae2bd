"""Checks the answers given while versions were swapped, and compares latencies around swaps with those between them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from benchmarks.http_load.load import Answers, quantile_ms
from benchmarks.serving.answers import WrongAnswers, document_of

TOLERANCE = 1e-6
CHECK_EVERY = 10_000


@dataclass(frozen=True)
class Swap:
    """A version that took over. The moments are those of `time.perf_counter`."""

    version: int
    published: float
    """When its publication began."""
    switched: float
    """When the last answer on every connection was of it, or every process served it from the new base."""
    renewal: bool = False
    """Whether it was served before, and got a base that was written anew."""


@dataclass(frozen=True)
class Latencies:
    """Latencies of the requests that were due in some stretches of time; None where there were no requests."""

    requests: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> "Latencies":
        """The latencies of requests that took so many seconds."""
        return cls(len(seconds), *(quantile_ms(seconds, percent) for percent in (50, 99, 100)))


@dataclass
class Verdict:
    """The result of `judge`."""

    swaps: Sequence[Swap]
    during: Latencies
    """Of requests due while a version took over."""
    renewing: Latencies
    """Of requests due while a base that was written anew took over."""
    between: Latencies
    """Of the others."""
    ratios: Sequence[float | None]
    """For each swap, p99 during it / p99 from then until the next; None where there were no requests."""
    waited_p99_ms: float | None
    """From the moment a request was due until a connection was free to send it."""
    late_p99_ms: float | None
    """By how much the generator itself was late."""
    mixed: int = 0
    """Answers whose scores are not their version's, or whose version is older than that before on their connection."""
    went_back: int = 0
    """Answers of an older version than one that had come on any connection before the request was sent."""
    last_old: list[float] = field(default_factory=list)
    """Seconds from the publication of each version to the last answer of an older one."""
    faults: Counter[str] = field(default_factory=Counter)
    """What was wrong with mixed answers."""


def judge(
    answers: Answers,
    swaps: Sequence[Swap],
    expected: Sequence[NDArray[np.float64]],
    settled: float,
    after: float,
    check: Callable[[], None] = lambda: None,
) -> Verdict:
    """Compare every answer with the scores of the version that it names.

    Args:
        answers: with their bodies.
        swaps: in the order of their versions.
        expected: scores of all distinct requests by each snapshot, [R, n]; version v is the snapshot v % len(expected).
        settled: latencies of requests due before this moment do not count.
        after: requests due up to so many seconds after a switch count as during it.
        check: called every so often; an exception of it ends the work.
    """
    faults: Counter[str] = Counter()
    versions = np.zeros(len(answers.done), dtype=np.int64)
    newest = max((swap.version for swap in swaps), default=1)
    on_connection: dict[int, int] = {}
    for i, (body, request, connection) in enumerate(
        zip(answers.bodies, answers.request, answers.connection, strict=True)
    ):
        if i % CHECK_EVERY == 0:
            check()
        versions[i], fault = _check_one(body, request, expected, newest)
        if fault is None and versions[i] < on_connection.get(connection, 0):
            fault = "an older version than the answer before on the same connection"
        on_connection[connection] = max(on_connection.get(connection, 0), int(versions[i]))
        if fault is not None:
            faults[fault] += 1
    due, sent, done = (np.frombuffer(moments) for moments in (answers.due, answers.sent, answers.done))
    seconds, counts = done - due, due >= settled
    during, ratios = np.zeros((2, len(due)), dtype=bool), []
    for swap, following in zip_longest(swaps, swaps[1:]):
        inside = counts & (due >= swap.published) & (due <= swap.switched + after)
        rest = counts & (due > swap.switched + after) & (due < (np.inf if following is None else following.published))
        during[int(swap.renewal)] |= inside
        one, other = (Latencies.of(seconds[which]).p99_ms for which in (inside, rest))
        ratios.append(one / other if one and other else None)
    return Verdict(
        swaps=swaps,
        during=Latencies.of(seconds[during[0]]),
        renewing=Latencies.of(seconds[during[1]]),
        between=Latencies.of(seconds[counts & ~during.any(0)]),
        ratios=ratios,
        waited_p99_ms=quantile_ms((sent - due)[counts], 99),
        late_p99_ms=quantile_ms(np.frombuffer(answers.late), 99),
        mixed=faults.total(),
        went_back=_went_back(versions, sent, done),
        last_old=[_last_old(versions, done, swap) for swap in swaps if not swap.renewal],
        faults=faults,
    )


def _check_one(
    body: bytes, request: int, expected: Sequence[NDArray[np.float64]], newest: int
) -> tuple[int, str | None]:  # fmt: skip
    """The version of an answer, 0 where it has none, and what is wrong with it."""
    try:
        document = document_of(body)
    except WrongAnswers as error:
        return 0, str(error)
    version = document.get("model_version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        return 0, f"version {version}, which was never published"
    scores, wanted = np.array(document["scores"], dtype=np.float64), expected[version % len(expected)][request]
    if scores.shape != wanted.shape or not float(np.abs(scores - wanted).max()) <= TOLERANCE:
        return version, "scores that are not those of its version"
    return version, None


def _went_back(versions: NDArray[np.int64], sent: NDArray[np.float64], done: NDArray[np.float64]) -> int:
    """How many answers are older than one that had come when their request was sent."""
    newest = np.maximum.accumulate(versions)  # answers are in the order in which they came
    before = np.searchsorted(done, sent, side="right")
    return int(np.sum((before > 0) & (versions < newest[np.maximum(before, 1) - 1]))) if len(versions) else 0


def _last_old(versions: NDArray[np.int64], done: NDArray[np.float64], swap: Swap) -> float:
    late = done[(versions < swap.version) & (done > swap.published)]
    return float(late.max() - swap.published) if len(late) else 0.0
