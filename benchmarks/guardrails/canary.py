"""Plays a shop whose new versions answer a share of the users first: a good version, and one made bad on purpose.

Visitors come one after the other. Each is shown the best of some items by the version that answers, and clicks with the
stream's own probability. The bad version is what the service itself makes of a period whose labels a broken logger has
turned round: nothing better than these labels can be learned from it, so the gate lets it through.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from asmg.datasets.synthetic import DriftPeriod
from benchmarks.guardrails.streams import SETTLED, close, send, turned, wait_for
from benchmarks.services import OwnStores, own_service, own_stores

__all__ = ["CanaryOptions", "play_canary"]

CANDIDATES = 20
"""Items of which a visitor is shown the best."""

SHOWN = 5
"""Items that a visitor is shown."""

VISITORS_AT_ONCE = 40
"""Visitors of a request."""

VISIT_SHARE = 0.7
"""Share of a canary's time within which all visitors come; clicks have to be waited for after the last of them."""

GRACE_SECONDS = 60.0
"""How much longer than its time a canary may take to be decided on a busy host."""

TRIES = 4
"""Periods within which the gate has to let a version through; it holds back three strange ones in a row at most."""


@dataclass(frozen=True)
class CanaryOptions:
    """How a canary is tried."""

    share: float = 0.1
    """Of the users that a new version answers first (`ASMG_CANARY_SHARE`)."""
    minutes: float = 2.0
    """For how long (`ASMG_CANARY_MINUTES`)."""
    seed: int = 0


@dataclass
class _Shop:
    """A running service, and those who visit it."""

    client: httpx.Client
    options: CanaryOptions
    rng: np.random.Generator

    def learn(self, period: DriftPeriod) -> tuple[int, str]:
        """Log and learn a period; its version and what that serves: `generated`, `incremental` or `previous`."""
        send(self.client, period)
        version = close(self.client, period.number)
        return version, str(self._model(version)["kind"])

    def visit(self, version: int, world: DriftPeriod) -> dict[str, Any]:
        """Let visitors come while a version is the canary, until it is decided; what became of it.

        Args:
            version: the newest one.
            world: a period whose users they are and in which they click.
        """
        wait_for(lambda: (self._running() or {}).get("since") is not None, "the canary")
        seconds = self.options.minutes * 60
        began = time.monotonic()
        pairs = world.pairs
        assert pairs is not None, "it was drawn"
        visitors = self.rng.permutation(len(pairs.user_ids))
        groups = np.array_split(visitors, max(1, len(visitors) // VISITORS_AT_ONCE))
        answered: dict[bool, set[int]] = {True: set(), False: set()}
        for number, group in enumerate(groups):
            due = began + number / len(groups) * VISIT_SHARE * seconds
            time.sleep(max(0.0, due - time.monotonic()))
            if self._running() is None:
                break
            for user, by_canary in self._shown(version, world, group):
                answered[by_canary].add(user)
        wait_for(lambda: self._running() is None, "the end of the canary", seconds=seconds + GRACE_SECONDS)
        lasted = time.monotonic() - began
        canary = self._model(version)["canary"]
        users = len(answered[True] | answered[False])
        return {
            "version": version,
            "state": canary["state"],
            "by": canary["ended_by"],
            "reason": canary["reason"],
            "seconds": round(lasted, 1),
            "users": users,
            "canary_users": len(answered[True]),
            "share": len(answered[True]) / users,
            "moved": len(answered[True] & answered[False]),
            "numbers": canary["numbers"],
            "champion": self._model(version)["champion"],
            "alerted": self._alerted(version),
        }

    def _shown(self, version: int, world: DriftPeriod, group: np.ndarray) -> Iterator[tuple[int, bool]]:
        """Show a group of users some items each, and log their clicks; each user, and whether the canary answered."""
        pairs = world.pairs
        assert pairs is not None
        candidates = [self.rng.choice(len(pairs.item_ids), size=CANDIDATES, replace=False) for _ in group]
        requests = [
            {
                "user_id": pairs.user_ids[user],
                "items": [pairs.item_ids[item] for item in items],
                "log_impressions": SHOWN,
            }
            for user, items in zip(group, candidates, strict=True)
        ]
        response = self.client.post("/predict/batch", json={"requests": requests})
        response.raise_for_status()
        document = response.json()
        clicks = []
        now = datetime.now(UTC).isoformat()
        for user, items, answer in zip(group, candidates, document["predictions"], strict=True):
            yield int(user), answer.get("model_version", document["model_version"]) == version
            if answer["logged"]:
                best = items[np.argsort(-np.array(answer["scores"]), kind="stable")[:SHOWN]]
                chances = pairs.probabilities(np.full(len(best), user), best)
                clicked = best[self.rng.random(len(best)) < chances]
                clicks += [
                    {"request_id": answer["request_id"], "item_id": pairs.item_ids[item], "timestamp": now}
                    for item in clicked
                ]
        if clicks:
            self.client.post("/clicks", json={"clicks": clicks}).raise_for_status()

    def _running(self) -> dict[str, Any] | None:
        running: dict[str, Any] | None = self.client.get("/admin/models", params={"limit": 1}).json()["canary"]
        return running

    def _model(self, version: int) -> dict[str, Any]:
        model: dict[str, Any] = self.client.get(f"/admin/models/{version}").json()
        return model

    def _alerted(self, version: int) -> bool:
        alerts = self.client.get("/admin/alerts", params={"limit": 200}).json()["alerts"]
        return any((alert["kind"], alert["version"]) == ("canary", version) for alert in alerts)


def play_canary(periods: Iterator[DriftPeriod], options: CanaryOptions) -> dict[str, Any]:
    """Learn some periods, then try a good version and a bad one.

    Args:
        periods: of a stream; `SETTLED` and some more are taken.
        options: of the canary.

    Returns:
        `bad_reverted`, `good_promoted`, `users_exposed_share`: the share of the users who came before the bad version
        went back that it answered; and what became of both versions.
    """
    with (
        tempfile.TemporaryDirectory(prefix="asmg-canary-") as folder,
        own_stores(Path(folder), swap_lead_seconds=0.05, worker_poll_seconds=0.05) as stores,
    ):
        rng = np.random.default_rng(options.seed)
        with _shop(stores, options, rng) as shop:
            for period in islice(periods, SETTLED):
                shop.learn(period)
        given = {"ASMG_CANARY_SHARE": str(options.share), "ASMG_CANARY_MINUTES": str(options.minutes)}
        with_canary = replace(stores, environment=stores.environment | given)
        with _shop(with_canary, options, rng) as shop:
            good = _try(shop, periods, broken=False)
            bad = _try(shop, periods, broken=True)
    return {
        "bad_reverted": bad["state"] == "reverted" and bad["by"] == "guardrail",
        "good_promoted": good["state"] == "promoted" and good["by"] == "guardrail",
        "users_exposed_share": round(bad["share"], 4),
        "good": good,
        "bad": bad,
    }


@contextmanager
def _shop(stores: OwnStores, options: CanaryOptions, rng: np.random.Generator) -> Iterator[_Shop]:
    with (
        own_service(stores, api_workers=1, worker=True) as server,
        httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {stores.key}"}, timeout=60, trust_env=False
        ) as client,
    ):
        yield _Shop(client, options, rng)


def _try(shop: _Shop, periods: Iterator[DriftPeriod], *, broken: bool) -> dict[str, Any]:
    """Learn periods until the gate lets a version through, which is a canary then; what became of it."""
    for tried in range(TRIES):
        period = next(periods)
        version, kind = shop.learn(turned(period) if broken else period)
        if kind != "previous":
            return shop.visit(version, period) | {"kind": kind, "refused_before": tried}
    raise RuntimeError(f"expected a version that the gate lets through; received none in {TRIES} periods")
