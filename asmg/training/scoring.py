"""Scoring a log with a model, as it predicts in serving: training-only fields are neutral."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asmg import kernels
from asmg.batch import PeriodData, excerpt
from asmg.field_columns import FieldColumns
from asmg.metrics import Scores, scores
from asmg.models import BaseModel, Params, table_sizes
from asmg.training.arrays import flat_array, mlp_widths, table_arrays
from asmg.training.execution import Execution
from asmg.training.rows import take

__all__ = ["evaluate", "narrow", "predict_logits"]


def narrow(
    model: BaseModel, models: Sequence[Mapping[str, Tensor]], data: PeriodData
) -> tuple[list[Params], PeriodData]:
    """Models of equal table sizes cut down to the rows that they read to score a log, and the log in these rows."""
    if data.fields is not None:
        data = replace(data, fields=data.fields.when_predicting())
    (small,), rows = excerpt([model.reads(data)], model.tables, sizes=table_sizes(models[0]))
    return [take(params, rows) for params in models], small


@torch.no_grad()
def predict_logits(
    model: BaseModel,
    params: Mapping[str, Tensor],
    data: PeriodData,
    *,
    batch_size: int = 8192,
    execution: Execution | None = None,
) -> Tensor:
    """Logits float32 [N] of a whole log, in its order, computed on the CPU. Ids without a row read the cold row.

    Args:
        model, params: the model, on any device.
        data: the log.
        batch_size: interactions of a batch, if not computed by machine code.
        execution: says whether machine code may be used; by default it is. Its ranks share the log; all of them get
            the same logits to the last bit, so that what they decide by these is the same.
    """
    execution = execution or Execution(device="cpu")
    (small,), data = narrow(model, [params], data)
    small = {name: p.cpu() for name, p in small.items()}
    if execution.ranks.size == 1:
        return _logits(model, small, data, batch_size, execution)
    logits, (start, stop) = torch.zeros(len(data)), execution.ranks.share(0, len(data))
    if start < stop:
        logits[start:stop] = _logits(model, small, data.slice(start, stop), batch_size, execution)
    execution.ranks.add_up(logits)
    return logits


def _logits(model: BaseModel, small: Params, data: PeriodData, batch_size: int, execution: Execution) -> Tensor:
    """See `predict_logits`; of a model and a log that `narrow` has made, in this process alone."""
    features = data.features
    if execution.scores_by_kernel(model):
        logits = torch.empty(len(data))
        vectors = model.item_vectors(small, features).contiguous()
        dense = flat_array(small, list(model.dense_shapes))
        fields = data.fields or FieldColumns.none(len(data))
        kernels.predict(
            data.user.numpy(), data.item.numpy(), data.history.numpy(), data.offsets.numpy(),
            fields.rows.contiguous().numpy(), fields.weights.contiguous().numpy(), fields.sums.numpy(),
            data.inputs.numpy(), small["user"].numpy(), vectors.numpy(), table_arrays(small, model)[3],
            mlp_widths(model)[0], dense, logits.numpy(),
        )  # fmt: skip
        return logits
    batches = [data.batch(index) for index in torch.arange(len(data)).split(batch_size)]
    return torch.cat([model.logits(small, batch, features) for batch in batches])


def evaluate(
    model: BaseModel, params: Mapping[str, Tensor], data: PeriodData, execution: Execution | None = None
) -> Scores:
    """Metrics of a model on a log, see `predict_logits`."""
    return scores(predict_logits(model, params, data, execution=execution), data.label)
