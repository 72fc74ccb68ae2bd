"""The folder of a run: whose it is, where its files are, and how they are written."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asmg.experiments.methods import MethodJob

__all__ = ["chain_folder", "claim", "exclusive", "job_file", "write_whole"]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder against other runs. The operating system releases the lock when the process ends.

    Raises:
        ValueError: another run holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: expected a folder that no other run is at work in; one is in {folder}") from None
        yield
    finally:
        os.close(handle)


def claim(out: Path, experiment: dict[str, Any]) -> None:
    """Make the folder of the run, or check that it belongs to this experiment.

    Args:
        out: the folder.
        experiment: the log's card and the protocol, plain JSON values.

    Raises:
        ValueError: the folder holds something else, or another experiment.
    """
    file = out / "run.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(experiment))
        for part, values in wanted.items():
            for name, value in sorted(values.items(), key=lambda item: item[0] != "log_sha256"):
                if (received := known.get(part, {}).get(name)) != value and name != "asmg_version":
                    raise ValueError(
                        f"out: expected a new folder, or one with the same {part}; {file} has {name} {received!r}, "
                        f"not {value!r}"
                    )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: expected a new folder, or one of an earlier run; {out} holds something else")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(experiment, indent=1))


def chain_folder(out: Path, seed: int) -> Path:
    """The folder of the chain of one seed."""
    return out / "chains" / f"seed-{seed}"


def job_file(out: Path, seed: int, job: MethodJob) -> Path:
    """The file with the results of one job of one seed."""
    return out / "jobs" / f"seed-{seed}" / f"{str(job).replace(' ', '-').replace('=', '')}.json"


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
