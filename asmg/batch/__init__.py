"""A period's log as tensors, and the mini-batches that training and scoring make of it.

Everything here counts table rows, not ids: the caller maps its ids to rows ≥ 1 of the embedding tables. Row 0 of every
table is the *cold row*; models learn it to represent all unknown ids. Histories are ragged (values and offsets), so
there is no padding.
"""

from asmg.batch.epoch import Epoch, LocalBatches
from asmg.batch.excerpt import Excerpt, excerpt
from asmg.batch.histories import build_histories, build_recent
from asmg.batch.interactions import TABLES, InteractionBatch, ItemFeatures
from asmg.batch.period import PeriodData, concatenate
from asmg.layout import COLD_ROW, HISTORY_LENGTH, NO_CATEGORY, NO_VALUE, RECENT, RECENT_SHORT

__all__ = [
    "COLD_ROW",
    "HISTORY_LENGTH",
    "NO_CATEGORY",
    "NO_VALUE",
    "RECENT",
    "RECENT_SHORT",
    "TABLES",
    "Epoch",
    "Excerpt",
    "InteractionBatch",
    "ItemFeatures",
    "LocalBatches",
    "PeriodData",
    "build_histories",
    "build_recent",
    "concatenate",
    "excerpt",
]
