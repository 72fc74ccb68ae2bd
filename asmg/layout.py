"""Numbers that data, models and serving snapshots agree on. Imports nothing: serving does without torch."""

__all__ = ["COLD_ROW", "HISTORY_LENGTH", "NO_CATEGORY", "RECENT", "RECENT_SHORT"]

COLD_ROW = 0
"""Row of every embedding table that stands for an unknown user, item or category."""

HISTORY_LENGTH = 30
"""Most recent positives of a user that a model looks at."""

NO_CATEGORY = -1
"""Filler of the item × category matrix."""

RECENT = 30
"""Last interactions of a user, of either label, that are counted beside its history."""

RECENT_SHORT = 10
"""Those of them, the newest, among which clicks are counted a second time."""
