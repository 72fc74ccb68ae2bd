"""The results of the demo, as JSON and as lines on the console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asmg.metrics import Scores
from service.cli.console import Numbers, PeriodLine
from service.demo.comparison import WITHOUT_FIELDS
from service.demo.streams import BEST, BEST_OF_PAIRS
from service.demo.traffic import Window

__all__ = ["API_NAMES", "PeriodReport", "Report", "RollbackReport", "mean_scores"]

API_NAMES = {"generated": "generated", "incremental": "incremental", "frozen": "baseline"}
"""Keys of the scores of the service's models, and what the API calls them: `frozen` is the first trained model, never
updated."""


@dataclass(frozen=True, kw_only=True)
class PeriodReport:
    """Results of one period."""

    period: int
    events: int
    version: int | None
    """The version that its update published; None where it failed."""
    kind: str | None
    """The model that the gate chose."""
    gate: str | None
    """Why the gate chose it."""
    error: str | None
    auc: Numbers
    """By model, the comparison models too; None if unknown."""
    logloss: Numbers
    seconds: Mapping[str, float]
    """Of each stage."""
    requests: Window
    """Predictions sent from before the close until after the swap."""

    @classmethod
    def of(
        cls,
        document: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        requests: Window,
        *,
        others: Mapping[str, Scores | None],
    ) -> "PeriodReport":
        """Make the report.

        Args:
            document: of the period, as the API answers it.
            model: document of the version that the update published; None if it failed.
            requests: predictions during the update.
            others: scores of the comparison models.
        """
        scores = document["scores"]

        def by_model(metric: str) -> dict[str, float | None]:
            found = {name: scores.get(api, {}).get(metric) for name, api in API_NAMES.items()}
            return found | {name: None if one is None else getattr(one, metric) for name, one in others.items()}

        return cls(
            period=document["period"],
            events=document["events"],
            version=document["version"],
            kind=None if model is None else model["kind"],
            gate=None if model is None else model["gate"].get("reason"),
            error=document["error"],
            auc=by_model("auc"),
            logloss=by_model("logloss"),
            seconds={stage["stage"]: stage["seconds"] for stage in document["stages"] if stage["seconds"] is not None},
            requests=requests,
        )

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """Of predictions during the swap, as the client saw it."""
        return {"p50": self.requests.quantile_ms(0.5), "p99": self.requests.quantile_ms(0.99)}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "period": self.period,
            "events": self.events,
            "version": self.version,
            "kind": self.kind,
            "gate": self.gate,
            "error": self.error,
            "auc": dict(self.auc),
            "logloss": dict(self.logloss),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            "requests": {"served": self.requests.served, "failed": self.requests.failed},
            "latency_ms": self.latency_ms,
        }

    def line(self) -> PeriodLine:
        """For the console."""
        p50, p99 = self.latency_ms.values()
        latency = [] if p50 is None else [f"p50/p99 {p50:.0f}/{p99:.0f} ms"]
        return PeriodLine(
            period=self.period,
            events=self.events,
            auc=self.auc,
            logloss=self.logloss,
            serves="failed" if self.version is None else f"v{self.version} {self.kind}",
            seconds=self.seconds,
            requests=(self.requests.served, self.requests.failed),
            notes=[*latency, *([self.error] if self.error else [])],
        )


@dataclass(frozen=True, kw_only=True)
class RollbackReport:
    """Results of rolling back by one version, and forward again."""

    from_version: int
    to_version: int
    restored: bool
    """Whether after the rollback `to_version` scored the probes as it had before, to the last bit."""
    forward_restored: bool
    """The same for `from_version` after rolling forward."""
    largest_change: float
    """Largest difference between the two versions in any score of a probe."""
    requests: Window
    """Predictions sent meanwhile."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "from": self.from_version,
            "to": self.to_version,
            "scores_restored": self.restored and self.forward_restored,
            "largest_change": self.largest_change,
            "requests": {"served": self.requests.served, "failed": self.requests.failed},
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results of the whole demo."""

    data: str
    seed: int
    yardstick: str
    """Key of the yardstick's scores."""
    periods: Sequence[PeriodReport]
    rollback: RollbackReport | None
    """None if no version was published."""
    requests: Window
    """All predictions of the demo."""
    faults: Sequence[str]
    """What was wrong with the first failed requests."""

    @property
    def recent(self) -> Sequence[PeriodReport]:
        """The periods to average over: from the fourth on for the synthetic stream, else the last seven."""
        scored = [period for period in self.periods if period.auc["generated"] is not None]
        later = [period for period in scored if period.period >= 4] if self.data == "synthetic" else scored[-7:]
        return later or scored

    def value_of_fields(self) -> list[str]:
        """Lines for the console that compare scores with and without fields; none if clients sent no fields."""
        auc, logloss = (
            mean_scores([getattr(period, metric) for period in self.recent]) for metric in ("auc", "logloss")
        )

        def both(name: str) -> str:
            return f"AUC {auc[name]:.4f}, LogLoss {logloss[name]:.4f}"

        lines = []
        if auc.get(WITHOUT_FIELDS) is not None and auc["incremental"] is not None:
            lines.append(f"incremental without the fields: {both(WITHOUT_FIELDS)}; with them {both('incremental')}")
        if auc.get(BEST_OF_PAIRS) is not None:
            lines.append(f"best that user and item alone allow: {both(BEST_OF_PAIRS)}; with the context {both(BEST)}")
        return lines

    @property
    def problems(self) -> list[str]:
        """What went wrong, one line each."""
        found = []
        if self.requests.failed:
            found.append(f"{self.requests.failed} predictions failed: {'; '.join(self.faults)}")
        found += [
            f"the update on period {period.period} failed: {period.error}"
            for period in self.periods
            if period.version is None
        ]
        if self.rollback is None:
            found.append("there was no version to roll back from")
        elif not (self.rollback.restored and self.rollback.forward_restored):
            found.append("after the rollback the scores were not those of that version")
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        nothing = {"from": None, "to": None, "scores_restored": False}
        recent = self.recent
        return {
            "data": self.data,
            "seed": self.seed,
            "yardstick": self.yardstick,
            "periods": [period.to_json() for period in self.periods],
            "means": {
                "periods": [period.period for period in recent],
                "auc": mean_scores([period.auc for period in recent]),
                "logloss": mean_scores([period.logloss for period in recent]),
            },
            "rollback": nothing if self.rollback is None else self.rollback.to_json(),
            "requests": {"served": self.requests.served, "failed": self.requests.failed},
            "latency_ms": {"p50": self.requests.quantile_ms(0.5), "p99": self.requests.quantile_ms(0.99)},
            "problems": self.problems,
        }


def mean_scores(scores: Sequence[Numbers]) -> dict[str, float | None]:
    """The mean of each model over periods; None for a model that lacks a score in one of them."""
    means: dict[str, float | None] = {}
    for name in scores[0] if scores else ():
        values = [value for value in (of_period[name] for of_period in scores) if value is not None]
        means[name] = sum(values) / len(values) if values and len(values) == len(scores) else None
    return means
