"""Periods whose update fails: when the worker gives one up, and what an operator can do about it then.

The worker puts a period into quarantine after too many failed attempts. The next period is updated without it, from the
training state before it, and its log is kept. Trouble of Postgres or of the machine does not count as an attempt.
"""

from collections.abc import Sequence

from service.errors import ArtifactError, InvalidInput, PeriodNotFound, PeriodStateConflict
from service.limits import MAX_REASON_LENGTH
from service.storage.postgres.database import Database, Lock, UnitOfWork
from service.storage.postgres.repositories import WAITING, AlertKind, Period, PeriodStatus, Severity
from service.use_cases.alerts import close_alert, raise_alert
from service.use_cases.status import MAX_NUMBER
from service.use_cases.webhooks.announce import Event, announce

__all__ = ["MOST_CRASHES", "CrashLoop", "find_periods", "note_failure", "note_trouble", "retry_period", "skip_period"]

MOST_CRASHES = 5
"""Workers that may crash in a row during the update of a period before it is put into quarantine."""

ACTOR = "worker"
"""Who puts periods into quarantine, in the audit."""


class CrashLoop(Exception):
    """Workers crashed one after the other during the update of a period, and none stored the note of a stage."""

    def __init__(self, crashes: int, stage: str | None) -> None:
        where = "its beginning" if stage is None else f"the stage {stage}"
        super().__init__(f"{crashes} workers in a row died at {where}: killed, or out of memory")


async def note_failure(database: Database, number: int, worker: str, error: Exception, *, max_attempts: int) -> bool:
    """Count a failed attempt to update on a period; after `max_attempts` put the period into quarantine.

    Nothing happens where another worker has taken the period over. A crash loop counts as no attempt but ends in
    quarantine at once.

    Args:
        database: holds the period.
        number: of the period.
        worker: name of the worker whose attempt failed.
        error: what it failed with; shown as the period's `error`.
        max_attempts: attempts after which the period is given up.

    Returns:
        whether the period is in quarantine now.
    """
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.MODELS)
        period = await work.periods.hold(number, worker)
        if period is None:
            return False
        attempts, message = period.attempts, _message(error)
        if not isinstance(error, CrashLoop):
            attempts += 1
        if isinstance(error, ArtifactError):  # results of its stages are lost or damaged: it starts from the beginning
            await work.stages.clear(number)
        final = attempts >= max_attempts or isinstance(error, CrashLoop)
        status = PeriodStatus.QUARANTINED if final else PeriodStatus.SEALED
        await work.periods.set_status(number, status, error=message, attempts=attempts)
        if final:
            detail = {"period": number, "error": message}
            await work.audit.add(ACTOR, "quarantine", detail)
            await announce(work, Event.QUARANTINED, {**detail, "attempts": attempts})
            await raise_alert(
                work,
                AlertKind.QUARANTINED,
                f"period {number} is in quarantine after {attempts} failed attempts: {message}",
                severity=Severity.CRITICAL,
                subject=str(number),
                numbers={"attempts": attempts, "crashes": period.crashes},
                period=number,
            )
        await work.commit()
    return final


async def note_trouble(database: Database, number: int, worker: str, error: Exception) -> None:
    """Show in the period's `error` what its worker waits for; this does not count as an attempt."""
    async with database.unit_of_work() as work:
        await work.periods.hold(number, worker, error=f"waits: {_message(error)}")
        await work.commit()


async def find_periods(database: Database, *, limit: int, status: PeriodStatus | None = None) -> Sequence[Period]:
    """At most `limit` periods, newest first; only those with this status, where one is given."""
    async with database.read() as session:
        return await session.periods.list(limit, statuses=None if status is None else (status,))


async def retry_period(database: Database, number: int, *, reason: str, actor: str) -> Period:
    """Have the worker update on a period in quarantine after all, from the beginning and with all attempts.

    Where later periods have been learned meanwhile, this one is learned after them, as late events are.

    Args:
        database: holds the period.
        number: of the period.
        reason: for the audit.
        actor: for the audit.

    Raises:
        PeriodNotFound: there is no such period.
        PeriodStateConflict: it is not in quarantine, or it is so old that logs of later periods were dropped: the
            histories of its time are lost then.
        InvalidInput: the reason is empty or too long.
    """
    _check(reason)
    async with database.unit_of_work() as work:
        period = await _locked(work, number, (PeriodStatus.QUARANTINED,), "retried")
        if await work.period_logs.log_folded_after(number):
            raise PeriodStateConflict(
                f"period {number} cannot be retried: it is so old that logs of later periods are dropped, and its "
                "histories cannot be told from theirs any more; it can be skipped"
            )
        await work.stages.clear(number)  # their artifacts are deleted, and may have been the fault
        changed = await work.periods.set_status(number, PeriodStatus.SEALED, attempts=0)
        await work.audit.add(actor, "retry_period", {"period": number, "error": period.error}, reason=reason)
        await _leave_quarantine(work, number, f"period {number} is tried again: {reason}", actor)
        await work.commit()
    return changed


async def skip_period(database: Database, number: int, *, reason: str, actor: str) -> Period:
    """Have no model ever learn a closed period; a worker that updates on it stops at the next stage.

    What users clicked in it stays in their histories; its log is dropped when it is old.

    Args:
        database: holds the period.
        number: of the period.
        reason: for the audit, and shown as the period's `error`.
        actor: for the audit.

    Raises:
        PeriodNotFound: there is no such period.
        PeriodStateConflict: it is open, or updated or skipped already.
        InvalidInput: the reason is empty or too long.
    """
    _check(reason)
    async with database.unit_of_work() as work:
        period = await _locked(work, number, (PeriodStatus.QUARANTINED, *WAITING), "skipped")
        changed = await work.periods.set_status(number, PeriodStatus.SKIPPED, error=reason)
        await work.audit.add(actor, "skip_period", {"period": number, "error": period.error}, reason=reason)
        await _leave_quarantine(work, number, f"period {number} is skipped: {reason}", actor)
        await work.commit()
    return changed


async def _locked(work: UnitOfWork, number: int, expected: Sequence[PeriodStatus], what: str) -> Period:
    """A period with one of these statuses, locked so that no worker publishes or gives it up meanwhile."""
    await work.lock_exclusive(Lock.MODELS)
    period = await work.periods.get(number) if 0 < number <= MAX_NUMBER else None
    if period is None:
        raise PeriodNotFound(number)
    if period.status not in expected:
        raise PeriodStateConflict(
            f"period {number} cannot be {what}: expected it to be {' or '.join(expected)}; it is {period.status}"
        )
    return period


async def _leave_quarantine(work: UnitOfWork, number: int, reason: str, actor: str) -> None:
    await close_alert(work, AlertKind.QUARANTINED, subject=str(number), reason=reason, actor=actor)


def _check(reason: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON_LENGTH:
        raise InvalidInput(f"expected a reason of 1 to {MAX_REASON_LENGTH} characters; received {len(reason)}")


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
