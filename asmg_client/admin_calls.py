"""Calls that watch over a service: alerts, webhooks, samples and replays, the canary, keys.

Those that change something are not repeated by themselves: each leaves a row in the audit. `reason` is for the audit.
"""

from collections.abc import Sequence
from datetime import datetime

from asmg_client.answers import (
    Alert,
    Alerts,
    Canary,
    Deliveries,
    Delivery,
    Key,
    Keys,
    NewKey,
    Overview,
    Replay,
    SampleMatrix,
    Webhook,
    Webhooks,
    WebhookSecret,
)
from asmg_client.call import Call, changing, in_path, reading

__all__ = [
    "acknowledge_alert",
    "add_webhook",
    "create_key",
    "get_overview",
    "get_replay",
    "get_samples",
    "limit_key",
    "list_alerts",
    "list_deliveries",
    "list_keys",
    "list_webhooks",
    "promote_canary",
    "redeliver",
    "remove_webhook",
    "revert_canary",
    "revoke_key",
    "rotate_webhook_secret",
    "switch_webhook_off",
    "switch_webhook_on",
]


def get_overview() -> Call[Overview]:
    """The model in service, the open period and the newest closed ones, the api processes, the leading worker."""
    return reading("/admin/overview", Overview)


def list_alerts(*, limit: int | None = None, before: int | None = None, is_open: bool | None = None) -> Call[Alerts]:
    """A page of what is wrong now and what was, newest first: at most `limit`, of those below `before`.

    Args:
        limit: 1 to 200.
        before: the `next` of the page before.
        is_open: only those that are wrong now, or only those that are not any more.
    """
    is_open_ = None if is_open is None else str(is_open).lower()
    return reading("/admin/alerts", Alerts, limit=limit, before=before, open=is_open_)


def acknowledge_alert(number: int, *, reason: str, close: bool = False) -> Call[Alert]:
    """Say that an alert was seen; with `close` it is closed too, and opens again when it is raised again."""
    return changing(f"/admin/alerts/{int(number)}/acknowledge", Alert, {"reason": reason, "close": close})


def list_webhooks() -> Call[Webhooks]:
    """All webhooks, oldest first, without their secrets."""
    return reading("/admin/webhooks", Webhooks)


def add_webhook(url: str, *, events: Sequence[str] | None = None) -> Call[WebhookSecret]:
    """Tell an endpoint of events from now on; the answer has the secret that signs, this once.

    Args:
        url: of the endpoint.
        events: such as `alert.opened`; None for all.
    """
    return changing("/admin/webhooks", WebhookSecret, {"url": url, "events": None if events is None else list(events)})


def rotate_webhook_secret(number: int, *, overlap_hours: float = 24.0) -> Call[WebhookSecret]:
    """Change the secret of a webhook; for so many hours messages are signed with the old one too."""
    return changing(f"/admin/webhooks/{int(number)}/rotate", WebhookSecret, {"overlap_hours": overlap_hours})


def switch_webhook_on(number: int, *, reason: str) -> Call[Webhook]:
    """Tell a webhook again of what happens from now on."""
    return changing(f"/admin/webhooks/{int(number)}/on", Webhook, {"reason": reason})


def switch_webhook_off(number: int, *, reason: str) -> Call[Webhook]:
    """Tell a webhook of nothing more; what waits for it is given up."""
    return changing(f"/admin/webhooks/{int(number)}/off", Webhook, {"reason": reason})


def remove_webhook(number: int) -> Call[None]:
    """Remove a webhook, with what it was told and what waits for it."""
    return Call("DELETE", f"/admin/webhooks/{int(number)}", type(None))


def list_deliveries(
    *, limit: int | None = None, before: int | None = None, webhook: int | None = None, status: str | None = None
) -> Call[Deliveries]:
    """A page of what webhooks are told and what became of it, newest first; of one webhook or one status where these
    are given.
    """
    return reading("/admin/webhooks/deliveries", Deliveries, limit=limit, before=before, webhook=webhook, status=status)


def redeliver(number: int) -> Call[Delivery]:
    """Send a delivery again from now on, with all attempts, under the id that it had."""
    return changing(f"/admin/webhooks/deliveries/{int(number)}/redeliver", Delivery, None)


def get_samples() -> Call[SampleMatrix]:
    """The scores of versions on the interactions that were kept of each period."""
    return reading("/admin/samples", SampleMatrix)


def get_replay(version: int, *, from_period: int | None = None, to_period: int | None = None) -> Call[Replay]:
    """What would have been, had a version stayed in service. Ask again while its status is `computing`.

    Args:
        version: to compare with what was served.
        from_period: the first; None for the one after those that the version has learned.
        to_period: the last; None for the newest.
    """
    return reading("/admin/replay", Replay, version=int(version), from_period=from_period, to_period=to_period)


def promote_canary(*, reason: str, version: int | None = None) -> Call[Canary]:
    """Let the canary answer all users before its time is over; `version` is its number, None whichever runs."""
    return changing("/admin/canary/promote", Canary, {"reason": reason, "version": version})


def revert_canary(*, reason: str, version: int | None = None) -> Call[Canary]:
    """Take the canary out of service; `version` is its number, None whichever runs."""
    return changing("/admin/canary/revert", Canary, {"reason": reason, "version": version})


def list_keys() -> Call[Keys]:
    """All API keys ever created, oldest first, without the keys themselves."""
    return reading("/admin/keys", Keys)


def create_key(
    name: str,
    *,
    scopes: Sequence[str],
    rate_limit: float | None = None,
    expires_at: datetime | None = None,
    reason: str | None = None,
) -> Call[NewKey]:
    """Create an API key; the answer has it, this once.

    Args:
        name: what it is for; the audit names it.
        scopes: of `predict`, `ingest` and `admin`.
        rate_limit: requests a second; 0 for no limit, None for that of the service.
        expires_at: it is refused from then on; None for never.
        reason: for the audit.
    """
    until = None if expires_at is None else expires_at.isoformat()
    document = {"name": name, "scopes": list(scopes), "rate_limit": rate_limit, "expires_at": until, "reason": reason}
    return changing("/admin/keys", NewKey, document)


def limit_key(key_id: str, *, rate_limit: float | None, reason: str) -> Call[Key]:
    """Change the rate limit of an API key; as of `create_key`."""
    return changing(f"/admin/keys/{in_path(key_id)}/limit", Key, {"rate_limit": rate_limit, "reason": reason})


def revoke_key(key_id: str, *, reason: str) -> Call[Key]:
    """Refuse an API key from now on, for ever."""
    return changing(f"/admin/keys/{in_path(key_id)}/revoke", Key, {"reason": reason})
