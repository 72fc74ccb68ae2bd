"""One thread for the library's tests, and machine code of the very sources that are there."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from asmg import kernels


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on busy cores made the contract suite four times as slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def fresh_machine_code() -> None:
    """numba keeps a function's code until the function's own file changes. Code that was inlined from another file,
    such as the tanh of asmg/kernels/common.py, would be tested as it was before the change."""
    newest = max(source.stat().st_mtime for source in Path(kernels.__file__).parent.glob("*.py"))
    for index in Path(kernels.gru_forward.stats.cache_path).glob("*.nbi"):  # type: ignore[attr-defined]
        with suppress(FileNotFoundError):  # another process of the run does the same
            if index.stat().st_mtime < newest:
                index.unlink()
