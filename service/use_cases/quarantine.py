"""Periods whose update does not succeed: when one is given up, and what an operator may do about it then.

A period in quarantine holds nobody up: the next one goes on from the state that was there before. Its log is kept.
Trouble of Postgres or of the machine is no fault of a period, and counts for nothing.
"""

from collections.abc import Sequence

from service.errors import ArtifactError, PeriodNotFound, PeriodStateConflict
from service.limits import MAX_REASON_LENGTH
from service.storage.postgres.database import Database, Lock, UnitOfWork
from service.storage.postgres.repositories import WAITING, Period, PeriodStatus
from service.use_cases.status import MAX_NUMBER

__all__ = ["MOST_CRASHES", "CrashLoop", "find_periods", "note_failure", "note_trouble", "retry_period", "skip_period"]

MOST_CRASHES = 5
"""Workers that may die in a row at the update of a period before it is given up."""

ACTOR = "worker"


class CrashLoop(Exception):
    """The workers that were at a period died, one after the other, and none got any further."""

    def __init__(self, crashes: int, stage: str | None) -> None:
        where = "its beginning" if stage is None else f"the stage {stage}"
        super().__init__(f"{crashes} workers in a row died at {where}: killed, or out of memory")


async def note_failure(database: Database, number: int, worker: str, error: Exception, *, max_attempts: int) -> bool:
    """Count a failed attempt of the worker that is at a period; after the last one the period is in quarantine.

    Nothing happens where the worker is not at it any more: others have gone on.

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
        if isinstance(error, ArtifactError):  # what its stages have made is not there any more: it begins anew
            await work.stages.clear(number)
        final = attempts >= max_attempts or isinstance(error, CrashLoop)
        status = PeriodStatus.QUARANTINED if final else PeriodStatus.SEALED
        await work.periods.set_status(number, status, error=message, attempts=attempts)
        if final:
            await work.audit.add(ACTOR, "quarantine", {"period": number, "error": message})
        await work.commit()
    return final


async def note_trouble(database: Database, number: int, worker: str, error: Exception) -> None:
    """Show what the worker that is at a period waits for; it is no attempt."""
    async with database.unit_of_work() as work:
        await work.periods.hold(number, worker, error=f"waits: {_message(error)}")
        await work.commit()


async def find_periods(database: Database, *, limit: int, status: PeriodStatus | None = None) -> Sequence[Period]:
    """At most `limit` periods, newest first; those with this status, where one is given."""
    async with database.read() as session:
        return await session.periods.list(limit, statuses=None if status is None else (status,))


async def retry_period(database: Database, number: int, *, reason: str, actor: str) -> Period:
    """Have the worker learn a period in quarantine after all, from the beginning and with all attempts.

    Where later periods have been learned meanwhile, it is learned after them, as late events are.

    Args:
        database: holds the period.
        number: of the period.
        reason: for the audit.
        actor: for the audit.

    Raises:
        PeriodNotFound: there is no such period.
        PeriodStateConflict: it is not in quarantine, or it is so old that logs of later periods were dropped, and what
            users had clicked by then cannot be told any more.
        ValueError: the reason is empty or too long.
    """
    _check(reason)
    async with database.unit_of_work() as work:
        period = await _locked(work, number, (PeriodStatus.QUARANTINED,), "retried")
        if await work.period_logs.log_folded_after(number):
            raise PeriodStateConflict(
                f"period {number} cannot be retried: it is so old that logs of later periods are dropped, and its "
                "histories cannot be told from theirs any more; it can be skipped"
            )
        await work.stages.clear(number)  # its artifacts are gone, and may be what was wrong
        changed = await work.periods.set_status(number, PeriodStatus.SEALED, attempts=0)
        await work.audit.add(actor, "retry_period", {"period": number, "error": period.error}, reason=reason)
        await work.commit()
    return changed


async def skip_period(database: Database, number: int, *, reason: str, actor: str) -> Period:
    """Have no model ever learn a closed period; a worker that is at it gives it up at the next stage.

    What users clicked in it stays in their histories; its log is dropped when it is old.

    Args:
        database: holds the period.
        number: of the period.
        reason: for the audit, and shown as the period's `error`.
        actor: for the audit.

    Raises:
        PeriodNotFound: there is no such period.
        PeriodStateConflict: it is open, or updated or skipped already.
        ValueError: the reason is empty or too long.
    """
    _check(reason)
    async with database.unit_of_work() as work:
        period = await _locked(work, number, (PeriodStatus.QUARANTINED, *WAITING), "skipped")
        changed = await work.periods.set_status(number, PeriodStatus.SKIPPED, error=reason)
        await work.audit.add(actor, "skip_period", {"period": number, "error": period.error}, reason=reason)
        await work.commit()
    return changed


async def _locked(work: UnitOfWork, number: int, expected: Sequence[PeriodStatus], what: str) -> Period:
    """A period with one of these statuses, which no worker publishes or gives up meanwhile."""
    await work.lock_exclusive(Lock.MODELS)
    period = await work.periods.get(number) if 0 < number <= MAX_NUMBER else None
    if period is None:
        raise PeriodNotFound(number)
    if period.status not in expected:
        raise PeriodStateConflict(
            f"period {number} cannot be {what}: expected it to be {' or '.join(expected)}; it is {period.status}"
        )
    return period


def _check(reason: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON_LENGTH:
        raise ValueError(f"expected a reason of 1 to {MAX_REASON_LENGTH} characters; received {len(reason)}")


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
