"""How much memory a piece of work takes at its peak, in a process that does nothing else."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from benchmarks.machine import MB


def peak_of(work: Callable[[], Any], state: Any) -> dict[str, Any]:
    """By how much the resident memory of this process grows while `work` makes a new state, in MB (10⁶ bytes).

    "peak_mb" is the growth without the new state's own tables ("new_tables_mb"), which are the result of the update.

    Args:
        work: makes the new state.
        state: the old state, which is kept meanwhile, as the service keeps it.
    """
    process = psutil.Process()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory freed before would hide what is taken now
    resets = reset_peak()
    before = process.memory_info().rss
    after = work()
    peak = _peak(resets)
    known = {t.untyped_storage().data_ptr() for t in _tensors(state)}
    new = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(after)}
    tables = sum(size for at, size in new.items() if at not in known)
    how = (
        "VmHWM of /proc/self/status, set back by /proc/self/clear_refs right before the update"
        if resets
        else "ru_maxrss of the process: an upper bound, for it may be from before the update"
    )
    return {
        "peak_mb": max(0, peak - before - tables) / MB,
        "peak_rss_mb": peak / MB,
        "rss_before_mb": before / MB,
        "new_tables_mb": tables / MB,
        "how": how,
    }


def reset_peak() -> bool:
    """Set the peak back to what is resident now; whether that is possible here."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak(resets: bool) -> int:
    if resets:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a state, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for part in fields(value):
            yield from _tensors(getattr(value, part.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
