"""Training of a generator on a window of base models and the logs that followed them.

The rows that the logs touch are copied out of the models once; each step generates only the rows of its batches. On a
CPU the steps of the GRU generator run as machine code (`asmg.kernels`), everything else as eager torch.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from asmg import kernels
from asmg.adam import Adam, AdamState
from asmg.batch import TABLES, Epoch, PeriodData, excerpt
from asmg.generator import DENSE, Generator, GRUGenerator, HiddenState, from_lanes, to_lanes
from asmg.kernels import GeneratorReads
from asmg.models import EmbeddingMLP, Params, read_rows, table_sizes
from asmg.ranks import Ranks
from asmg.training import CHUNK, DivergedError, Execution, Progress, cross_entropy, descend, finite

__all__ = ["GeneratorTraining"]

AdamSettings = tuple[float, float, float, float, float]
"""lr, dense_share, beta1, beta2 and eps."""


class GeneratorTraining:
    """Training of the generator's weights ω; the given weights and optimizer stay unchanged."""

    def __init__(
        self,
        generator: Generator,
        weights: Mapping[str, Tensor],
        adam: AdamState,
        models: Sequence[Params],
        hidden: HiddenState,
        targets: Sequence[PeriodData],
        *,
        loss_weights: Sequence[float],
        lr: float,
        execution: Execution,
        dense_share: float = 1.0,
    ) -> None:
        """Copy the rows out of the models.

        Args:
            generator, weights, adam: M, its weights ω and their optimizer.
            models: the window of base models, oldest first.
            hidden: the hidden state before the window.
            targets: for each model the log after it, on which the generator's output for that model is scored.
            loss_weights: λ_j for each target; targets with weight 0 are skipped.
            lr: Adam's step size.
            execution: where and how to compute.
            dense_share: fraction of `lr` for the weights of the group DENSE.
        """
        self.generator, self.model, self.execution, self.lr = generator, generator.model, execution, lr
        self.dense_share = dense_share
        targets = [self.model.reads(data) for data in targets]
        self.small, self.rows = excerpt(targets, self.model.tables, sizes=table_sizes(models[-1]))
        # Newest first, as an Epoch expects: older outputs need only the first rows of a step.
        self.used = [j for j in reversed(range(len(targets))) if loss_weights[j] > 0]
        self.loss_weights = [loss_weights[j] for j in self.used]
        device = self.execution.torch_device
        self.inputs, self.hidden = {}, {}
        for group in generator.groups:
            rows = self.rows.get(group)
            self.inputs[group] = torch.stack(generator.inputs(models, group, rows), 1).to(device)
            self.hidden[group] = (hidden[group] if rows is None else read_rows(hidden[group], rows)).to(device)
        self.weights = {name: w.to(device, copy=True) for name, w in weights.items()}
        shares = {name: dense_share for name in self.weights if name.startswith(f"{DENSE}.")}
        self.adam = Adam(self.weights, adam.copied_to(device), lr=self.lr, shares=shares)

    def epoch(
        self, *, batch_size: int, rng: torch.Generator, average: bool = False, progress: Progress | None = None
    ) -> None:
        """One pass. Step n scores the n-th part of every target period by the output for that period.

        Args:
            batch_size: interactions of the newest period per step; the other periods are cut into as many parts.
            rng: for the order within each period.
            average: whether ω becomes the mean of its values after each step of this pass.
            progress: called with the fraction done.

        Raises:
            DivergedError: a loss is NaN or infinite.
        """
        steps = math.ceil(len(self.small[-1]) / batch_size)
        orders = [torch.randperm(len(data), generator=rng).tensor_split(steps) for data in self.small]
        # A rank plans its own share of each batch only, and so generates only the rows of that.
        shares = [[self._share(self.small[j], batch) for batch in orders[j]] for j in self.used]
        epoch = Epoch([self.small[j] for j in self.used], [[batch for batch, _ in share] for share in shares])
        lambdas = np.array([[fraction for _, fraction in share] for share in shares]).T * np.array(self.loss_weights)
        compiled = self.execution.uses_kernels(self.model) and isinstance(self.generator, GRUGenerator)
        (self._compiled if compiled else self._eager)(epoch, lambdas, progress, average)

    def _share(self, data: PeriodData, batch: Tensor) -> tuple[Tensor, float]:
        """This rank's interactions of a batch, and the fraction of the batch's importance that they have."""
        ranks = self.execution.ranks
        own = batch[slice(*ranks.share(0, len(batch)))]
        if ranks.size == 1 or not len(own):
            return own, 1.0
        return own, float(data.importance[own].sum() / data.importance[batch].sum())

    def finish(self) -> tuple[Params, AdamState]:
        """ω and its optimizer, on the CPU.

        Raises:
            DivergedError: a weight is NaN or infinite.
        """
        try:
            self.generator.check(self.weights)
        except ValueError as error:
            raise DivergedError(str(error)) from error
        return {n: w.cpu() for n, w in self.weights.items()}, self.adam.state.copied_to(torch.device("cpu"))

    def _eager(self, epoch: Epoch, lambdas: np.ndarray, progress: Progress | None, average: bool) -> None:
        target = epoch.label.to(self.execution.torch_device)
        mean = {name: w.clone() for name, w in self.weights.items()}
        for n in range(len(epoch)):
            local = epoch.local(n, target)
            leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
            outputs = {}
            for group in self.generator.groups:
                rows = local.rows.get(group)
                inputs, hidden = self.inputs[group], self.hidden[group]
                if rows is not None:
                    inputs, hidden = inputs[rows], hidden[rows]
                outputs[group], _ = self.generator.run(leaves, group, list(inputs.unbind(1)), hidden)
            loss = target.new_zeros(())
            for j, weight, batch in zip(self.used, lambdas[n], local.batches, strict=True):
                if not len(batch.user):
                    continue
                params = {group: outputs[group][j] for group in outputs if group != DENSE}
                params |= self.generator.dense(outputs[DENSE][j]) if DENSE in outputs else {}
                logits = self.model.logits(params, batch, local.features)
                loss = loss + float(weight) * cross_entropy(logits, batch)
            descend(self.adam, loss, leaves, {}, self.execution.ranks)
            for name, w in mean.items():
                w.lerp_(self.weights[name], 1 / (n + 1))
            if progress:
                progress((n + 1) / len(epoch))
        if average:
            for name, w in mean.items():
                self.weights[name].copy_(w)

    def _compiled(self, epoch: Epoch, lambdas: np.ndarray, progress: Progress | None, average: bool) -> None:
        generator, model, adam = self.generator, self.model, self.adam
        assert isinstance(generator, GRUGenerator) and isinstance(model, EmbeddingMLP), "the only pair with kernels"
        shapes = {group: tuple(to_lanes(self.weights, group).shape) for group in generator.groups}
        ends = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())]).tolist()
        spans = {group: slice(*ends[i : i + 2]) for i, group in enumerate(shapes)}

        def flat(values: Params) -> np.ndarray:
            """All groups concatenated, each as `to_lanes` returns it."""
            return torch.cat([to_lanes(values, group).reshape(-1) for group in shapes]).numpy()

        def table(values: Mapping[str, Tensor], name: str) -> np.ndarray:
            """The rows of a table [n, …] as the kernel reads them; one row of zeros for a table that the model
            lacks.
            """
            rows = values[name] if name in self.rows else torch.zeros(1, *values["user"].shape[1:])
            return rows.reshape(len(rows), -1).contiguous().numpy()

        weights, moments = flat(self.weights), (flat(adam.first), flat(adam.second))
        mean = weights.copy() if average else np.empty(0, np.float32)
        missing = np.empty((shapes["user"][0], 0), np.float32)
        views = tuple(
            weights[spans[group]].reshape(shapes[group]) if group in shapes else missing for group in (*TABLES, DENSE)
        )
        inputs, states = (tuple(table(values, name) for name in TABLES) for values in (self.inputs, self.hidden))
        dense_input = self.inputs[DENSE][0].contiguous().numpy()
        dense_state = self.hidden[DENSE].transpose(1, 2).contiguous().numpy()
        losses, ranks = np.zeros(len(epoch)), self.execution.ranks
        # λ in the order of one batch a step: for another, numba would compile the largest kernels a second time.
        read: GeneratorReads = (
            epoch.label.numpy(), epoch.importance.numpy(), epoch.numeric.numpy(), epoch.weights.numpy(),
            epoch.sums.numpy(), np.ascontiguousarray(lambdas), np.array(self.used), inputs, states, dense_input,
            dense_state, generator.residual, views,
        )  # fmt: skip
        sizes = np.array(model.widths), model.item_width
        settings = self.lr, self.dense_share, *adam.betas, adam.eps
        trained = (weights, moments, mean)
        parallel = None if ranks.size == 1 else _ParallelSteps(epoch, ranks, read, trained, sizes)
        for start in range(0, len(epoch), CHUNK):
            stop = min(start + CHUNK, len(epoch))
            if parallel is None:
                kernels.generator_steps(epoch.plan, start, stop, *read, *trained, *sizes, adam.steps, *settings, losses)
            else:
                parallel.run(start, stop, adam.steps, settings, losses)
            for loss in losses[start:stop]:
                finite(float(loss))
            adam.steps += stop - start
            if progress:
                progress(stop / len(epoch))
        results = ((self.weights, mean if average else weights), (adam.first, moments[0]), (adam.second, moments[1]))
        for target, numbers in results:
            for group, shape in shapes.items():
                lanes = torch.from_numpy(numbers[spans[group]].reshape(shape))
                for name, w in from_lanes(lanes, group, generator.config.hidden).items():
                    target[name].copy_(w)


class _ParallelSteps:
    """Steps of the generator whose gradients are sums over ranks; each rank's plan has its share of the interactions.

    Each scalar of the MLP has weights of its own, 65 by default. So the ranks add up the gradients of the scalars, and
    each makes of these those of the weights: 17 times fewer numbers a step, at the default sizes.

    Args:
        epoch: planned, of this rank's share.
        ranks: the processes.
        read: arguments of `kernels.generator_steps` from `target` to `weights`.
        trained: those from `flat` to `mean`.
        sizes: `widths` and `width`.
    """

    def __init__(
        self,
        epoch: Epoch,
        ranks: Ranks,
        read: GeneratorReads,
        trained: tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray],
        sizes: tuple[np.ndarray, int],
    ) -> None:
        self._plan, self._ranks, self._read, self._trained, self._widths = epoch.plan, ranks, read, trained, sizes[0]
        *_, inputs, _, dense_input, dense_state, _, weights = read
        self._dense = dense_input, dense_state, weights
        self._buffers = kernels.generator_buffers(epoch.plan, 0, len(epoch), inputs, dense_input, dense_state, *sizes)
        self._gradient = np.empty_like(trained[0])
        self._top = len(trained[0]) - weights[-1].size

    def run(self, start: int, stop: int, steps: int, settings: AdamSettings, losses: np.ndarray) -> None:
        """As `kernels.generator_steps`."""
        gradient, top = self._gradient, self._top
        of_tables, of_scalars = gradient[:top], self._buffers.ddense.reshape(-1)  # views
        for s in range(start, stop):
            loss = kernels.generator_gradient(self._plan, s, *self._read, self._widths, self._buffers, gradient)
            sums = np.concatenate([np.array([loss], np.float32), of_tables, of_scalars])
            self._ranks.add_up(torch.from_numpy(sums))
            losses[s], of_tables[:], of_scalars[:] = sums[0], sums[1 : 1 + top], sums[1 + top :]
            if not math.isfinite(losses[s]):
                return
            kernels.generator_gradient_dense(*self._dense, self._buffers, gradient)
            steps += 1
            kernels.generator_move(*self._trained, gradient, top, s, steps, *settings)
