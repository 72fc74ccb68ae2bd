"""The reference of `asmg bench update`: the paper's update in plain torch, with whole tables in every batch.

It is written from the description of the method and shares nothing with `asmg/`: all ids have a row from the start,
histories are padded, the generator produces every row of every table for every batch, and Adam moves every row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Tensors = dict[str, Tensor]

LINEAR_WEIGHTS = (1 / 6, 2 / 6, 3 / 6)


class Batch(NamedTuple):
    """Interactions with padded histories."""

    user: Tensor
    """int64 [B]"""
    item: Tensor
    """int64 [B]"""
    history: Tensor
    """int64 [B, 30], filled up with 0"""
    length: Tensor
    """int64 [B]"""
    label: Tensor
    """float32 [B]"""


class DenseAdam:
    """Adam on whole tensors, the ε outside of the bias correction as in TensorFlow."""

    def __init__(self, params: Tensors, lr: float) -> None:
        self.lr, self.t = lr, 0
        self.m = {n: torch.zeros_like(p) for n, p in params.items()}
        self.v = {n: torch.zeros_like(p) for n, p in params.items()}

    @torch.no_grad()
    def step(self, params: Tensors, grads: Tensors) -> None:
        """One update of every element, in place."""
        self.t += 1
        rate = self.lr * (1 - 0.999**self.t) ** 0.5 / (1 - 0.9**self.t)
        for name, grad in grads.items():
            self.m[name].mul_(0.9).add_(grad, alpha=0.1)
            self.v[name].mul_(0.999).addcmul_(grad, grad, value=0.001)
            params[name].addcdiv_(self.m[name], self.v[name].sqrt().add_(1e-8), value=-rate)


def base_loss(params: Tensors, batch: Batch) -> Tensor:
    """Mean cross-entropy of user | mean of history | item → 12 → 6 → 1."""
    present = torch.arange(batch.history.shape[1]) < batch.length[:, None]
    pooled = (params["item"][batch.history] * present[..., None]).sum(1) / (batch.length[:, None] + 1e-8)
    x = torch.cat([params["user"][batch.user], pooled, params["item"][batch.item]], 1)
    for i in range(3):
        x = x @ params[f"kernel{i}"] + params[f"bias{i}"]
        x = x.relu() if i < 2 else x
    return functional.binary_cross_entropy_with_logits(x.squeeze(1), batch.label)


def base_step(params: Tensors, optimizer: DenseAdam, batch: Batch) -> float:
    """One batch of the incremental update."""
    leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
    loss = base_loss(leaves, batch)
    loss.backward()
    optimizer.step(params, {n: p.grad for n, p in leaves.items() if p.grad is not None})
    return loss.item()


def generated(weights: Tensors, models: Sequence[Tensors], hidden: Tensors) -> list[Tensors]:
    """Every parameter of the generated models, one for each model of the sequence."""
    outputs: list[Tensors] = [{} for _ in models]
    for name, p in models[0].items():
        w = {part: weights[f"{name}.{part}"] for part in ("uz", "wz", "ur", "wr", "ug", "wg", "wy", "by")}
        h = hidden[name]
        for model, output in zip(models, outputs, strict=True):
            x = (model[name].t() if name in ("user", "item") else model[name].reshape(-1, 1))[..., None]  # [P, rows, 1]
            z = torch.sigmoid(x @ w["uz"] + h @ w["wz"])
            r = torch.sigmoid(x @ w["ur"] + h @ w["wr"])
            g = torch.tanh(x @ w["ug"] + (h * r) @ w["wg"])
            h = (1 - z) * h + z * g
            y = (h @ w["wy"] + w["by"])[..., 0]
            output[name] = y.t() if name in ("user", "item") else y.reshape(p.shape)
    return outputs


def generator_step(
    weights: Tensors, optimizer: DenseAdam, models: Sequence[Tensors], hidden: Tensors, batches: Sequence[Batch]
) -> float:
    """One batch of each of the periods after the models, learned concurrently."""
    leaves = {n: w.detach().requires_grad_() for n, w in weights.items()}
    outputs = generated(leaves, models, hidden)
    loss = torch.stack(
        [w * base_loss(o, b) for w, o, b in zip(LINEAR_WEIGHTS, outputs, batches, strict=True)]
    ).sum()  # fmt: skip
    loss.backward()
    optimizer.step(weights, {n: w.grad for n, w in leaves.items() if w.grad is not None})
    return loss.item()
