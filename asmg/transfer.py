"""SML's transfer T (Zhang et al., SIGIR 2020; methods.md, sections 8 and 9): from two consecutive models to the one
used.

T maps every tensor of the base model separately. For a row p ∈ ℝᴰ of the previous model and the row u that is being
trained it reads three channels,

    x = [p, u, p∘u / (‖p‖₂ + 1e-15)]  [3, D],

mixes them at each of the D places, first 3 → F₁ and then F₁ → F₂ filters (gelu, no biases; convolutions of height 3 and
F₁ in the authors' release), and passes the result, filter by filter, through a small MLP:

    y = W₂ gelu(W₁ vec(gelu(K₂ᵀ gelu(K₁ᵀ x))) + b₁) + b₂ (+ u).

All rows of a table share one net. Every other tensor has a net of its own and is its only row; ‖p‖ is the norm of the
whole tensor. With `output="residual"` u is added and W₂, b₂ start at zero: an untrained T is the identity and learns a
correction. `output="direct"` is the authors'.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from asmg.models import BaseModel, Params, check_tensors, uniform

__all__ = ["CHUNK_ROWS", "Output", "Transfer", "TransferShape"]

Output = Literal["residual", "direct"]
"""Whether the trained row is added to the output of a net."""

CHUNK_ROWS = 512
"""Rows of a table that are transferred together. Fewer are filled up with zeros: on some processors torch rounds a
product by how many rows it has, and what becomes of a row does not depend on how many others there are."""

TINY = 1e-15
"""Added to the norm of the previous row, which may be zero."""


@dataclass(frozen=True, kw_only=True)
class TransferShape:
    """Widths of one transfer net."""

    width: int
    """D, the length of a row."""
    filters: tuple[int, int]
    """F₁ and F₂, the numbers of filters."""
    hidden: int
    """Width of the layer between vec(…) [F₂·D] and the output [D]."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of each weight: K₁, K₂, W₁, b₁, W₂, b₂."""
        first, second = self.filters
        return {
            "filters.0": (3, first),
            "filters.1": (first, second),
            "hidden.weight": (self.hidden, second * self.width),
            "hidden.bias": (self.hidden,),
            "output.weight": (self.width, self.hidden),
            "output.bias": (self.width,),
        }


class Transfer:
    """T: one net for each tensor of a base model. Weights are named by tensor and part, such as "user.filters.0"."""

    def __init__(self, model: BaseModel, output: Output = "residual") -> None:
        self.model, self.output = model, output
        self.nets: dict[str, TransferShape] = {
            name: TransferShape(width=width, filters=(10, 5), hidden=20) for name, width in model.table_widths.items()
        }
        """Tensor name → the shape of its net."""
        kernels = 0
        for name, shape in model.dense_shapes.items():
            kernels += len(shape) > 1
            size = math.prod(shape)
            hidden = dense_hidden(kernels - 1, size, kernel=len(shape) > 1)
            self.nets[name] = TransferShape(width=size, filters=(5, 3), hidden=hidden)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight."""
        return {f"{name}.{part}": shape for name, net in self.nets.items() for part, shape in net.tensors().items()}

    def initial(self, rng: torch.Generator) -> Params:
        """Fresh weights: Glorot-uniform as TensorFlow computes it, biases too; zero for the last layers of a residual
        T.

        A filter kernel [a, b] is a convolution kernel [a, 1, 1, b] in TensorFlow, with fans a and a·b; a bias of n
        numbers has fans n and n.
        """
        weights: Params = {}
        for name, shape in self.shapes().items():
            if self.output == "residual" and ".output." in name:
                weights[name] = torch.zeros(shape)
            elif ".filters." in name:
                weights[name] = uniform(shape, shape[0] + shape[0] * shape[1], rng)
            else:
                weights[name] = uniform(shape, sum(shape) if len(shape) > 1 else 2 * shape[0], rng)
        return weights

    def run(self, weights: Mapping[str, Tensor], name: str, previous: Tensor, trained: Tensor) -> Tensor:
        """T(previous, trained) of rows [R, D] of one tensor."""
        first, second, w1, b1, w2, b2 = (weights[f"{name}.{part}"] for part in self.nets[name].tensors())
        product = previous * trained / (previous.norm(dim=1, keepdim=True) + TINY)
        x = torch.stack([previous, trained, product], 2)  # [R, D, 3]
        x = functional.gelu(functional.gelu(x @ first) @ second)  # [R, D, F₂]
        x = functional.gelu(functional.linear(x.transpose(1, 2).flatten(1), w1, b1))
        y = functional.linear(x, w2, b2)
        return trained + y if self.output == "residual" else y

    def apply(
        self, weights: Mapping[str, Tensor], previous: Mapping[str, Tensor], trained: Mapping[str, Tensor]
    ) -> Params:
        """T of a whole model; differentiable.

        Args:
            weights: T's weights.
            previous, trained: the two models; tables may be cut down to the same rows [R, D].
        """
        used: Params = {}
        for name, p in previous.items():
            if name in self.model.table_widths:
                used[name] = self.run(weights, name, p, trained[name])
            else:
                used[name] = self.run(weights, name, p.reshape(1, -1), trained[name].reshape(1, -1)).view(p.shape)
        return used

    @torch.no_grad()
    def generate(
        self,
        chain: Sequence[Mapping[str, Tensor]],
        previous: Mapping[str, Tensor],
        trained: Mapping[str, Tensor],
        *,
        device: torch.device | None = None,
        chunk: int = CHUNK_ROWS,
    ) -> Params:
        """T_n(p, … T₁(p, u)) with the same previous model p each time, without gradients, in new tensors.

        Args:
            chain: the weights of T₁ … T_n; empty for a copy of `trained`.
            previous, trained: p and u, of equal sizes and on one device, where the result is too.
            device: where to compute; by default the same device.
            chunk: rows that are transferred together.
        """
        if not chain:
            return {name: t.clone() for name, t in trained.items()}
        home = next(iter(trained.values())).device
        device = device or home
        chain = [{name: w.to(device) for name, w in weights.items()} for weights in chain]
        result: Params = {}
        for name, u in trained.items():
            rows = u if name in self.model.table_widths else u.reshape(1, -1)
            before = previous[name].reshape(rows.shape)
            made = torch.empty_like(rows)
            for start in range(0, len(rows), chunk):
                p, y = (t[start : start + chunk].to(device) for t in (before, rows))
                count = len(y)
                if count < chunk and name in self.model.table_widths:
                    p, y = (functional.pad(t, (0, 0, 0, chunk - count)) for t in (p, y))
                for weights in chain:
                    y = self.run(weights, name, p, y)
                made[start : start + chunk] = y[:count].to(home)
            result[name] = made.view(u.shape)
        return result

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Check weights that come from outside.

        Raises:
            ValueError: other names or shapes than this transfer's, or a number that is not finite.
        """
        check_tensors("transfer", weights, self.shapes())


def dense_hidden(layer: int, size: int, *, kernel: bool) -> int:
    """Width of the hidden layer in the net of a dense tensor.

    40, 20, 10, 10, … for the kernels of layers 0, 1, 2, 3, … and 20, 10, 10, … for their biases; 1 for a tensor of one
    number. This continues the authors' 40 and 20, 20 and 10, 10 and 1 for the MLP 24 → 12 → 6 → 1 (methods.md, section
    8).
    """
    return 1 if size == 1 else max(10, (40 if kernel else 20) >> layer)
