"""The fast body parsers accept only what pydantic accepts, and give clients the same answers."""

import dataclasses
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from asmg.features import Schema
from service.errors import BodyTooLarge, InvalidInput
from service.http.bodies import impressions, interactions, predict
from service.http.bodies.impressions import parse_clicks, parse_impressions
from service.http.bodies.interactions import parse_interactions
from service.http.bodies.parse import count_parts, parse_json, refuse_faults
from service.http.bodies.predict import parse_batch, parse_predict
from service.http.bodies.read import read_body
from service.http.schemas import (
    BatchedRequest,
    BatchRequest,
    ClicksRequest,
    ImpressionsRequest,
    InteractionsRequest,
    PredictRequest,
)
from service.limits import MAX_BATCH, MAX_ID_LENGTH, MAX_IMPRESSIONS, MAX_INTERACTIONS, MAX_ITEMS, MAX_JSON_PARTS
from service.storage.postgres.events import in_milliseconds
from service.storage.postgres.repositories import Click, EventBatch, Impression, Interaction
from service.use_cases.fields import cleaned, faults, written
from service.use_cases.predict import Question
from tests.service.api_support import NOON, event
from tests.service.copied import copied

SCHEMA = Schema.from_toml(
    """
    [fields.device]
    of = "context"
    kind = "categorical"
    [fields.pages]
    of = "context"
    kind = "multi"
    most = 3
    [fields.scroll]
    of = "context"
    kind = "numeric"
    [fields.depth]
    of = "context"
    kind = "numeric"
    enter = "buckets"
    buckets = [0, 1]
    """
)

SCOPE = {"headers": [(b"content-type", b"application/json")]}


def plain(value: Any) -> Any:
    """Whatever a parser returns, as lists and dictionaries; an id as its text."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, BatchedRequest):
        log = 1000 if value.log_impressions is True else value.log_impressions or None
        return {
            "user_id": value.user_id,
            "item_ids": value.items,
            "history": value.history,
            "request_id": value.request_id,
            "to_log": None if log is None else (value.items, log, written(value.context), None),
            "context": cleaned(value.context) or None,
            "item_contexts": None,
            "model_version": getattr(value, "model_version", None),
        }
    if isinstance(value, Question):
        ids = {
            "item_ids": [str(item) for item in value.item_ids],
            "history": None if value.history is None else [str(item) for item in value.history],
        }
        # A missing value may be there or not: it is read alike.
        return value._asdict() | ids | {"context": cleaned(value.context) or None}
    if isinstance(value, EventBatch):
        events = copied(value)
        if not (value.moments % 1000).any():  # of which the rows have the milliseconds alone
            assert value.contents == EventBatch.of(events).contents
        return [plain(event) for event in events]
    if isinstance(value, Interaction):  # as the log has it
        weight = None if value.weight is None else float(np.float32(value.weight))
        stored = dataclasses.replace(value, occurred_at=in_milliseconds(value.occurred_at), weight=weight)
        return dataclasses.asdict(stored)
    assert isinstance(value, Impression | Click)
    return dataclasses.asdict(value)


def outcome(parse: Callable[[], Any]) -> Any:
    """What it returns, or the problem that it raises."""
    try:
        return plain(parse())
    except InvalidInput as error:
        return error.problem()
    except HTTPException as error:
        return error.status_code, error.detail


def slowly(kind: str, body: bytes) -> Any:
    """The outcome by pydantic alone."""
    if kind in ("predict", "batch"):
        return outcome(lambda: questions(kind, body))
    return outcome(lambda: logged(kind, body))


def logged(kind: str, body: bytes) -> Any:
    model, event, _ = EVENTS[kind]
    found = getattr(parse_json(model, body, SCOPE), kind)
    if kind == "interactions":
        refuse_faults(
            fault
            for n, one in enumerate(found)
            for fault in faults(SCHEMA, "context", one.context, f"interactions[{n}].context")
        )
    return [event(one) for one in found]


def questions(kind: str, body: bytes) -> Any:
    if kind == "predict":
        found, paths = [parse_json(PredictRequest, body, SCOPE)], [""]
    else:
        found = parse_json(BatchRequest, body, SCOPE).requests
        paths = [f"requests[{n}]." for n in range(len(found))]
    refuse_faults(
        fault
        for request, path in zip(found, paths, strict=True)
        for fault in faults(SCHEMA, "context", request.context, f"{path}context")
    )
    return found[0] if kind == "predict" else found


EVENTS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[bytes, Any], Any]]] = {
    "interactions": (InteractionsRequest, interactions._interaction, partial(parse_interactions, schema=SCHEMA)),
    "impressions": (ImpressionsRequest, impressions._impression, parse_impressions),
    "clicks": (ClicksRequest, impressions._click, parse_clicks),
}
PARSERS: dict[str, Callable[[bytes, Any], Any]] = {
    "predict": partial(parse_predict, schema=SCHEMA),
    "batch": partial(parse_batch, schema=SCHEMA),
    **{name: parse for name, (_, _, parse) in EVENTS.items()},
}


def assert_same(kind: str, body: bytes) -> None:
    assert outcome(lambda: PARSERS[kind](body, SCOPE)) == slowly(kind, body)


# Ids as they come, and at the edges of what is allowed: lengths are counted in characters, of one to four bytes each.
EDGES = st.one_of(
    st.sampled_from(["\u2028", "\ufeff", "\x01", "", "\0", "a\0"]),
    st.text(max_size=4),
    st.builds(lambda letter, n: letter * n, st.sampled_from("aé日😀"), st.sampled_from([255, 256, 257])),
)
IDS = st.integers(0, 19).flatmap(
    lambda n: EDGES if n == 0 else st.sampled_from(["a", "i17", "é", "日本", "😀", "\x7f"])
)
# Integers are ids too, within 64 bits; of up to 18 digits they are read where they are.
INTEGERS = st.integers(-(10**20), 10**20) | st.sampled_from(
    [0, 1, 42, -7, *(edge + n for edge in (10**17, 10**18, 2**63, -(2**63), -(10**18)) for n in (-1, 0, 1)), 10**30]
)
JSON_IDS = st.integers(0, 9).flatmap(lambda n: INTEGERS if n == 0 else st.sampled_from([42, "42"]) if n == 1 else IDS)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2, -1, 10**18, 10**30, 2**63, -(2**63)]),
    st.floats(),
    st.sampled_from([0.0, 1.0, 1e300, -0.0]),
    IDS,
    st.lists(IDS, max_size=2),
    st.dictionaries(IDS, st.none(), max_size=2),
)
TIMES = st.one_of(
    st.sampled_from([NOON, "2024-05-01t14:00:00.5+02:00", "2024-05-01 12:00:00z"]),
    st.sampled_from([NOON, "2024-05-01T12:00:00", "2024-02-30T12:00:00Z", "2024-05-01T12:00:00+25:00"]),
    st.integers(631_152_000_000, 4_102_444_799_999),
    st.sampled_from([-1, 0, 1_795_928_400, 10**11 - 1, 10**11, 631_151_999_999, 4_102_444_800_000, 10**15, 10**18]),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 29).flatmap(lambda n: ODD if n == 0 else usual)


def document(fields: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]) -> Any:
    """An object with these members, sometimes with others, sometimes something else."""
    usual = st.fixed_dictionaries(
        {name: mostly(values) for name, values in fields.items()},
        optional={name: mostly(values) for name, values in optional.items()},
    )
    further = st.tuples(usual, st.dictionaries(st.sampled_from(["colour", "USER_ID", *fields]), ODD, max_size=1))
    return mostly(st.integers(0, 9).flatmap(lambda n: further.map(lambda pair: pair[0] | pair[1]) if n == 0 else usual))


NUMBERS = (
    st.floats() | st.integers(-(10**31), 10**31) | st.sampled_from([1e30, -1e30, 1.1e30, 10**30, 2**63, -0.0, 1.0])
)
CONTEXTS = st.fixed_dictionaries(
    {},
    optional={
        "device": mostly(EDGES | st.booleans() | st.integers() | st.none()),
        "pages": mostly(st.lists(EDGES | st.sampled_from([1, 1.0, True, None, "", "a"]), max_size=4)),
        "scroll": mostly(NUMBERS),
        "depth": mostly(NUMBERS),
        "colour": ODD,
    },
)
QUESTIONS = document(
    {"items": st.lists(mostly(JSON_IDS), max_size=4)},
    {
        "user_id": st.none() | JSON_IDS,
        "history": st.none() | st.lists(mostly(JSON_IDS), max_size=3),
        "request_id": st.none() | JSON_IDS,
        "context": st.none() | CONTEXTS,
        "log_impressions": st.sampled_from([None, False, True, 1, 2, 1000, 0, 1001]),
    },
)
LOGGED = document(
    {
        "event_id": JSON_IDS,
        "user_id": JSON_IDS,
        "item_id": JSON_IDS,
        "label": st.sampled_from([0, 1]),
        "timestamp": TIMES,
    },
    {
        "request_id": st.none() | JSON_IDS,
        "context": st.none() | CONTEXTS,
        "weight": st.none() | st.sampled_from([1, 1.0, 0.1, 2, 1e-6, 9e-7, 1000, 1000.1, -1, 0, 1e308, 10**30]),
    },
)
SHOWN = document(
    {"request_id": JSON_IDS, "user_id": JSON_IDS, "items": st.lists(mostly(JSON_IDS), max_size=4), "timestamp": TIMES},
    {"positions": st.none() | st.lists(mostly(st.sampled_from([0, 1, 7, 2**31 - 1, 2**31])), max_size=4)},
)
CLICKED = document(
    {"request_id": JSON_IDS, "item_id": JSON_IDS, "timestamp": TIMES}, {"event_id": st.none() | JSON_IDS}
)
DOCUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "predict": QUESTIONS,
    "batch": document({"requests": st.lists(QUESTIONS, max_size=3)}, {}),
    "interactions": document({"interactions": st.lists(LOGGED, max_size=3)}, {}),
    "impressions": document({"impressions": st.lists(SHOWN, max_size=3)}, {}),
    "clicks": document({"clicks": st.lists(CLICKED, max_size=3)}, {}),
}
KINDS = st.sampled_from(sorted(DOCUMENTS))


def encoded(value: Any, draw: st.DrawFn) -> bytes:
    """As clients write JSON: escaped or not, half characters too."""
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(KINDS)
    return kind, encoded(draw(DOCUMENTS[kind]), draw)


@settings(deadline=None, max_examples=1000)
@given(documents())
def test_the_outcome_is_that_of_pydantic(given_document: tuple[str, bytes]) -> None:
    assert_same(*given_document)


@settings(deadline=None, max_examples=300)
@given(KINDS, st.recursive(ODD, lambda inner: st.lists(inner) | st.dictionaries(IDS, inner), max_leaves=10), st.data())
def test_any_json_document(kind: str, value: Any, data: st.DataObject) -> None:
    assert_same(kind, encoded(value, data.draw))


GOOD: dict[str, list[bytes]] = {
    "predict": [
        b'{"user_id":"u","items":["a","i 17"]}',
        '{"user_id":"u","items":["a","é\\u00e9\\ud83d\\ude00"],"history":["b"],"request_id":null}'.encode(),
        b'{"user_id":42,"items":[-7,0 ,"u"],"history":[5],"request_id":9}',
        b'{"items":["a"],"history":["u"]}',
        b'{"items":["a"],"context":{"device":"phone","pages":["a","b",true],"scroll":1e30,"depth":-7}}',
        b'{"items":["\\u0061"],"context":{"device":true,"pages":[],"scroll":null,"depth":0.5},"user_id":"u"}',
        b'{"items":["a"],"context":{},"user_id":"u"}',
    ],
    "batch": [
        b'{"requests":[{"items":["a"],"user_id":"u"},{"history":["b"],"user_id":"v","items":["b","c"]}]}',
        '{"requests":[{"user_id":"u","items":["a"]},{"user_id":"日","items":["b"],"history":null}]}'.encode(),
        b'{"requests":[{"items":[42]},{"user_id":"u","items":[1]}]}',
        b'{"requests":[{"items":["a"],"context":{"device":"u"}},{"items":["b"],"context":{"device":3}}]}',
    ],
    "interactions": [
        json.dumps({"interactions": [event(1), event(2, timestamp=1714564800001)]}).encode(),
        b'{"interactions":[{"event_id":1,"user_id":-7,"item_id":42,"label":1,"timestamp":1714564800001,"request_id":0}]}',
        b'{"interactions":[{"event_id":"e","user_id":"u","item_id":"i","label":0,"timestamp":1714564800001,'
        b'"context":{"device":"phone","pages":["a",true],"scroll":1.5,"depth":2},"weight":0.1}]}',
        b'{"interactions":[{"event_id":"e","user_id":"u","item_id":"i\\n","label":0,"timestamp":"2024-05-01T12:00:00Z",'
        b'"context":{},"weight":1,"request_id":null}]}',
    ],
    "impressions": [
        b'{"impressions":[{"request_id":"r","user_id":"u","items":["a","b"],"timestamp":1714564800001}]}',
        b'{"impressions":[{"items":["b","a"],"positions":[3,1],"user_id":"u","request_id":"r","timestamp":946684800000}]}',
        b'{"impressions":[{"items":[2,"a"],"positions":[0,1],"user_id":42,"request_id":7,"timestamp":946684800000}]}',
    ],
    "clicks": [
        b'{"clicks":[{"request_id":"r","item_id":"u","timestamp":"2024-05-01T12:00:00Z"}]}',
        b'{"clicks":[{"event_id":"c","request_id":"r","item_id":"u","timestamp":1714564800001}]}',
        b'{"clicks":[{"event_id":0,"request_id":-7,"item_id":42,"timestamp":1714564800001}]}',
    ],
}
PIECES = rb"""
" \ \u0000 \ud800 \udc00 \x \/ { } [ ] , : ' /**/ 1 1.0 1e0 -0 01 null true NaN Infinity "user_id":"v", "items":["x"],
""".split()
PIECES += [b" ", b"\n", b"\t", b"\x0b", b"\0", b"\x7f", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf"]


@settings(deadline=None, max_examples=1500)
@given(KINDS, st.data())
def test_bytes_that_were_tampered_with(kind: str, data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(GOOD[kind]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        end = start + data.draw(st.sampled_from([0, 0, 1, 2, 8]))
        piece = data.draw(st.sampled_from(PIECES) | st.binary(max_size=2))
        body = body[:start] + piece + body[end:]
    assert_same(kind, body)


@pytest.mark.parametrize("kind", PARSERS)
def test_pieces_everywhere(kind: str) -> None:
    """Each piece once at each place of a good body, inserted and in place of what is there."""
    for body in GOOD[kind]:
        for start in range(len(body) + 1):
            for piece in PIECES:
                for end in (start, start + 1, start + len(piece)):
                    assert_same(kind, body[:start] + piece + body[end:])


EVENT = b'{"event_id": "e", "user_id": "u", "item_id": "i", "label": 1, "timestamp": "2024-05-01T12:00:00+00:00"}'
EVENTS_BODY = b'{"interactions": [%s]}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        EVENTS_BODY % b"",
        EVENTS_BODY % b"{}",
        (EVENTS_BODY % EVENT)[:-1],
        (EVENTS_BODY % EVENT) + b"x",
        (EVENTS_BODY % EVENT).replace(b"interactions", b"xinteractions"),
        *(
            EVENTS_BODY % EVENT.replace(old, new)
            for old, new in [
                (b"event_id", b"xevent_id"),
                (b'"e"', b'""'),
                (b'"e"', b'"\\u0065"'),
                (b'"e"', b'"\\u0000"'),
                (b'"e"', b'"\x01"'),
                (b'"e"', b'"\xff"'),
                (b'"e"', b"1"),
                (b'"e"', ('"%s"' % ("é" * (MAX_ID_LENGTH + 1))).encode()),
                (b'"label": 1', b'"label": 2'),
                (b'"label": 1', b'"label": true'),
                (b'"label": 1', b'"label": 1.0'),
                (b'"label": 1', b'"label": 10'),
                (b'"label": 1', b'"label": 1, "label": 1'),
                (b'"label": 1', b'"label": 7, "label": 1'),
                (b'"label": 1', b'"label": 1,'),
                (b'"label": 1', b'"label": 1, "weight": 0'),
                (b'"label": 1', b'"label": 1, "weight": true'),
                (b'"label": 1', b'"label": 1, "context": []'),
                (b'"label": 1', b'"label": 1, "context": {"nofield": 1}'),
                (b'"label": 1', b'"label": 1, "context": {"device": "%s"}' % (b"x" * 9000)),
                (b'"2024-05-01T12:00:00+00:00"', b"1.5"),
                (b"05-01T", b"02-30T"),
                (b"+00:00", b""),
                (b"}", b', "colour": "red"}'),
                (b'"user_id": "u", ', b""),
            ]
        ),
        EVENTS_BODY % (EVENT + b" " + EVENT),
        EVENTS_BODY % (EVENT + b",," + EVENT),
        EVENTS_BODY % b",".join([EVENT] * (MAX_INTERACTIONS + 1)),
    ],
    ids=lambda body: repr(body[:150][-80:]),
)
def test_odd_interactions(body: bytes) -> None:
    assert_same("interactions", body)


@pytest.mark.parametrize("letter", ["a", "é", "日", "😀", "\\ud83d\\ude00", "\\n"])
@pytest.mark.parametrize("kind", PARSERS)
def test_lengths_are_counted_in_characters(kind: str, letter: str) -> None:
    """For every id of a body, however many bytes or escapes a character takes."""
    body = GOOD[kind][0].decode()
    ids = re.findall(r'(?<=[:\[,] )"[^"]*"(?! ?:)|(?<=[:\[,])"[^"]*"(?! ?:)', body)
    assert len(ids) >= 3
    for id_ in ids:
        for length in (0, 1, MAX_ID_LENGTH, MAX_ID_LENGTH + 1):
            assert_same(kind, body.replace(id_, f'"{letter * length}"', 1).encode())


MEMBERS = {
    "predict": (b"items", b'{%s"user_id":"u","items":["a"]}'),
    "batch": (b"requests", b'{%s"requests":[{"user_id":"u","items":["a"]}]}'),
    **{name: (name.encode(), b"{%s" + GOOD[name][0][1:]) for name in EVENTS},
}
VALUES = rb"""
[] ["b"] null 7 "b" {} [7] [[]] {"a":{"b":1}} "\n" ["\ud83d\ude00"] "\ud800" ["\ud800"] "\u12" "\x" 1. 01 1e -0 1e999
NaN -Infinity +1 .5 tru [1,] {"a"} {1:2} {"a":1,} []] 'b'
""".split()
VALUES += [b'"\xff"', b'["\xff"]', b'"\xed\xa0\x80"', b'{"\xff":1}', b'"\x01"', b'"\n"', '["é"]'.encode()]
VALUES += [b"[" * 500 + b"]" * 500]


@pytest.mark.parametrize("kind", PARSERS)
def test_a_member_that_comes_twice(kind: str) -> None:
    """The last one counts; the others still have to be valid JSON."""
    name, body = MEMBERS[kind]
    assert isinstance(slowly(kind, body % b""), dict | list)
    for value in VALUES:
        for key in (name, b"\\u%04x" % name[0] + name[1:], b"colour"):
            assert_same(kind, body % (b'"%s":%s,' % (key, value)))


JSON_MEDIA_TYPES = [
    b"application/json",
    b"application/json; charset=utf-8",
    b'Application/JSON;CharSet="UTF-8"',
    b"application/json ;charset=utf8; profile=a",
    b"application/vnd.a+json",
]


@pytest.mark.parametrize("media_type", JSON_MEDIA_TYPES)
@pytest.mark.parametrize("kind", PARSERS)
def test_a_good_body_takes_the_quick_way(kind: str, media_type: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its media type is written. Otherwise the comparisons here would prove nothing."""
    scope = {"headers": [(b"content-type", media_type)]}
    expected = [slowly(kind, body) for body in GOOD[kind]]

    def never(*_: object) -> None:
        raise AssertionError("pydantic was asked")

    for module in (impressions, interactions, predict):
        monkeypatch.setattr(module, "parse_json", never)
    for body, outcome in zip(GOOD[kind], expected, strict=True):
        assert plain(PARSERS[kind](body, scope)) == outcome
        for letter in "aé日😀":
            longest = body.replace(b'"u"', f'"{letter * MAX_ID_LENGTH}"'.encode())
            PARSERS[kind](longest, scope)


@pytest.mark.parametrize("kind", PARSERS)
def test_an_integer_is_the_id_of_its_decimal_text(kind: str) -> None:
    as_text = {
        body: re.sub(rb'(_id":|items":\[|history":\[|, ?|\[)(-?\d+)(?=[\s,}\]])', rb'\1"\2"', body)
        for body in GOOD[kind]
    }
    assert any(text != body for body, text in as_text.items())
    for body, text in as_text.items():
        if b'"positions"' not in body:
            assert outcome(lambda: PARSERS[kind](body, SCOPE)) == outcome(lambda: PARSERS[kind](text, SCOPE))  # noqa: B023


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001])
@pytest.mark.parametrize("item", ["a", "é"])
def test_items_are_counted(count: int, item: str) -> None:
    body = json.dumps({"user_id": "u", "items": [item] * count}, ensure_ascii=False).encode()
    assert_same("predict", body)
    assert_same("batch", b'{"requests":[%s]}' % body)
    assert_same("predict", json.dumps({"user_id": "u", "items": ["a"], "history": [item] * count}).encode())


@pytest.mark.parametrize("kind", PARSERS)
def test_the_media_type_decides_before_anything_else(kind: str) -> None:
    for scope in ({"headers": []}, {"headers": [(b"content-type", b"text/plain")]}):
        for body in (GOOD[kind][0], b"{", b""):
            with pytest.raises(HTTPException) as raised:
                PARSERS[kind](body, scope)
            assert raised.value.status_code == 415
    for charset in (b"utf-16", b"ISO-8859-1", b""):
        scope = {"headers": [(b"content-type", b"application/json; charset=%s" % charset)]}
        for body in (GOOD[kind][0], b"{", b""):
            with pytest.raises(HTTPException, match="expected JSON in UTF-8") as raised:
                PARSERS[kind](body, scope)
            assert raised.value.status_code == 415


def test_validation_is_that_of_the_models() -> None:
    """The comparisons above rely on `parse_json`; this one does not."""
    with pytest.raises(ValidationError):
        PredictRequest.model_validate_json(b'{"user_id": "u\\u0000", "items": ["a"]}')
    with pytest.raises(InvalidInput) as raised:
        parse_predict(b'{"user_id": "u\\u0000", "items": ["a"]}', SCOPE)
    assert [error.field for error in raised.value.errors] == ["user_id"]


def parts_of(value: Any) -> int:
    """What `count_parts` counts, of the document itself."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(parts_of(each) for each in value.values())
    return 1 + sum(parts_of(each) for each in value) if isinstance(value, list) else 0


@settings(deadline=None)
@given(st.recursive(ODD, lambda inner: st.lists(inner) | st.dictionaries(IDS, inner), max_leaves=20), st.data())
def test_parts_are_counted(value: Any, data: st.DataObject) -> None:
    assert count_parts(encoded(value, data.draw)) == parts_of(value)


@pytest.mark.parametrize("kind", PARSERS)
def test_of_more_parts_than_any_call_has_nothing_is_looked_at(kind: str) -> None:
    for body in (
        b"{%s}" % b",".join(b'"%d":0' % number for number in range(MAX_JSON_PARTS)),
        b'{"%s":[%s{}]}' % (kind.encode(), b"{}," * MAX_JSON_PARTS),
        b'{"%s":[%s[]]}' % (kind.encode(), b"[]," * MAX_JSON_PARTS),
    ):
        with pytest.raises(InvalidInput, match=f"at most {MAX_JSON_PARTS} objects, arrays and members"):
            PARSERS[kind](body, SCOPE)


def test_the_largest_calls_have_fewer_parts() -> None:
    request = {"user_id": "u", "items": ["a"] * MAX_ITEMS, "history": ["a"] * MAX_ITEMS, "request_id": "r"}
    shown = {"request_id": "r", "user_id": "u", "items": ["a", "b"], "positions": [0, 1], "timestamp": NOON}
    largest = {
        BatchRequest: {"requests": [request] * MAX_BATCH},
        InteractionsRequest: {"interactions": [event(1, request_id="r")] * MAX_INTERACTIONS},
        ImpressionsRequest: {"impressions": [shown] * MAX_IMPRESSIONS},
    }
    for model, value in largest.items():
        [(name, requests)] = value.items()
        assert len(getattr(parse_json(model, json.dumps(value).encode(), SCOPE), name)) == len(requests)


def test_names_of_fields_are_shortened_in_problems() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_predict(b'{"user_id": "u", "items": ["a"], "%s": 1}' % (b"x" * 100_000), SCOPE)
    assert [error.field for error in raised.value.errors] == ["x" * 99 + "…"]
    assert len(str(raised.value)) < 200


class TestReadBody:
    async def read(self, *messages: Message) -> bytes:
        waiting = list(messages)

        async def receive() -> Message:
            return waiting.pop(0)

        return await read_body({"headers": []}, receive, 100)

    async def test_of_one_message_and_of_several(self) -> None:
        assert await self.read({"type": "http.request"}) == b""
        assert await self.read({"type": "http.request", "body": b"ab"}) == b"ab"
        more = [{"type": "http.request", "body": part, "more_body": True} for part in (b"a", b"", b"b")]
        assert await self.read(*more, {"type": "http.request", "body": b"c", "more_body": False}) == b"abc"
        assert await self.read(*more, {"type": "http.request"}) == b"ab"

    async def test_is_refused_as_soon_as_it_is_too_long(self) -> None:
        whole = {"type": "http.request", "body": b"x" * 100}
        assert await self.read(whole) == b"x" * 100
        more = [{"type": "http.request", "body": b"x" * 60, "more_body": True} for _ in range(2)]
        for messages in ([{"type": "http.request", "body": b"x" * 101}], more):  # the second never comes to an end
            with pytest.raises(BodyTooLarge, match="at most 100 bytes"):
                await self.read(*messages)

        async def unread() -> Message:
            raise AssertionError("a byte was read")

        with pytest.raises(BodyTooLarge):
            await read_body({"headers": [(b"content-length", b"101")]}, unread, 100)

    async def test_of_a_client_that_goes_away(self) -> None:
        part = {"type": "http.request", "body": b"a", "more_body": True}
        for messages in ([{"type": "http.disconnect"}], [part, {"type": "http.disconnect"}]):
            with pytest.raises(ClientDisconnect):
                await self.read(*messages)
