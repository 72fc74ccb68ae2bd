"""Metrics of the model: quality, age, size and the last update, as Postgres has them when somebody looks."""

import math

from prometheus_client import CollectorRegistry, Gauge

from service.use_cases.quality import ModelSummary

__all__ = ["ModelMetrics"]


class ModelMetrics:
    """Gauges of one application.

    Args:
        registry: that gets them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="mostrecent")

        self._auc = gauge(
            "asmg_model_auc", "AUC on the newest period, before it was learned, by model; Postgres has it.", "model"
        )
        self._logloss = gauge("asmg_model_logloss", "LogLoss on the same period, by model.", "model")
        self._calibration = gauge(
            "asmg_model_calibration", "Mean prediction over click rate on the same period, by model.", "model"
        )
        self._period = gauge("asmg_scored_period", "Number of that period.")
        self._trust = gauge(
            "asmg_generator_trust",
            "How far the served model is from the incremental to the generated one: 0 is the former, 1 the latter.",
        )
        self._age = gauge("asmg_model_age_seconds", "Seconds since the model that the champion serves was made.")
        self._bytes = gauge("asmg_snapshot_bytes", "Size of the champion's snapshot: base, and all deltas.", "part")
        self._stages = gauge(
            "asmg_update_stage_seconds", "Seconds that each stage took in the newest update that ended.", "stage"
        )

    def note(self, summary: ModelSummary) -> None:
        """Set all of them."""
        for score in summary.scores:
            self._auc.labels(score.model).set(math.nan if score.auc is None else score.auc)
            self._logloss.labels(score.model).set(score.logloss)
            self._calibration.labels(score.model).set(math.nan if score.calibration is None else score.calibration)
            self._period.set(score.period)
        self._trust.set(summary.trust)
        self._age.set(summary.age_seconds)
        for part, size in summary.snapshot_bytes.items():
            self._bytes.labels(part).set(size)
        for stage, seconds in summary.stage_seconds.items():
            self._stages.labels(stage).set(seconds)
