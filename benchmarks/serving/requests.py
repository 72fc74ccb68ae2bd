"""What the servers are asked: users with their clicks, and ready-made HTTP requests for scores. All of it is seeded.

Row n of a table has the id `u<n>` or `i<n>`; row 0 is the cold row, which no id has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from asmg.batch import HISTORY_LENGTH
from benchmarks.http_load.load import post
from benchmarks.options import at_least


def user_id(row: int) -> str:
    """The id of a user's table row."""
    return f"u{row}"


def item_id(row: int) -> str:
    """The id of an item's table row."""
    return f"i{row}"


@dataclass(frozen=True, kw_only=True)
class ServingSizes:
    """Rows of the model's tables, without their cold rows."""

    users: int = 2_000
    items: int = 20_000

    def __post_init__(self) -> None:
        at_least(1, users=self.users)
        if self.items < HISTORY_LENGTH:
            raise ValueError(f"catalogue: expected at least the {HISTORY_LENGTH} of a history; received {self.items}")


@dataclass(frozen=True)
class RequestPool:
    """Requests for the scores of `n` distinct items each."""

    users: NDArray[np.int64]
    """Row of the user of each request, [R]."""
    histories: NDArray[np.int64]
    """Rows of the items that this user has clicked, [R, 30]."""
    items: NDArray[np.int64]
    """Rows of the candidates, [R, n]."""

    @property
    def n(self) -> int:
        """Candidates of a request."""
        return int(self.items.shape[1])

    def first(self, count: int) -> "RequestPool":
        """The first `count` requests."""
        return RequestPool(self.users[:count], self.histories[:count], self.items[:count])

    def encode(
        self,
        key: str,
        *,
        before: bytes = b"",
        after: bytes = b"",
        contexts: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[bytes]:
        """Each request as the bytes of an HTTP/1.1 request that keeps its connection.

        Args:
            key: the API key.
            before, after: bytes that a server wants around the JSON document.
            contexts: the context of each request; None for requests without one.
        """
        requests = []
        for n, (user, items) in enumerate(zip(self.users.tolist(), self.items.tolist(), strict=True)):
            document: dict[str, Any] = {"user_id": user_id(user), "items": [item_id(item) for item in items]}
            if contexts is not None:
                document["context"] = contexts[n]
            requests.append(post("/predict", before + orjson.dumps(document) + after, key))
        return requests


@dataclass(frozen=True)
class ServingWorkload:
    """The users who ask, and what they have clicked."""

    sizes: ServingSizes
    users: NDArray[np.int64]
    """Rows of these users, [A], ascending."""
    histories: NDArray[np.int64]
    """Rows of the 30 distinct items that each has clicked, [A, 30]."""
    seed: int

    def requests(self, n: int, count: int) -> RequestPool:
        """`count` requests of random users for `n` distinct random items each; the same for the same arguments."""
        rng = np.random.default_rng([self.seed, 2, n])
        who = rng.integers(len(self.users), size=count)
        items = np.stack([_distinct(rng, self.sizes.items, n) for _ in range(count)])
        return RequestPool(self.users[who], self.histories[who], items)

    def one_each(self) -> RequestPool:
        """A request of each user for one item."""
        return RequestPool(self.users, self.histories, self.histories[:, :1])


def make_workload(sizes: ServingSizes, seed: int, *, active: int | None = None) -> ServingWorkload:
    """Users with their clicks: `active` of the model's users, or all of them."""
    rng = np.random.default_rng([seed, 1])
    users = np.arange(1, sizes.users + 1)
    if active is not None and active < sizes.users:
        users = np.sort(_distinct(rng, sizes.users, active))
    histories = np.stack([_distinct(rng, sizes.items, HISTORY_LENGTH) for _ in range(len(users))])
    return ServingWorkload(sizes, users, histories, seed)


def _distinct(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    return 1 + rng.choice(rows, count, replace=False)
