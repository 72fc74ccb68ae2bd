"""What a batch of events would store, read back from its binary COPY."""

import struct
from datetime import UTC, datetime, timedelta

from service.storage.postgres.events import COLUMNS, EventBatch, Interaction

HEADER_BYTES = 19
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
PERIOD = 7


def copied_rows(batch: EventBatch) -> list[dict[str, bytes | None]]:
    """The fields of each row by column."""
    file, at = batch.copy(range(len(batch)), PERIOD), HEADER_BYTES
    rows = []
    while (columns := int.from_bytes(file[at : at + 2], "big", signed=True)) >= 0:
        assert columns == len(COLUMNS)
        at += 2
        fields: dict[str, bytes | None] = {}
        for name in COLUMNS:
            length = int.from_bytes(file[at : at + 4], "big", signed=True)
            at += 4
            fields[name] = None if length < 0 else file[at : at + length]
            at += max(length, 0)
        rows.append(fields)
    assert at + 2 == len(file)
    return rows


def copied(batch: EventBatch) -> list[Interaction]:
    """The events of the batch."""
    events = []
    for n, row in enumerate(copied_rows(batch)):
        event_id, user_id, item_id, request_id = (
            None if (field := row[name]) is None else field.decode()
            for name in ("event_id", "user_id", "item_id", "request_id")
        )
        label, microseconds, content, period = (
            int.from_bytes(row[name] or b"", "big", signed=True)
            for name in ("label", "occurred_at", "content", "period")
        )
        assert event_id is not None and user_id is not None and item_id is not None
        assert (content, period) == (batch.contents[n], PERIOD)
        document, weight = row["context"], row["weight"]
        assert document is None or document[0] == 1
        events.append(
            Interaction(
                event_id,
                user_id,
                item_id,
                label,
                EPOCH + timedelta(microseconds=microseconds),
                request_id,
                None if document is None else document[1:].decode(),
                None if weight is None else struct.unpack(">f", weight)[0],
            )
        )
    return events
