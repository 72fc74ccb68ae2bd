"""Webhooks as operators manage them: add, rotate the secret, switch off and on, remove; deliveries, and send again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from service.addresses import parse_address
from service.errors import NoSuchNumber, StateConflict
from service.limits import MAX_WEBHOOKS
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import AlertKind, Delivery, DeliveryStatus, Webhook
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.status import MAX_NUMBER, before_number
from service.use_cases.webhooks.announce import Event
from service.use_cases.webhooks.signing import new_secret
from service.use_cases.webhooks.targets import Forbidden, Network, parse_target, permit

__all__ = [
    "MAX_OVERLAP_HOURS",
    "OVERLAP_HOURS",
    "DeliveryPage",
    "WebhookDocument",
    "WebhookList",
    "WebhookSecret",
    "add_webhook",
    "delete_webhook",
    "delivery_counts",
    "list_deliveries",
    "list_webhooks",
    "redeliver",
    "rotate_secret",
    "switch_off",
    "switch_off_all",
    "switch_webhook",
]

OVERLAP_HOURS, MAX_OVERLAP_HOURS = 24.0, 720.0
"""For how many hours an old secret signs beside the new one by default, and at most."""

OFF = "the webhook was switched off"
"""Why a delivery is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDocument:
    """A webhook, without its secret."""

    number: int
    url: str
    events: Sequence[str] | None
    """Those that it is told of; null for all."""
    created_at: datetime
    created_by: str
    old_secret_until: datetime | None
    """Until when the secret before the last one signs too."""
    off_at: datetime | None
    """Null while it is on."""
    off_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret(WebhookDocument):
    """A webhook with its new secret, which is shown only now."""

    secret: str


@dataclass(frozen=True, slots=True)
class WebhookList:
    """All webhooks, oldest first."""

    webhooks: Sequence[WebhookDocument]
    events: Sequence[Event] = tuple(Event)
    """All events that there are."""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Deliveries, newest first."""

    deliveries: Sequence[Delivery]
    next: int | None
    """`before` of the next page; null on the last."""


async def add_webhook(
    database: Database, url: str, events: Sequence[Event] | None, *, actor: str, networks: Sequence[Network]
) -> WebhookSecret:
    """Add a webhook that is told of everything that happens from now on.

    Args:
        database: holds the webhooks.
        url: of the endpoint.
        events: those that it is told of; None for all.
        actor: for the audit.
        networks: those that webhooks may reach beside public ones. A name in the URL is not resolved before the first
            delivery.

    Raises:
        StateConflict: there are `MAX_WEBHOOKS` already.
        ValueError: the URL is none, or names an address that webhooks may not reach.
    """
    target = parse_target(url)
    if (address := parse_address(target.host)) is not None:
        try:
            permit(target, address, networks)
        except Forbidden as error:
            raise ValueError(str(error)) from None
    chosen = None if events is None else sorted(set(events))
    secret = new_secret()
    async with database.unit_of_work() as work:
        if len(await work.webhooks.list()) >= MAX_WEBHOOKS:
            raise StateConflict(f"expected at most {MAX_WEBHOOKS} webhooks; there are so many already")
        webhook = await work.webhooks.insert(url, chosen, secret, actor)
        detail = {"webhook": webhook.number, "place": target.place, "events": chosen}
        await work.audit.add(actor, "add_webhook", detail)
        await work.commit()
    return _with_secret(webhook)


async def list_webhooks(database: Database) -> WebhookList:
    """All webhooks, without their secrets."""
    async with database.read() as session:
        return WebhookList([WebhookDocument(**_fields(webhook)) for webhook in await session.webhooks.list()])


async def rotate_secret(
    database: Database, number: int, *, actor: str, overlap_hours: float = OVERLAP_HOURS
) -> WebhookSecret:
    """Sign with a new secret from now on.

    Args:
        database: holds the webhooks.
        number: of the webhook.
        actor: for the audit.
        overlap_hours: for how long the secret before signs too, 0 to `MAX_OVERLAP_HOURS`; a receiver that knows either
            accepts the messages meanwhile.

    Raises:
        NoSuchNumber: there is no such webhook.
        ValueError: `overlap_hours` is out of range.
    """
    if not 0 <= overlap_hours <= MAX_OVERLAP_HOURS:
        raise ValueError(f"expected 0 to {MAX_OVERLAP_HOURS:g} hours; received {overlap_hours:g}")
    async with database.unit_of_work() as work:
        await _existing(work, number)
        webhook = await work.webhooks.rotate(number, new_secret(), timedelta(hours=overlap_hours))
        assert webhook is not None, "it was just there"
        detail = {"webhook": number, "overlap_hours": overlap_hours}
        await work.audit.add(actor, "rotate_webhook_secret", detail)
        await work.commit()
    return _with_secret(webhook)


async def switch_webhook(database: Database, number: int, *, on: bool, reason: str, actor: str) -> WebhookDocument:
    """Switch a webhook on or off. While it is off it is told of nothing, and what waits for it is given up.

    Args:
        database: holds the webhooks.
        number: of the webhook.
        on: True to switch it on.
        reason: for the audit.
        actor: for the audit.

    Raises:
        NoSuchNumber: there is no such webhook.
    """
    async with database.unit_of_work() as work:
        await _existing(work, number)
        webhook = await work.webhooks.switch(number, None if on else reason)
        assert webhook is not None, "it was just there"
        # When it is switched on as well: an event that happened just as it was switched off may have added some.
        await work.deliveries.give_up(number, OFF if on else f"{OFF}: {reason}")
        await work.audit.add(actor, f"switch_webhook_{'on' if on else 'off'}", {"webhook": number}, reason=reason)
        closed = f"an operator has switched webhook {number} {'on' if on else 'off'}: {reason}"
        await close_alert(work, AlertKind.WEBHOOK, subject=str(number), reason=closed, actor=actor)
        await work.commit()
    return WebhookDocument(**_fields(webhook))


async def switch_off(work: UnitOfWork, webhook: Webhook, reason: str, *, actor: str) -> int:
    """Switch a webhook off within a transaction, with an alert; return how many deliveries waited for it.

    Args:
        work: the transaction.
        webhook: that is on.
        reason: for the audit and the alert.
        actor: for the audit.
    """
    await work.webhooks.switch(webhook.number, reason)
    waited = await work.deliveries.give_up(webhook.number, f"{OFF}: {reason}")
    await work.audit.add(actor, "switch_webhook_off", {"webhook": webhook.number}, reason=reason)
    place = parse_target(webhook.url).place
    message = f"webhook {webhook.number} ({place}) is switched off: {reason}; deliveries given up: {waited}"
    numbers = {"webhook": webhook.number, "given_up": waited}
    await raise_alert(work, AlertKind.WEBHOOK, message, subject=str(webhook.number), numbers=numbers, actor=actor)
    return waited


async def switch_off_all(work: UnitOfWork, reason: str, *, actor: str) -> int:
    """Switch off all webhooks that are on, as `switch_off` does; return how many those are."""
    found = [webhook for webhook in await work.webhooks.list() if webhook.off_at is None]
    for webhook in found:  # first all of them, so that none is told of the others
        await work.webhooks.switch(webhook.number, reason)
    for webhook in found:
        await switch_off(work, webhook, reason, actor=actor)
    return len(found)


async def delete_webhook(database: Database, number: int, *, actor: str) -> None:
    """Remove a webhook with everything that it was told or waits for it.

    Raises:
        NoSuchNumber: there is no such webhook.
    """
    async with database.unit_of_work() as work:
        await _existing(work, number)
        webhook = await work.webhooks.delete(number)
        assert webhook is not None, "it was just there"
        detail = {"webhook": number, "place": parse_target(webhook.url).place}
        await work.audit.add(actor, "delete_webhook", detail)
        reason = f"webhook {number} is removed"
        await close_alert(work, AlertKind.WEBHOOK, subject=str(number), reason=reason, actor=actor)
        await work.commit()


async def list_deliveries(
    database: Database,
    *,
    limit: int,
    before: int | None = None,
    webhook: int | None = None,
    status: DeliveryStatus | None = None,
) -> DeliveryPage:
    """A page of deliveries, newest first.

    Args:
        database: holds them.
        limit: most deliveries of the page.
        before: only those with a lower number; None starts at the newest.
        webhook: only those to this webhook.
        status: only those with this status.
    """
    if webhook is not None and webhook > MAX_NUMBER:
        return DeliveryPage([], None)
    async with database.read() as session:
        found = await session.deliveries.list(limit + 1, before_number(before), webhook=webhook, status=status)
    page = found[:limit]
    return DeliveryPage(page, next=page[-1].number if len(found) > limit else None)


async def redeliver(database: Database, number: int, *, actor: str) -> Delivery:
    """Have a delivery sent again from now on, with all attempts, under the id that it had.

    Raises:
        NoSuchNumber: there is no such delivery, or none any more.
        StateConflict: its webhook is switched off.
    """
    async with database.unit_of_work() as work:
        found = await work.deliveries.get(number) if 0 < number <= MAX_NUMBER else None
        if found is None:
            raise NoSuchNumber("delivery", number)
        webhook = await _existing(work, found.webhook)
        if webhook.off_at is not None:
            raise StateConflict(f"expected webhook {webhook.number} to be on; it is off: {webhook.off_reason}")
        delivery = await work.deliveries.send_again(number)
        if delivery is None:
            raise NoSuchNumber("delivery", number)
        await work.audit.add(actor, "redeliver", {"delivery": number, "webhook": webhook.number})
        await work.commit()
    return delivery


async def delivery_counts(database: Database) -> dict[str, int]:
    """Number of deliveries by status, of those that are kept."""
    async with database.read() as session:
        return dict(await session.deliveries.counts())


async def _existing(work: UnitOfWork, number: int) -> Webhook:
    webhook = await work.webhooks.get_locked(number) if 0 < number <= MAX_NUMBER else None
    if webhook is None:
        raise NoSuchNumber("webhook", number)
    return webhook


def _fields(webhook: Webhook) -> dict[str, Any]:
    """The fields of a `WebhookDocument`."""
    return {name: getattr(webhook, name) for name in WebhookDocument.__slots__}


def _with_secret(webhook: Webhook) -> WebhookSecret:
    return WebhookSecret(**_fields(webhook), secret=webhook.secret)
