"""Numbers that data, models and serving snapshots agree on. Imports nothing: serving does without torch."""

__all__ = ["COLD_ROW", "HISTORY_LENGTH", "NO_CATEGORY"]

COLD_ROW = 0
"""Row of every embedding table that stands for an unknown user, item or category."""

HISTORY_LENGTH = 30
"""Most recent positives of a user that a model looks at."""

NO_CATEGORY = -1
"""Filler of the item × category matrix."""
