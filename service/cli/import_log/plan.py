"""What an import stores: the sorted log, cut into periods, as events with ids that are the same in each run."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import orjson

from service.cli.import_log.sorted_log import SortedLog
from service.storage.postgres.repositories import EventBatch, FeatureVersion, Interaction

__all__ = ["ImportPlan"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ImportPlan:
    """The periods to import; parts of the log are ranges of places, counted from 0 in the order of the log."""

    digest: str
    """Identifies the import, see `ImportOptions.digest`."""
    log: SortedLog
    pieces: list[range]
    """Places of the interactions of each period."""

    def key(self, piece: int) -> str:
        """Idempotency key of closing the period of a piece; pieces count from 1."""
        return f"import:{self.digest}:{piece}"

    @property
    def event_id_prefix(self) -> str:
        """Beginning of the ids of all events of this import."""
        return f"{self.digest}-"

    def events(self, places: range) -> EventBatch:
        """The interactions at some places, as events to store."""
        # Padded, because events of one batch are stored in the order of their ids: so that is the order of the log.
        return EventBatch.of(
            [
                Interaction(
                    f"{self.event_id_prefix}{row.place:010d}",
                    row.user_id,
                    row.item_id,
                    row.label,
                    _to_datetime(row.time_ms),
                    context=row.context,
                )
                for row in self.log.interactions(places)
            ]
        )

    def features(self, of: Literal["user", "item"], places: range) -> list[FeatureVersion]:
        """The features of users or items that change in the rows at some places."""
        return [
            FeatureVersion(row.id, _to_datetime(row.time_ms), orjson.loads(row.features))
            for row in self.log.feature_changes(of, places)
        ]


def _to_datetime(time_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=time_ms)
