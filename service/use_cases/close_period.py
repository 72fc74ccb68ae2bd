"""Close the open period: its log is sealed for ever, and the next period begins. `POST /periods/close` calls it."""

from typing import Any

from service.errors import EmptyPeriod, IdempotencyMismatch, PeriodConflict
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import Period
from service.telemetry.tracing import current_traceparent

__all__ = ["close_period"]


async def close_period(
    database: Database,
    *,
    expected_period: int | None,
    idempotency_key: str | None,
    actor: str,
    reason: str | None = None,
) -> Period:
    """Seal the open period and open the next in one transaction; return the sealed one, which the worker updates next.

    A retry with the idempotency key of an earlier close returns the period that was sealed then.

    Args:
        database: holds the periods.
        expected_period: number that the open period must have; None for any.
        idempotency_key: identifies the request; None where it need not be repeatable.
        actor: for the audit.
        reason: for the audit.

    Raises:
        EmptyPeriod: the open period has no interaction, impression or click.
        IdempotencyMismatch: the key belongs to a close with another `expected_period`.
        PeriodConflict: `expected_period` is not the open period.
    """
    fingerprint = f"close expected_period={expected_period}"
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.LOG)
        if idempotency_key is not None:
            earlier = await work.periods.by_idempotency_key(idempotency_key)
            if earlier is not None:
                if earlier.idempotency_fingerprint != fingerprint:
                    raise IdempotencyMismatch(idempotency_key)
                return earlier
        period = await work.periods.open()
        if expected_period is not None and expected_period != period.number:
            raise PeriodConflict(expected_period, period.number)
        if not await work.interactions.any(period.number) and not await work.labels.any(period.number):
            raise EmptyPeriod(period.number)
        # Ingestion waits meanwhile, so the log is not counted here: the counters are added up. The update counts it.
        events = await work.interactions.counted(period.number)
        await work.interactions.forget_counters(period.number)
        sealed = await work.periods.seal(period.number, events, idempotency_key, fingerprint)
        await work.periods.create(period.number + 1)
        detail: dict[str, Any] = {"period": period.number, "events": events}
        if (trace := current_traceparent()) is not None:  # the trace of the update will be linked to it
            detail["traceparent"] = trace
        await work.audit.add(actor, "close_period", detail, reason=reason)
        await work.commit()
    return sealed
