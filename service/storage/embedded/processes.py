"""Processes of embedded servers and of the programs that use them, and how long to wait for them."""

import os
import time

import psutil

__all__ = ["START_SECONDS", "STOP_SECONDS", "Process", "is_alive", "is_running", "this_process", "wait_gone"]

START_SECONDS = 60.0
"""How long a server may take to start: recovery after a crash takes its time."""
STOP_SECONDS = 30.0
"""How long a server may take to stop."""

Process = tuple[int, float]
"""A process: its pid, and its create time, which tells it from a later process with the same pid."""


def this_process() -> Process:
    """The calling process."""
    return os.getpid(), psutil.Process().create_time()


def is_alive(process: Process) -> bool:
    """Whether that very process runs."""
    pid, created = process
    try:
        found = psutil.Process(pid)
        return is_running(found) and abs(float(found.create_time()) - created) < 1
    except psutil.Error:
        return False


def is_running(process: psutil.Process) -> bool:
    """Whether a process runs. A zombie, which a container without an init may keep for ever, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_gone(process: psutil.Process, seconds: float) -> bool:
    """Wait until a process has ended; return whether it did within that time."""
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
