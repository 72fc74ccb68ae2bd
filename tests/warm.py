"""Imported by the process from which tests fork those of the service: what it has loaded, they need not load.

To learn for the first time costs a process 0.6 s, for numba's types and the functions that are in its cache, and most
workers that tests start are killed soon after. Only machine code learns here: autograd would not work in forks of a
process that has used it.
"""

import torch

from asmg.progressive import progressive_validation
from asmg.updaters import build_updater
from tests.asmg.support import SMALL, random_period

torch.set_num_threads(1)
for _ in progressive_validation(
    build_updater("asmg-gru-multi", SMALL), [random_period(number, 20, users=5, items=8) for number in range(3)]
):
    pass
