"""The order in which the jobs of an experiment start."""

from collections.abc import Callable, Iterable

from asmg.experiments.methods import MethodJob

__all__ = ["Schedule", "cost"]

_COSTS = {"sml": 190, "asmg-gru-full": 160, "lightgbm": 110, "sml-mf": 60}
_USUAL_COST = 20


def cost(job: MethodJob) -> int:
    """The time that a job takes relative to others: seconds on DIGINETICA on one core."""
    return _COSTS.get(job.method, _USUAL_COST)


class Schedule:
    """The jobs that are left. Those of a seed wait for its chain and start with the longest, so that no core idles at
    the end; a chain starts before any job of a later seed.

    Args:
        left: seed and job, by ascending seed.
        has_chain: says whether the chain of a seed is complete already.
    """

    def __init__(self, left: Iterable[tuple[int, MethodJob]], has_chain: Callable[[int], bool]) -> None:
        self._waiting: dict[int, list[MethodJob]] = {}
        for seed, job in left:
            self._waiting.setdefault(seed, []).append(job)
        self._ready = {
            seed for seed, jobs in self._waiting.items() if all(job.is_yardstick for job in jobs) or has_chain(seed)
        }
        self._chains = [seed for seed in self._waiting if seed not in self._ready]

    def next(self) -> tuple[int, MethodJob | None] | None:
        """The next to start: a seed and one of its jobs, or None for its chain. None when nothing can start now."""
        seed = next((seed for seed in self._waiting if seed in self._ready), None)
        if self._chains and (seed is None or self._chains[0] < seed):
            return self._chains.pop(0), None
        if seed is None:
            return None
        jobs = self._waiting[seed]
        job = max(jobs, key=cost)
        jobs.remove(job)
        if not jobs:
            del self._waiting[seed]
        return seed, job

    def chain_done(self, seed: int) -> None:
        """The chain of a seed is complete: its jobs can start."""
        self._ready.add(seed)

    def has_jobs(self, seed: int) -> bool:
        """Whether jobs of this seed have not started yet."""
        return seed in self._waiting
