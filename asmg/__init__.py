"""Incremental updating of click-through-rate models by adaptive sequential model generation (ASMG): the algorithms.

Pure torch, numpy and numba; knows no HTTP, SQL or settings. Imports run one way: `layout`, `log_format` and `kernels`;
data, models and training; `updaters` and `datasets`; `progressive`; `yardsticks`; `experiments`.
"""
