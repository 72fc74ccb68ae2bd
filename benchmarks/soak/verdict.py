"""Whether a soak stayed flat, and whether what has to be kept was kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.reports import Promise


@dataclass(frozen=True)
class Figure:
    """A figure that is measured in each period."""

    key: str
    name: str
    tolerance: float | None
    """Largest growth from the second quarter of the periods to the last, as a share; None where it is not judged."""


FIGURES = (
    Figure("database_mb", "database without records, MB", 0.1),
    Figure("records_kb", "records of the periods, kB", None),
    Figure("files_mb", "data folder without WAL, MB", 0.1),
    Figure("wal_mb", "WAL, MB", None),
    Figure("redis_mb", "Redis, MB", 0.05),
    Figure("redis_keys", "Redis, keys", 0.05),
    Figure("api_mb", "api processes, MB", 0.05),
    Figure("worker_mb", "worker, MB", 0.05),
    Figure("postgres_mb", "Postgres, MB a process", 0.1),
    Figure("connections", "connections to Postgres", None),
    Figure("close_seconds", "close to updated, s", 0.25),
    Figure("cpu_seconds", "worker, CPU s a period", 0.25),
)


MOST_RECORDS_KB = 10.0
"""What a period may leave for ever, in kB: rows about what happened in it, their indexes, and a share of free pages."""


@dataclass(frozen=True)
class Course:
    """How a figure changed over the periods."""

    early: float
    """Median of the second quarter of the periods."""
    late: float
    """Median of the last quarter."""
    per_period: float
    """Growth in each period between the two."""

    @property
    def change(self) -> float:
        """Growth from early to late, as a share of early."""
        return self.late / self.early - 1 if self.early else 0.0


def course(values: Sequence[float]) -> Course:
    """The course of a figure with one value for each period, at least four."""
    quarter = len(values) // 4
    early, late = median(values[quarter : 2 * quarter]), median(values[-quarter:])
    return Course(early, late, (late - early) / (len(values) - 2 * quarter))


@dataclass(frozen=True)
class Left:
    """What Postgres holds after the last period."""

    versions: int
    """How many versions that learned a period have their scores and the decision of their gate."""
    whole: frozenset[int]
    """Versions that can still be served."""
    logs: frozenset[int]
    """Periods with a log."""
    forgotten_events: int
    """How many ids of events are stored whose log is dropped."""
    unnamed_artifacts: int
    """How many artifacts neither a version nor a sample of a period names."""


def judge(
    samples: Sequence[Mapping[str, float]], left: Left, expected: Left, *, most_wal_mb: float, most_connections: int
) -> list[Promise]:
    """All promises, in the order in which they are printed.

    Args:
        samples: the figures of each period.
        left: what is stored after the last period.
        expected: what should be stored.
        most_wal_mb: how much write-ahead log Postgres may keep.
        most_connections: how many connections to Postgres all processes may have.
    """
    promises = []
    for figure in FIGURES:
        if figure.tolerance is None:
            continue
        found = course([sample[figure.key] for sample in samples])
        fault = (
            f"{found.early:.4g} in the second quarter, {found.late:.4g} in the last: {found.change:+.1%}, "
            f"expected at most {figure.tolerance:+.0%}"
        )
        promises.append(Promise(f"{figure.name}: flat", () if found.change <= figure.tolerance else (fault,)))
    for name, had, most in (
        (
            f"records: at most {MOST_RECORDS_KB:.0f} kB a period",
            course([sample["records_kb"] for sample in samples]).per_period,
            MOST_RECORDS_KB,
        ),
        ("WAL: within max_wal_size, MB", max(sample["wal_mb"] for sample in samples), most_wal_mb),
        ("connections: within the pools", max(sample["connections"] for sample in samples), most_connections),
    ):
        promises.append(Promise(name, () if had <= most else (f"{had:.4g}, expected at most {most:.4g}",)))
    for name, found_left, wanted in (
        ("every version has its row and its scores", left.versions, expected.versions),
        ("versions that are kept whole", left.whole, expected.whole),
        ("logs that are kept", left.logs, expected.logs),
        ("event ids of dropped logs", left.forgotten_events, expected.forgotten_events),
        ("artifacts that nothing names", left.unnamed_artifacts, expected.unnamed_artifacts),
    ):
        fault = f"expected {_said(wanted)}; received {_said(found_left)}"
        promises.append(Promise(name, () if found_left == wanted else (fault,)))
    return promises


def _said(value: int | frozenset[int]) -> str:
    return str(value) if isinstance(value, int) else ", ".join(map(str, sorted(value)))
