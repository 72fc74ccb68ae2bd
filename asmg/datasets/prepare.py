"""Prepares a published log (`asmg.datasets.prepared`) by the paper's rules. Used by `asmg experiment prepare`.

1. The source's rule says which rows are kept and which are positives (`Source.rule`, one module per source).
2. Rows are sorted by time; rows with equal times keep the source's order.
3. If a source has only positives, each one is followed by sampled negatives: uniform over the items of the log that its
   user has not had so far, including all rows with the same time. In click sessions, whose order is known, rows with
   the same time count in their order.
4. Users and items are numbered by first appearance.

(methods.md, section 0; the rules for Tmall, Sobazaar and MovieLens follow the authors' published preprocessing.)
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.datasets.amazon import AMAZON
from asmg.datasets.avazu import AVAZU
from asmg.datasets.card import Card, SourceFile
from asmg.datasets.criteo import CRITEO
from asmg.datasets.diginetica import DIGINETICA
from asmg.datasets.events import Events
from asmg.datasets.gathering import Gathering, Progress, Source
from asmg.datasets.generic import LogOptions, read_generic
from asmg.datasets.kuairand import KUAIRAND
from asmg.datasets.mind import MIND
from asmg.datasets.movielens import ML_1M, ML_25M, ML_100K, ML_LATEST
from asmg.datasets.prepared import check_new_folder, sha256, write_prepared
from asmg.datasets.sampling import draw_negatives, fields_with_negatives, rows_that_tell
from asmg.datasets.scan import BLOCK_BYTES, Malformed
from asmg.datasets.sobazaar import SOBAZAAR
from asmg.datasets.taobao_ad import TAOBAO_AD
from asmg.datasets.tmall import TMALL
from asmg.datasets.yoochoose import YOOCHOOSE
from asmg.log_format import LogFormatError

__all__ = ["GENERIC", "SOURCES", "PrepareOptions", "prepare"]

SOURCES: Mapping[str, Source] = {
    "tmall": TMALL,
    "sobazaar": SOBAZAAR,
    "ml-25m": ML_25M,
    "ml-latest": ML_LATEST,
    "ml-1m": ML_1M,
    "ml-100k": ML_100K,
    "diginetica": DIGINETICA,
    "yoochoose": YOOCHOOSE,
    "kuairand": KUAIRAND,
    "amazon": AMAZON,
    "avazu": AVAZU,
    "criteo": CRITEO,
    "taobao-ad": TAOBAO_AD,
    "mind": MIND,
}
"""Name → public log."""

GENERIC = "log"
"""Name of the user's own log."""

TITLE_CHARS = 100
"""Maximum characters of the title of such a log, which is part of headings."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a log is prepared."""

    name: str
    """One of SOURCES, or GENERIC."""
    raw: Path
    """The published file, or the folder that holds it."""
    out: Path
    """The new folder of the prepared log."""
    title: str | None = None
    """Title of a GENERIC log in its card and in reports, 1 to TITLE_CHARS characters; None for "log"."""
    seed: int = 0
    """Seed of the sampled negatives."""
    negatives: int = 1
    """Sampled negatives per positive, if the source has only positives."""
    malformed: Malformed = "error"
    """Treatment of bad rows."""
    log: LogOptions = field(default_factory=LogOptions)
    """Options of a GENERIC log."""
    block_bytes: int = BLOCK_BYTES
    """Bytes of a block in which files are read; the result does not depend on it."""

    def __post_init__(self) -> None:
        if self.name not in (*SOURCES, GENERIC):
            raise ValueError(f"name: expected one of {', '.join((*SOURCES, GENERIC))}; received {self.name!r}")
        if self.title is not None:
            if self.name != GENERIC:
                raise ValueError(f"--name: expected none for {self.name}, which has a name; received {self.title!r}")
            printed = self.title.strip() == self.title and self.title.isprintable()
            if not printed or not 1 <= len(self.title) <= TITLE_CHARS:
                raise ValueError(
                    f"--name: expected 1 to {TITLE_CHARS} printable characters, no blank at either end; "
                    f"received {self.title!r}"
                )
        if self.name != GENERIC and (self.log.features is not None or any(self.log.named.values())):
            raise ValueError(f"features: expected none for {self.name}, whose fields are known; received some")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0; received {self.seed}")
        if self.negatives < 1:
            raise ValueError(f"negatives: expected at least 1; received {self.negatives}")
        if self.malformed not in ("error", "drop"):
            raise ValueError(f"malformed: expected error or drop; received {self.malformed!r}")

    @property
    def source(self) -> Source:
        """The source of this name."""
        if self.name != GENERIC:
            return SOURCES[self.name]
        rule = ("all rows, with the labels of the file", "or where it has none, each a positive")
        return Source(read=lambda gathering: read_generic(gathering, self.log), rule=rule, unique=True)


def prepare(options: PrepareOptions, *, progress: Progress | None = None) -> Card:
    """Prepare a log.

    Args:
        options: what to prepare, and how.
        progress: called with the current work and the fraction of it that is done.

    Returns:
        the card.

    Raises:
        LogFormatError: a file has unexpected content; the folder is not made.
        ValueError: `out` is not empty.
        OSError: a file cannot be read or written.
    """
    say = progress or (lambda what, fraction: None)
    check_new_folder(options.out)
    source, gathering = options.source, Gathering(options.raw, options.malformed, options.block_bytes, progress)
    events = source.read(gathering)
    if not len(events):
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in gathering.dropped.items())
        raise LogFormatError(options.raw, "at least one row that the rule keeps", f"none ({reasons})")

    say("sorting", 0.0)
    events = events.take(np.argsort(events.timestamps_ms, kind="stable"))
    repeats = _repeats(events)
    if source.unique:
        events = gathering.leave_out(events, ~repeats, "rows that repeat an earlier one")
    events = _renumbered(events)
    positives_only, kept = events.positives_only, 0 if source.unique else int(repeats.sum())
    if positives_only:
        say("drawing negatives", 0.0)
        events, without = _with_negatives(events, options, whole_sessions=source.whole_sessions)
        rule = (*source.rule, _negatives_rule(options.negatives, source.whole_sessions))
        events = _renumbered(events)
    else:
        rule, without = source.rule, 0

    say("writing", 0.0)
    log = pl.DataFrame(
        {"user": events.user, "item": events.item, "label": events.label, "timestamp": events.timestamps_ms}
    )
    users, items = (pl.DataFrame({"id": ids}, schema={"id": pl.String}) for ids in (events.user_ids, events.item_ids))
    categories = 0
    if events.item_categories is not None:
        lists = pl.Series("categories", [list(c) for c in events.item_categories], dtype=pl.List(pl.String))
        items, categories = items.with_columns(lists), len(set().union(*events.item_categories))
    base = options.raw if options.raw.is_dir() else options.raw.parent
    first, last = (_rfc3339(int(events.timestamps_ms[at])) for at in (0, -1))
    card = write_prepared(
        options.out,
        log,
        users,
        items,
        {
            "dataset": options.title or options.name,
            "rows": len(events),
            "positives": int(events.label.sum(dtype=np.int64)),
            "users": len(events.user_ids),
            "items": len(events.item_ids),
            "categories": categories,
            "first": first,
            "last": last,
            "rule": rule,
            "seed": options.seed if positives_only else None,
            "negatives_per_positive": options.negatives if positives_only else 0,
            "without_negative": without,
            "sources": tuple(
                SourceFile(file=path.relative_to(base).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))
                for path in gathering.files
            ),
            "rows_read": gathering.rows_read,
            "dropped": gathering.dropped,
            "duplicates_kept": kept,
            "out_of_order": gathering.out_of_order,
            "asmg_version": importlib.metadata.version("asmg-service"),
        },
        schema=events.schema,
        fields=events.fields,
    )
    say("writing", 1.0)
    return card


def _repeats(events: Events) -> npt.NDArray[np.bool_]:
    """Which events (in time order) equal an earlier one in user, item, time and label: bool [n]."""
    same = np.diff(events.timestamps_ms) == 0
    candidates = np.flatnonzero(
        np.append(same, False) | np.append(False, same)
    )  # events that share their time with another
    pair = events.user[candidates].astype(np.uint64) << np.uint64(32) | events.item[candidates]
    time, label = events.timestamps_ms[candidates], events.label[candidates]
    order = np.lexsort((candidates, label, pair, time))
    found = np.zeros(len(events), np.bool_)
    equal = [np.diff(values[order]) == 0 for values in (time, pair, label)]
    found[candidates[order][1:]] = equal[0] & equal[1] & equal[2]
    return found


def _with_negatives(events: Events, options: PrepareOptions, *, whole_sessions: bool) -> tuple[Events, int]:
    """Add negatives to positives in time order; also return the number of positives without negatives."""
    time = np.arange(len(events))
    if not whole_sessions:
        time = np.append(0, np.cumsum(np.diff(events.timestamps_ms) > 0))
    has_negative, drawn = draw_negatives(
        events.user.astype(np.int64),
        events.item.astype(np.int64),
        time,
        len(events.item_ids),
        per_positive=options.negatives,
        whole_log=False,
        rng=np.random.default_rng(options.seed),
    )
    copies = np.where(has_negative, 1 + options.negatives, 1)
    positive = np.zeros(int(copies.sum()), np.bool_)
    positive[np.cumsum(copies) - copies] = True
    source = np.repeat(np.arange(len(events)), copies)
    both = events.take(source)
    item = both.item.copy()
    item[~positive] = drawn
    fields = events.fields
    if any(column.by == "row" for column in fields.values()):
        told = rows_that_tell(events.item.astype(np.int64), time, drawn, time[source[~positive]])
        fields = fields_with_negatives(fields, source, ~positive, told)
    both = replace(both, item=item, label=positive.astype(np.uint8), fields=fields)
    return both, int((~has_negative).sum())


def _negatives_rule(count: int, whole_sessions: bool) -> str:
    known = "so far" if whole_sessions else "up to and including that moment"
    return (
        f"each positive is followed by {count} sampled negative(s): uniform over the items its user has not had {known}"
    )


def _renumbered(events: Events) -> Events:
    """The same events with ids numbered by first appearance, without unused ids."""

    def order_of(numbers: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.int64]:
        """The old number of each new one."""
        first = np.full(count, len(numbers))
        first[numbers[::-1]] = np.arange(len(numbers))[::-1]  # numpy keeps the last write: the first place
        return np.argsort(first, kind="stable")[: int((first < len(numbers)).sum())]

    def renumber(numbers: npt.NDArray[np.uint32], order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.uint32]:
        new = np.zeros(count, np.uint32)
        new[order] = np.arange(len(order), dtype=np.uint32)
        return new[numbers]

    users, items = order_of(events.user, len(events.user_ids)), order_of(events.item, len(events.item_ids))
    categories, of_numbers = events.item_categories, {"user": users, "item": items}
    return replace(
        events,
        user=renumber(events.user, users, len(events.user_ids)),
        item=renumber(events.item, items, len(events.item_ids)),
        user_ids=[events.user_ids[n] for n in users],
        item_ids=[events.item_ids[n] for n in items],
        item_categories=None if categories is None else [categories[n] for n in items],
        fields={name: c if c.by == "row" else c.take(of_numbers[c.by]) for name, c in events.fields.items()},
    )


def _rfc3339(milliseconds: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
