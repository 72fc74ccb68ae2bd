"""A batch of events is the same from JSON and from objects, and stores the values that it was given."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from service.errors import InvalidInput
from service.http.bodies.interactions import parse_interactions
from service.http.schemas import parse_timestamp
from service.limits import MAX_ID_LENGTH
from service.storage.postgres.events import EventBatch, Happened, Interaction, in_milliseconds
from tests.service.copied import copied

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "label": 1, "timestamp": NOON.isoformat()}
SCOPE = {"headers": [(b"content-type", b"application/json")]}

IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300)
IDS = IDS.filter(lambda text: len(text) <= MAX_ID_LENGTH)
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC))
INTERACTIONS = st.builds(
    Interaction,
    IDS,
    IDS,
    IDS,
    st.integers(0, 1),
    MOMENTS,
    st.none() | IDS,
    weight=st.none() | st.sampled_from([0.5, 2.0, 1000.0]),
)


def body(*events: dict[str, object], **options: object) -> bytes:
    return json.dumps({"interactions": list(events)}, **options).encode()  # type: ignore[arg-type]


def parse(*events: dict[str, object], **options: object) -> EventBatch:
    return parse_interactions(body(*events, **options), SCOPE)


def document(event: Interaction) -> dict[str, object]:
    names = ("event_id", "user_id", "item_id", "label", "request_id", "weight")
    return {name: getattr(event, name) for name in names} | {"timestamp": event.occurred_at.isoformat()}


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
@given(st.lists(INTERACTIONS, min_size=1, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_json_and_objects_make_the_same_batch(
    events: list[Interaction], indent: int | None, ensure_ascii: bool
) -> None:
    parsed = parse(*map(document, events), indent=indent, ensure_ascii=ensure_ascii)
    made = EventBatch.of(events)
    for batch in (parsed, made):
        # To the millisecond, by which things are in order everywhere; what an event is says the whole time.
        assert copied(batch) == [replace(event, occurred_at=in_milliseconds(event.occurred_at)) for event in events]
        assert batch.event_ids == [event.event_id for event in events]
        for some in (slice(None), slice(None, None, -2)):
            happened = Happened.among(batch, range(len(events))[some])
            assert happened.user_ids == [event.user_id for event in events[some]]
            assert told(happened) == told(Happened.of(events[some])) == events_told(events[some])
    everything = range(len(events))
    assert parsed.contents == made.contents
    assert parsed.copy(everything, 7) == made.copy(everything, 7)
    assert len(set(made.contents)) == len(
        {(e.user_id, e.item_id, e.label, e.occurred_at, e.request_id, e.weight) for e in events}
    )


@pytest.mark.parametrize(
    ("event", "content"),
    [
        (Interaction("e", "u", "i", 1, NOON), -1836802041337165290),
        (Interaction("another", "u", "i", 1, NOON), -1836802041337165290),
        (Interaction("e", "u", "i", 0, NOON, "r"), -7948543938491230890),
        (Interaction("e", "日本", "é", 0, NOON + timedelta(microseconds=1)), -4524911815926218366),
        (Interaction("e", "u", "i", 1, NOON, None, '{"device":"phone"}'), 7526702308016035440),
        (Interaction("e", "u", "i", 1, NOON, "r", '{"device":"é"}', 0.1), 704720786185944411),
        (
            Interaction("e", "u" * 256, "i", 1, datetime(1990, 1, 1, tzinfo=UTC), None, None, 2.0),
            1339999655758161653,
        ),
    ],
)
def test_content_hashes_stay_those_that_are_stored(event: Interaction, content: int) -> None:
    """The values were printed by `EventBatch.of(...).contents()` of commit 4c52f5a, which hashed with its own machine
    code. With other hashes, events that clients send again would conflict with themselves.
    """
    assert EventBatch.of([event]).contents == [content]


@settings(deadline=None, max_examples=300)
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
        st.from_regex(r"\d{4}-?\d\d-?\d\d.?\d\d:?\d\d:?\d\d([.,]\d*)?([+-]\d\d:?\d\d(:\d\d)?|Z)?", fullmatch=True),
        st.text(max_size=4) | st.text("0123456789-:.TZ+ ", max_size=30),
        st.integers(-10, 8_000_000_000_000),
    )
)
@example("2000-01-01T00:00:00-00:60")
@example("1989-12-31T23:59:59-00:01")
@example("2100-01-01T00:00:59+00:01")
@example("2024-05-01T12:00:00+0000")
@example("2024-05-01T12:00:00.1234567Z")
@example("٢٠٢٤-05-01T12:00:00Z")
@example("")
@example("\0")
@example(631_151_999_999)
@example(4_102_444_799_999)
def test_times_are_read_as_pydantic_reads_them(timestamp: int | str) -> None:
    """Alone, and among times of the same or another form."""
    try:
        expected = parse_timestamp(timestamp)
    except PydanticCustomError:
        for others in ((), (EVENT,)):
            with pytest.raises(InvalidInput, match="timestamp"):
                parse(*others, {**EVENT, "timestamp": timestamp})
    else:
        for n, others in enumerate(((), (EVENT,))):
            batch = parse(*others, {**EVENT, "timestamp": timestamp})
            assert batch.times_us[n] == (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@settings(deadline=None)
@given(st.lists(st.lists(INTERACTIONS, min_size=1, max_size=3), min_size=1, max_size=4))
def test_joined_batches_are_one(parts: list[list[Interaction]]) -> None:
    one = EventBatch.of([event for part in parts for event in part])
    joined = EventBatch.join([parse(*map(document, part)) for part in parts])
    everything = range(len(one))
    assert len(joined) == len(one)
    assert joined.copy(everything, 3) == one.copy(everything, 3)
    assert joined.copy(everything[::-1], 3) == one.copy(everything[::-1], 3)
    assert (joined.event_ids, joined.contents, told(Happened.among(joined, everything))) == (
        one.event_ids,
        one.contents,
        told(Happened.among(one, everything)),
    )


def test_nothing_is_a_batch_too() -> None:
    assert copied(EventBatch.of([])) == []
    assert told(Happened.of([])) == [""]
