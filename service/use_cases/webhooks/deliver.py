"""Send what waits in the outbox: a task of the leading worker, beside its updates.

A delivery is claimed, sent and noted, each by itself, so a crash repeats it: endpoints hear everything at least once.
To one endpoint one message is sent at a time, in the order in which they are due; a message that has to be tried again
does not hold up the ones behind it, so the order may change, which `sequence` in the body tells.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import httpx

from service.errors import ServiceError
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AlertKind, Delivery, Webhook
from service.tasks import end_tasks, start_alone
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.webhooks.endpoints import switch_off
from service.use_cases.webhooks.sending import Outcome, make_client, send
from service.use_cases.webhooks.targets import parse_target

__all__ = ["keep_delivering"]

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 8
"""Deliveries that are under way at a time, each to another endpoint."""

MAX_PAUSE_SECONDS = 900.0
"""Longest pause between two attempts: how much later than needed an endpoint may hear that was away."""

JITTER = (0.75, 1.25)
"""Range of the factor by which a pause is longer or shorter, so that what failed together is not tried together."""

GONE = 410
"""Status by which an endpoint says that it wants to hear nothing more."""

TROUBLE_SECONDS = 5.0
"""Pause after Postgres did not answer."""

WORKER = "worker"
"""Who switches webhooks off, in the audit."""


async def keep_delivering(database: Database, settings: Settings) -> None:
    """Deliver what is due, until cancelled; trouble is logged and waited for."""
    client = make_client()
    under_way: dict[int, asyncio.Task[None]] = {}
    try:
        while True:
            try:
                for delivery in await _claim(database, settings, under_way):
                    under_way[delivery.webhook] = start_alone(_deliver(database, settings, client, delivery))
                pause = settings.worker_poll_seconds
            except Exception as error:
                known = isinstance(error, (ServiceError, OSError))
                logger.warning("no webhook is delivered to now: %s", error, exc_info=None if known else error)
                pause = TROUBLE_SECONDS
            if under_way:
                await asyncio.wait(under_way.values(), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(pause)
            for number in [number for number, task in under_way.items() if task.done()]:
                if (failed := under_way.pop(number).exception()) is not None:  # it is sent again when its claim is over
                    logger.warning("how a delivery to webhook %d went is not noted: %s", number, failed)
    finally:
        await end_tasks(*under_way.values())
        await client.aclose()


async def _claim(database: Database, settings: Settings, busy: Mapping[int, object]) -> list[Delivery]:
    """Deliveries that are due, to endpoints to which none is under way."""
    # Longer than the attempt may take: until then no other worker sends it too.
    lease = timedelta(seconds=settings.webhook_timeout_seconds + settings.webhook_retry_seconds)
    if len(busy) >= MOST_AT_ONCE:
        return []
    async with database.unit_of_work() as work:
        found = await work.deliveries.claim(lease=lease, most=MOST_AT_ONCE - len(busy), busy=busy.keys())
        if found:
            await work.commit()
    return list(found)


async def _deliver(database: Database, settings: Settings, client: httpx.AsyncClient, delivery: Delivery) -> None:
    """Make one attempt and note how it went."""
    async with database.read() as session:
        webhook = await session.webhooks.get(delivery.webhook)
    if webhook is None or webhook.off_at is not None:  # since it was claimed
        return
    outcome = await send(
        client,
        webhook.url,
        _secrets(webhook),
        delivery,
        networks=settings.webhooks_reach,
        seconds=settings.webhook_timeout_seconds,
    )
    await _note(database, settings, webhook, delivery, outcome)


def _secrets(webhook: Webhook) -> list[str]:
    """Those that sign now."""
    old, until = webhook.old_secret, webhook.old_secret_until
    still = [old] if old is not None and until is not None and until > datetime.now(UTC) else []
    return [webhook.secret, *still]


async def _note(database: Database, settings: Settings, webhook: Webhook, delivery: Delivery, outcome: Outcome) -> None:
    subject, place = str(webhook.number), parse_target(webhook.url).place
    async with database.unit_of_work() as work:
        if await work.webhooks.get_locked(webhook.number) is None:  # removed meanwhile
            return
        if outcome.error is None:
            assert outcome.answer is not None, "a message was accepted by an answer"
            await work.deliveries.succeed(delivery.number, outcome.answer)
            reason = f"webhook {webhook.number} ({place}) accepts messages again"
            await close_alert(work, AlertKind.WEBHOOK, subject=subject, reason=reason)
        else:
            pause = min(MAX_PAUSE_SECONDS, settings.webhook_retry_seconds * 2 ** min(delivery.attempts - 1, 30))
            given_up = await work.deliveries.fail(
                delivery.number,
                outcome.answer,
                outcome.error,
                pause=timedelta(seconds=pause * random.uniform(*JITTER)),
                give_up=settings.webhook_give_up,
            )
            logger.info("webhook %s (%s) has not accepted %s: %s", subject, place, delivery.message, outcome.error)
            if outcome.answer == GONE:
                await switch_off(work, webhook, "it answered 410 Gone", actor=WORKER)
            elif given_up:
                message = (
                    f"webhook {subject} ({place}) has not accepted {delivery.event} in {delivery.attempts} attempts "
                    f"within {settings.webhook_give_up_hours:g} hours: {outcome.error}"
                )
                numbers = {"webhook": webhook.number, "delivery": delivery.number, "attempts": delivery.attempts}
                await raise_alert(work, AlertKind.WEBHOOK, message, subject=subject, numbers=numbers)
        await work.commit()
