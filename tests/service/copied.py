"""What a batch of events would store, read back from its COPY."""

import struct
from datetime import UTC, datetime, timedelta

from service.storage.postgres.events import COLUMNS, FURTHER_COLUMNS, EventBatch, Interaction

HEADER_BYTES = 19
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def copied(batch: EventBatch) -> list[Interaction]:
    """The events of the batch."""
    file, at = batch.copy(range(len(batch)), 1), HEADER_BYTES
    events = []
    while (columns := int.from_bytes(file[at : at + 2], "big", signed=True)) >= 0:
        assert batch.columns in (COLUMNS, COLUMNS + FURTHER_COLUMNS) and columns == len(batch.columns)
        at += 2
        fields: list[bytes | None] = []
        for _ in batch.columns:
            length = int.from_bytes(file[at : at + 4], "big", signed=True)
            at += 4
            fields.append(None if length < 0 else file[at : at + length])
            at += max(length, 0)
        event_id, user_id, item_id, request_id = (
            None if field is None else field.decode() for field in (*fields[:3], fields[5])
        )
        assert event_id is not None and user_id is not None and item_id is not None
        label, microseconds = (int.from_bytes(field or b"", "big", signed=True) for field in fields[3:5])
        moment = EPOCH + timedelta(microseconds=microseconds)
        document, weight = (*fields, None, None)[8:10]
        assert document is None or document[0] == 1
        events.append(
            Interaction(
                event_id,
                user_id,
                item_id,
                label,
                moment,
                request_id,
                None if document is None else document[1:].decode(),
                None if weight is None else struct.unpack(">f", weight)[0],
            )
        )
    assert at + 2 == len(file)
    return events
