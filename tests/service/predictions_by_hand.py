"""The base model's predictions computed by hand: one interaction after the other, in double precision."""

import numpy as np

from asmg.batch import PeriodData


def clicks_by_hand(params: dict[str, np.ndarray], data: PeriodData, numeric: np.ndarray) -> np.ndarray:
    """The click probability of each interaction, one after the other, in double precision."""
    assert data.item_categories is not None

    def item(row: int) -> np.ndarray:
        own = params["item"][row if row < len(params["item"]) else 0]
        rows = [c if c < len(params["category"]) else 0 for c in data.item_categories[row].tolist() if c >= 0]
        return np.concatenate([own, np.mean(params["category"][rows], 0) if rows else np.zeros(own.shape)])

    fields = None if data.fields is None else data.fields.standardised()

    def sums(n: int) -> np.ndarray:
        """Of the values of context, user and item."""
        if fields is None or "field" not in params:
            return np.empty(0)
        found = np.zeros((3, params["field"].shape[1]))
        for row, weight, owner in zip(
            fields.rows[n].tolist(), fields.weights[n].tolist(), fields.sums.tolist(), strict=True
        ):
            if row >= 0:
                found[owner] += weight * params["field"][row if row < len(params["field"]) else 0]
        return found.ravel()

    guesses = []
    for n in range(len(data)):
        user = int(data.user[n])
        past = [item(int(row)) for row in data.history[data.offsets[n] : data.offsets[n + 1]]]
        pooled = np.mean(past, 0) if past else np.zeros(2 * params["item"].shape[1])
        about = params["user"][user if user < len(params["user"]) else 0]
        candidate = item(int(data.item[n]))
        doubled = np.concatenate([about, about])  # as wide as an item, which is itself and its categories
        dots = (params["dot.user"] * doubled * candidate).sum() + (params["dot.history"] * pooled * candidate).sum()
        x = np.concatenate([about, pooled, candidate, sums(n), numeric[n]])
        for layer in range(3):
            x = params[f"mlp.{layer}.weight"] @ x + params[f"mlp.{layer}.bias"]
            x = np.maximum(x, 0) if layer < 2 else x
        guesses.append(1 / (1 + np.exp(-x[0] - dots)))
    return np.array(guesses)
