"""What a practitioner would have in an afternoon, on the events that the demo sends."""

import numpy as np
import polars as pl
import torch

from asmg.batch import PeriodData, build_histories, build_recent
from asmg.datasets.gathering import Ids
from asmg.metrics import Scores, scores
from asmg.yardsticks import build_yardstick, installed_yardsticks
from service.demo.streams import PlayedPeriod

__all__ = ["Practitioner"]


class Practitioner:
    """LightGBM, or where it is not installed logistic regression, on the statistics of the events sent so far."""

    def __init__(self) -> None:
        self.name = "lightgbm" if "lightgbm" in installed_yardsticks() else "logistic"
        """Which of `asmg.yardsticks.YARDSTICKS` it is."""
        self._yardstick = build_yardstick(self.name)
        self._users, self._items = Ids(), Ids()
        self._past: list[np.ndarray] = [np.empty(0, dtype) for dtype in (np.int32, np.int32, np.uint8, np.int64)]
        """Users, items, labels and times of all events so far."""
        self._learned = 0

    def score_and_learn(self, period: PlayedPeriod) -> Scores | None:
        """Predict the next period's events, then learn them.

        Returns:
            how good the predictions were; None for the first period, before which nothing was learned.
        """
        data = self._data(period)
        found = scores(self._yardstick.logits(data), data.label) if self._learned else None
        self._yardstick.learn([data])
        self._learned += 1
        return found

    def _data(self, period: PlayedPeriod) -> PeriodData:
        """The period as table rows, each event with what its user had done before it."""
        user, item = (
            known.encode(pl.Series(ids, dtype=pl.String)).astype(np.int32) + 1
            for known, ids in ((self._users, period.user_ids), (self._items, period.item_ids))
        )
        label, times = period.labels, period.timestamps_ms
        past_user, past_item, past_label, past_times = self._past
        clicked = past_label == 1
        history, offsets = build_histories(
            user, item, label, times, earlier=(past_user[clicked], past_item[clicked], past_times[clicked])
        )
        recent = build_recent(user, label, times, earlier=(past_user, past_label, past_times))
        new: list[np.ndarray] = [user, item, label, times]
        self._past = [np.concatenate(columns) for columns in zip(self._past, new, strict=True)]
        return PeriodData(
            user=torch.from_numpy(user),
            item=torch.from_numpy(item),
            history=torch.from_numpy(history),
            offsets=torch.from_numpy(offsets),
            label=torch.from_numpy(label.astype(np.float32)),
            users=len(self._users) + 1,
            items=len(self._items) + 1,
            recent=torch.from_numpy(recent),
        )
