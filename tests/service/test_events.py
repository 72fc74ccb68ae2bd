"""A batch of events is the same whether machine code made it of JSON, or Python of objects."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from service.http.schemas import parse_timestamp
from service.limits import MAX_ID_LENGTH, MAX_INTERACTIONS
from service.storage.postgres import events as events_module
from service.storage.postgres.events import COLUMNS, EventBatch, Happened, Interaction, in_milliseconds
from tests.service.copied import copied

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "label": 1, "timestamp": NOON.isoformat()}

IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=300)
IDS = IDS.filter(lambda text: len(text) <= MAX_ID_LENGTH)
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC))
INTERACTIONS = st.builds(Interaction, IDS, IDS, IDS, st.integers(0, 1), MOMENTS, st.none() | IDS)


def body(*events: dict[str, object], **options: object) -> bytes:
    return json.dumps({"interactions": list(events)}, ensure_ascii=False, **options).encode()  # type: ignore[arg-type]


def document(event: Interaction) -> dict[str, object]:
    members = {name: getattr(event, name) for name in ("event_id", "user_id", "item_id", "label", "request_id")}
    return members | {"timestamp": event.occurred_at.isoformat()}


def told(happened: Happened) -> list[str]:
    return b"".join(text for _, text in happened.parts(2, 1e15)).decode().split("\0")


def events_told(events: list[Interaction]) -> list[str]:
    """Users, milliseconds, events, items and labels, one behind the other, and the end."""
    milliseconds = [(e.occurred_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) for e in events]
    rows = [
        (e.user_id, str(ms), e.event_id, e.item_id, str(e.label)) for e, ms in zip(events, milliseconds, strict=True)
    ]
    return [*(value for row in rows for value in row), ""]


@settings(deadline=None)
@given(st.lists(INTERACTIONS, min_size=1, max_size=5), st.sampled_from([None, 1]))
def test_json_and_objects_make_the_same_batch(events: list[Interaction], indent: int | None) -> None:
    parsed, made = EventBatch.parse(body(*map(document, events), indent=indent)), EventBatch.of(events)
    assert parsed is not None
    for batch in (parsed, made):
        # To the millisecond, by which things are in order everywhere; what an event is says the whole time.
        assert copied(batch) == [replace(event, occurred_at=in_milliseconds(event.occurred_at)) for event in events]
        assert batch.ids() == [event.event_id for event in events]
        for some in (slice(None), slice(None, None, -2)):
            happened = Happened.among(batch, range(len(events))[some])
            assert happened.user_ids == [event.user_id for event in events[some]]
            assert told(happened) == told(Happened.of(events[some])) == events_told(events[some])
    everything = range(len(events))
    assert parsed.contents() == made.contents()
    assert parsed.copy(everything, 7) == made.copy(everything, 7)
    assert len(set(made.contents())) == len(
        {(e.user_id, e.item_id, e.label, e.occurred_at, e.request_id) for e in events}
    )


@settings(deadline=None)
@given(
    st.one_of(
        st.builds(
            lambda moment, offset: moment.astimezone(timezone(timedelta(minutes=offset))).isoformat(),
            MOMENTS,
            st.integers(-1439, 1439),
        ),
        st.from_regex(
            r"(19[89]\d|20\d\d|2[12]\d\d|\d{4})-[01]\d-[0-3]\d[Tt ][0-2]\d:[0-6]\d:[0-6]\d"
            r"(\.\d{1,9})?([Zz]|[+-][0-2]\d:[0-6]\d)",
            fullmatch=True,
            alphabet=st.characters(codec="ascii"),
        ),
        st.integers(-10, 8_000_000_000_000),
    )
)
@example("2000-01-01T00:00:00-00:60")
@example("1989-12-31T23:59:59-00:01")
@example("2100-01-01T00:00:59+00:01")
@example(631_151_999_999)
@example(4_102_444_799_999)
def test_times_are_read_as_pydantic_reads_them(timestamp: int | str) -> None:
    parsed = EventBatch.parse(body({**EVENT, "timestamp": timestamp}))
    try:
        expected = parse_timestamp(timestamp)
    except PydanticCustomError:
        assert parsed is None
    else:
        # Finer than a microsecond, or 1969 where it was written, or sixty minutes that are not called an hour.
        rare = isinstance(timestamp, str) and re.search(r"\.\d{7}|^1969|[+-]\d\d:60$", timestamp)
        assert (
            parsed is None
            if rare
            else parsed is not None and copied(parsed)[0].occurred_at == in_milliseconds(expected)
        )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"interactions":[]}',
        b'{"interactions":[{}]}',
        body(EVENT)[:-1],
        body(EVENT) + b"x",
        body(EVENT).replace(b"interactions", b"xinteractions"),
        body(EVENT).replace(b"event_id", b"xevent_id"),
        body(EVENT).replace(b'"e"', b'""'),
        body(EVENT).replace(b'"e"', b'"\\u0065"'),
        body(EVENT).replace(b'"e"', b'"\x01"'),
        body(EVENT).replace(b'"e"', b'"\xff"'),
        body(EVENT).replace(b'"e"', b"1"),
        body({**EVENT, "event_id": "é" * (MAX_ID_LENGTH + 1)}),
        body({**EVENT, "label": 2}),
        body({**EVENT, "label": True}),
        body({**EVENT, "label": 1.0}),
        body({**EVENT, "label": 10}),
        body({**EVENT, "timestamp": 1.5}),
        body({**EVENT, "timestamp": "2024-02-30T12:00:00Z"}),
        body({**EVENT, "timestamp": "2024-05-01T12:00:00"}),
        body({**EVENT, "colour": "red"}),
        body(EVENT).replace(b'"label": 1', b'"label": 1, "label": 1'),
        body(EVENT).replace(b'"label": 1', b'"label": 1,'),
        body(EVENT).replace(b'"user_id": "u", ', b""),
        body(EVENT, EVENT).replace(b"}, {", b"} {"),
        body(EVENT, EVENT).replace(b"}, {", b"},, {"),
        body(*[EVENT] * (MAX_INTERACTIONS + 1)),
    ],
    ids=lambda text: repr(text[:60]),
)
def test_what_is_not_plainly_right_gets_a_second_look(text: bytes) -> None:
    assert EventBatch.parse(text) is None


GUARD = 1000


@settings(deadline=None)
@given(
    st.lists(INTERACTIONS, min_size=1, max_size=5),
    st.sampled_from([None, 1]),
    st.binary(max_size=40),
    st.integers(0, 2000),
    st.integers(0, 10),
)
def test_damaged_bodies_are_read_within_their_bounds(
    events: list[Interaction], indent: int | None, noise: bytes, at: int, cut: int
) -> None:
    """Machine code checks no index."""
    whole = body(*map(document, events), indent=indent)
    damaged = whole[:at] + noise + whole[at + cut :]
    batch = EventBatch.parse(damaged)
    assert batch is None or all(event.user_id for event in copied(batch))
    # The same with more room, of which nothing is used.
    made = [np.full(size + GUARD, 77, kind) for size, kind in events_module.sizes_of(damaged)]
    text, rows, *columns = made
    text[: len(damaged)], text[len(damaged) : -GUARD] = np.frombuffer(damaged, np.uint8), 0
    columns[0][0] = 0
    n = events_module._parse(text, len(damaged), damaged.isascii(), 256, rows, *(c[:-GUARD] for c in columns))
    assert batch is None or len(batch) == n
    assert all((room[-GUARD:] == 77).all() for room in (rows, *columns))


@settings(deadline=None)
@given(st.lists(st.lists(INTERACTIONS, min_size=1, max_size=3), min_size=1, max_size=4))
def test_joined_batches_are_one(parts: list[list[Interaction]]) -> None:
    one = EventBatch.of([event for part in parts for event in part])
    parsed = [EventBatch.parse(body(*map(document, part))) for part in parts]
    joined = EventBatch.join([batch for batch in parsed if batch is not None])
    everything = range(len(one))
    assert len(joined) == len(one)
    assert joined.copy(everything, 3) == one.copy(everything, 3)
    assert joined.copy(everything[::-1], 3) == one.copy(everything[::-1], 3)
    assert (joined.ids(), joined.contents(), told(Happened.among(joined, everything))) == (
        one.ids(),
        one.contents(),
        told(Happened.among(one, everything)),
    )


def test_columns_are_in_the_order_in_which_rows_are_read() -> None:
    row = EventBatch.of([Interaction("e", "u", "i", 1, NOON, None)]).copy([0], 5)
    assert int.from_bytes(row[19:21], "big") == len(COLUMNS)
    assert row[-2:] == b"\xff\xff"
    assert int.from_bytes(row[-6:-2], "big") == 5
