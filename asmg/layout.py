"""Numbers that data, models and serving snapshots agree on. Imports nothing: serving does without torch."""

__all__ = [
    "COLD_ROW",
    "DIM",
    "FURTHEST",
    "HIDDEN",
    "HISTORY_LENGTH",
    "NO_CATEGORY",
    "NO_VALUE",
    "OWN_VALUE",
    "RECENT",
    "RECENT_SHORT",
]

COLD_ROW = 0
"""Row of every embedding table that stands for an unknown user, item, category or value of a field."""

DIM, HIDDEN = 16, (32, 16)
"""Width of every embedding and widths of the MLP's hidden layers, where nobody asks for others. The paper's, 8 and
(12, 6), are 0.002 AUC behind on DIGINETICA and equal on small logs."""

FURTHEST = 5.0
"""A standardised number is at most this far from 0."""

HISTORY_LENGTH = 30
"""Most recent positives of a user that a model looks at."""

NO_CATEGORY = -1
"""Filler of the item × category matrix."""

NO_VALUE = -1
"""Filler of the interaction × field column matrix."""

OWN_VALUE = -2
"""Of a field column that a model reads alike when it learns and when it predicts, in the place of a neutral row."""

RECENT = 30
"""Last interactions of a user, of either label, that are counted beside its history."""

RECENT_SHORT = 10
"""Those of them, the newest, among which clicks are counted a second time."""
