"""Recognises which public log a folder holds, for the demo and benchmarks."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from asmg.datasets.diginetica import is_diginetica, read_diginetica
from asmg.datasets.log import InteractionLog
from asmg.datasets.movielens import is_ml_100k, read_ml_100k
from asmg.log_format import LogFormatError

FolderName = Literal["ml-100k", "diginetica"]


class FolderLog(NamedTuple):
    """The log of a folder, and its name."""

    name: FolderName
    log: InteractionLog
    """With negatives; DIGINETICA has periods."""


def recognise_folder(folder: str | Path) -> FolderName:
    """Which log a folder holds, by the names of its files.

    Raises:
        LogFormatError: neither of the two.
        OSError: it is no folder.
    """
    folder = Path(folder)
    if is_diginetica(folder):
        return "diginetica"
    if is_ml_100k(folder):
        return "ml-100k"
    names = sorted(path.name for path in folder.iterdir())
    received = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    expected = "period_NN.txt.gz (DIGINETICA) or ml-100k.inter.gz and ml-100k.item (MovieLens 100k)"
    raise LogFormatError(folder, expected, received or "an empty folder")


def open_folder(folder: str | Path, rng: np.random.Generator) -> FolderLog:
    """Read the log in a folder; `rng` draws the negatives of DIGINETICA.

    Raises:
        LogFormatError: it holds neither log, or its content is unexpected.
        OSError: it is no folder.
    """
    name = recognise_folder(folder)
    return FolderLog(name, read_diginetica(folder, rng) if name == "diginetica" else read_ml_100k(folder))
