"""Constants that data, models and serving snapshots share. Imports nothing: serving runs without torch."""

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
"""Row of every embedding table that represents unknown users, items, categories or field values."""

DIM, HIDDEN = 16, (32, 16)
"""Default width of the embeddings and of the MLP's hidden layers. The paper's 8 and (12, 6) have 0.002 less AUC on
DIGINETICA and the same on small logs."""

FURTHEST = 5.0
"""Limit of the absolute value of a standardised number, so that an outlier cannot dominate a prediction."""

HISTORY_LENGTH = 30
"""Maximum length of a history: the user's most recent positives that a model reads."""

NO_CATEGORY = -1
"""Padding of the matrix of item categories."""

NO_VALUE = -1
"""Padding of the matrix of field rows: no (further) value."""

OWN_VALUE = -2
"""In place of a neutral row, for a field column that a model reads in training and in predictions alike."""

RECENT = 30
"""Number of a user's last interactions, of either label, whose clicks are counted."""

RECENT_SHORT = 10
"""Number of the newest of these whose clicks are also counted separately."""
