"""Each interaction's history and recent activity, computed from a log."""

import numpy as np

from asmg.layout import HISTORY_LENGTH, RECENT, RECENT_SHORT

__all__ = ["build_histories", "build_recent"]

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def build_histories(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    timestamp: np.ndarray,
    *,
    earlier: Columns | None = None,
    ties: tuple[np.ndarray, np.ndarray] | None = None,
    length: int = HISTORY_LENGTH,
) -> tuple[np.ndarray, np.ndarray]:
    """Each interaction's history: the last `length` positives of its user with a strictly smaller timestamp.

    Args:
        user, item: int [N] rows; label: [N], 0 or 1; timestamp: int64 [N]; in any order.
        earlier: (user, item, timestamp), each [E], of positives before this log, in any order.
        ties: int [N] and int [E], an order for interactions with equal timestamps: the larger number is more recent.
            Equal numbers, or none, leave the order of the input, with this log after the earlier interactions.
        length: maximum entries of a history.

    Returns:
        values int32 [M] and offsets int64 [N + 1] of the histories, in the order of the interactions, most recent
        first.
    """
    positive = np.flatnonzero(np.asarray(label) == 1)
    values, begin, end = _sorted_past(user, timestamp, item, positive, earlier, ties)
    lengths = np.minimum(end - begin, length)
    offsets = np.zeros(len(user) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return values[np.repeat(end, lengths) - 1 - back].astype(np.int32), offsets


def build_recent(
    user: np.ndarray,
    label: np.ndarray,
    timestamp: np.ndarray,
    *,
    earlier: Columns | None = None,
    ties: tuple[np.ndarray, np.ndarray] | None = None,
    sampled: np.ndarray | None = None,
) -> np.ndarray:
    """Counts of each user's last interactions, of either label, with a strictly smaller timestamp.

    Args:
        user: int [N] rows; label: [N], 0 or 1; timestamp: int64 [N]; in any order.
        earlier: (user, label, timestamp), each [E], of interactions before this log, in any order.
        ties: see `build_histories`.
        sampled: bool [N], sampled negatives, which nobody was shown: they are not counted.

    Returns:
        int32 [N, 3], about the last `RECENT` interactions: their number, the clicks among the newest `RECENT_SHORT`,
        and the clicks among all.
    """
    counted = np.arange(len(user)) if sampled is None else np.flatnonzero(~sampled)
    clicks, begin, end = _sorted_past(user, timestamp, np.asarray(label) == 1, counted, earlier, ties)
    before = np.concatenate([[0], np.cumsum(clicks)])  # clicks before each of the sorted interactions

    def clicked(window: int) -> np.ndarray:
        return np.asarray(before[end] - before[np.maximum(begin, end - window)])

    return np.stack([np.minimum(end - begin, RECENT), clicked(RECENT_SHORT), clicked(RECENT)], axis=1).astype(np.int32)


def _sorted_past(
    user: np.ndarray,
    timestamp: np.ndarray,
    values: np.ndarray,
    counted: np.ndarray,
    earlier: Columns | None,
    ties: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the interactions at the places `counted`, and the `earlier` ones, by user and time.

    Returns:
        their `values` (of the earlier ones the middle column), by user, oldest first; and for each of the N
        interactions the places where its user's entries begin and where those with a smaller timestamp end.
    """
    past_user, past_value, past_time = user[counted], values[counted], timestamp[counted]
    tie = np.arange(len(counted)) if ties is None else ties[0][counted]
    if earlier is not None:
        past_user = np.concatenate([earlier[0], past_user])
        past_value = np.concatenate([earlier[1], past_value])
        past_time = np.concatenate([earlier[2], past_time])
        tie = np.concatenate([np.full(len(earlier[0]), -1) if ties is None else ties[1], tie])
    order = np.lexsort((tie, past_time, past_user))  # stable
    past_user, past_value, past_time = past_user[order], past_value[order], past_time[order]
    # Rank (user, time) pairs so that one searchsorted finds, for every row, where its user's earlier ones end.
    times, time_rank = np.unique(np.concatenate([past_time, timestamp]), return_inverse=True)
    width = len(times) + 1
    key = past_user.astype(np.int64) * width + time_rank[: len(past_time)]
    end = np.searchsorted(key, user.astype(np.int64) * width + time_rank[len(past_time) :], side="left")
    return past_value, np.searchsorted(past_user, user, side="left"), end
