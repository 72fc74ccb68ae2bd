"""SML on small models, and its transfer written out."""

import math
from dataclasses import replace

import pytest
import torch

from asmg.models import EmbeddingMLPConfig, Params
from asmg.updaters.sml import SmlState
from tests.asmg.support import CONFIGS, torch_rng

configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

outputs = pytest.mark.parametrize("output", ["direct", "residual"])

PAPER = EmbeddingMLPConfig()


def noisy(state: SmlState, size: float = 0.1) -> SmlState:
    """With transfer weights that are not near those of a fresh one, the last layers' too."""
    rng = torch_rng(3)
    return replace(state, weights={n: w + size * torch.randn(w.shape, generator=rng) for n, w in state.weights.items()})


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def slow_transfer(weights: Params, name: str, p: list[float], u: list[float], *, residual: bool) -> list[float]:
    """One row, one number at a time (methods.md, section 8)."""
    k1, k2, w1, b1, w2, b2 = (
        weights[f"{name}.{part}"].double().tolist()
        for part in ("filters.0", "filters.1", "hidden.weight", "hidden.bias", "output.weight", "output.bias")
    )
    norm = math.sqrt(sum(x * x for x in p))
    channels = [p, u, [a * b / (norm + 1e-15) for a, b in zip(p, u, strict=True)]]
    flat = []
    for g in range(len(k2[0])):  # filter-major: all places of the first filter, then all of the second
        for d in range(len(p)):
            mixed = [gelu(sum(channels[c][d] * k1[c][f] for c in range(3))) for f in range(len(k1[0]))]
            flat.append(gelu(sum(mixed[f] * k2[f][g] for f in range(len(mixed)))))
    hidden = [gelu(sum(x * w for x, w in zip(flat, row, strict=True)) + b) for row, b in zip(w1, b1, strict=True)]
    y = [sum(h * w for h, w in zip(hidden, row, strict=True)) + b for row, b in zip(w2, b2, strict=True)]
    return [a + b for a, b in zip(u, y, strict=True)] if residual else y
