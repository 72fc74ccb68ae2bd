"""The processes that use the embedded servers of a data folder, in `users.json`, under the lock of the folder."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.storage.embedded.processes import Process, is_alive

__all__ = ["locked_users"]


@contextmanager
def locked_users(folder: Path) -> Iterator[list[Process]]:
    """The processes that use the servers now. The block may change the list; nobody else can meanwhile.

    Args:
        folder: the data folder, which holds `servers.lock` and `users.json`.
    """
    with (folder / "servers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "users.json"
        users = [user for user in _read_users(path) if is_alive(user)]
        try:
            yield users
        finally:
            replacement = path.with_suffix(".new")
            replacement.write_text(json.dumps(users))
            replacement.replace(path)


def _read_users(path: Path) -> list[Process]:
    try:
        return [(int(pid), float(created)) for pid, created in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
