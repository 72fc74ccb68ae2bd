"""The forward pass of a snapshot as an ONNX graph. It needs the package onnx (extra `onnx`).

The graph has the network: look-ups of rows, the mean of the history, layers and dot products. What a request's
statistics and fields are is computed outside, by `request_inputs`, and comes in as numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.serving.fields import NO_VALUES, FieldValues
from service.serving.forward.interface import EPSILON
from service.serving.forward.reference import TableRows, field_sums, list_sums, request_statistics
from service.serving.id_hashes import hash_ids
from service.serving.snapshot import NOTHING_RECENT, Snapshot
from service.serving.snapshot_file import vector_width

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["ExportedRows", "export_rows", "input_widths", "onnx_model", "request_inputs"]

OPSET = 17
IR_VERSION = 8
"""The format that runtimes of 2022 and later read."""

NO_CLICK = -1
"""Fills up the rows of a history that is shorter than others."""

Array = NDArray[Any]


@dataclass(frozen=True)
class ExportedRows:
    """The rows of users or items in an exported model."""

    ids: Sequence[str]
    """The n-th has the row n + 1."""
    vectors: NDArray[np.float32]
    """[N + 1, width]; row 0 is that of every unknown id. Of items with categories their sum is in it."""


def export_rows(snapshot: Snapshot, kind: str, ids: Sequence[str]) -> ExportedRows:
    """The rows of those ids that a snapshot knows, and its cold row.

    Args:
        snapshot: the model.
        kind: `users` or `items`.
        ids: any, each once.
    """
    files, config = snapshot.files, snapshot.meta["model"]
    table = TableRows(files, kind)
    rows = table.find(hash_ids(ids))
    known = np.flatnonzero(rows != table.cold)
    places = np.concatenate([[table.cold], rows[known]]).astype(np.int64)
    vectors = table.vectors(places)[:, : vector_width(config)]
    if kind == "items" and config["categories"]:
        sums = list_sums(table, "categories", files.newest.tensors, places)
        vectors = np.concatenate([vectors, sums], 1) if "hidden" in config else vectors + sums
    return ExportedRows([ids[place] for place in known.tolist()], np.ascontiguousarray(vectors, np.float32))


def input_widths(snapshot: Snapshot) -> dict[str, int]:
    """The numbers that a model reads of each candidate, beside rows: `numeric` and `fields`, where it has them."""
    config = snapshot.meta["model"]
    widths = {"numeric": int(config.get("numeric", 0)), "fields": 3 * config["dim"] if config.get("fields") else 0}
    return {name: width for name, width in widths.items() if width}


def request_inputs(
    snapshot: Snapshot,
    items: Sequence[str],
    history: Sequence[str],
    recent: NDArray[np.int32] = NOTHING_RECENT,
    values: FieldValues = NO_VALUES,
) -> dict[str, NDArray[np.float32]]:
    """The inputs `numeric` [N, S] and `fields` [N, 3·D] of a request, those of them that the model reads.

    Args:
        snapshot: the model.
        items: the N candidates.
        history: items that the user clicked, newest first, at most 30.
        recent: of the user, values: of the request; both as of `Snapshot.score`.
    """
    wanted, files = input_widths(snapshot), snapshot.files
    newest, table, ids = files.newest.tensors, TableRows(files, "items"), hash_ids([*items, *history])
    found: dict[str, NDArray[np.float32]] = {}
    if "numeric" in wanted:
        dim = vector_width(snapshot.meta["model"])
        found["numeric"] = request_statistics(snapshot.meta["statistics"], newest, table, dim, ids, len(items), recent)
    if "fields" in wanted:
        import torch

        of_items = torch.from_numpy(list_sums(table, "fields", newest, table.find(ids[: len(items)])))
        found["fields"] = field_sums(newest, values, of_items).numpy()
    return found


def onnx_model(snapshot: Snapshot, users: ExportedRows, items: ExportedRows) -> "ModelProto":
    """The graph: rows of a user, of candidates and of histories, and numbers, to click probabilities.

    Inputs are `user` int64 [N], `item` int64 [N], `history` int64 [N, H] with `NO_CLICK` behind the last click, and
    those of `input_widths`; the output is `score` float32 [N].

    Raises:
        ConfigurationError: the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ConfigurationError("an export as ONNX needs the package onnx: pip install 'asmg-service[onnx]'") from None
    config = snapshot.meta["model"]
    tensors = {"users": users.vectors, "items": items.vectors, **_constants(snapshot)}
    graph = _Graph()
    user = graph.add("Gather", "users", "user", axis=0)
    item = graph.add("Gather", "items", "item", axis=0)
    logit = _mlp_logit(graph, snapshot, user, item) if "hidden" in config else _factorization_logit(graph, user, item)
    graph.add("Clip", graph.add("Sigmoid", logit), "lowest", "highest", output="score")
    rows = {"user": ["N"], "item": ["N"]} | ({"history": ["N", "H"]} if "hidden" in config else {})
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in rows.items()]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in input_widths(snapshot).items()
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    used = {name for node in graph.nodes for name in node.input}
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items() if name in used]
    made = helper.make_graph(graph.nodes, "asmg", inputs, [output], initializers)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="asmg-service"
    )
    helper.set_model_props(model, {"model_version": str(snapshot.version), "period": str(snapshot.period)})
    return model


class _Graph:
    """Nodes, one after the other."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}" if output is None else output
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name


def _constants(snapshot: Snapshot) -> Mapping[str, Array]:
    """Parameters and constants by name; those that a model does not use are left out later."""
    config, newest = snapshot.meta["model"], snapshot.files.newest.tensors
    dense = {name: np.array(tensor) for name, tensor in newest.items() if name.partition(".")[0] in ("mlp", "dot")}
    dim = config["dim"]
    return {
        **dense,
        "lowest": np.array(EPSILON, np.float32),
        "highest": np.array(1 - EPSILON, np.float32),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.float32),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "start": np.array([0], np.int64),
        "bias": np.array([dim], np.int64),
        "end": np.array([dim + 1], np.int64),
        "repeats": np.array([1, 2 if config["categories"] else 1], np.int64),
    }


def _pooled(graph: _Graph) -> str:
    """The mean of the vectors of the history; zeros for an empty one."""
    is_click = graph.add("Cast", graph.add("GreaterOrEqual", "history", "zero"), to=1)  # 1: float32
    rows = graph.add("Gather", "items", graph.add("Max", "history", "zero"), axis=0)
    clicked = graph.add("Mul", rows, graph.add("Unsqueeze", is_click, "axis_2"))
    total = graph.add("ReduceSum", clicked, "axis_1", keepdims=0)
    count = graph.add("ReduceSum", is_click, "axis_1", keepdims=1)
    return graph.add("Div", total, graph.add("Max", count, "one"))


def _mlp_logit(graph: _Graph, snapshot: Snapshot, user: str, item: str) -> str:
    """`asmg.models.embedding_mlp`."""
    config, pooled = snapshot.meta["model"], _pooled(graph)
    numbers = [name for name in ("fields", "numeric") if name in input_widths(snapshot)]
    x, last = graph.add("Concat", user, pooled, item, *numbers, axis=1), len(config["hidden"])
    for layer in range(last + 1):
        x = graph.add("Gemm", x, f"mlp.{layer}.weight", f"mlp.{layer}.bias", transB=1)
        if layer < last:
            x = graph.add("Relu", x)
    logit = graph.add("Squeeze", x, "axis_1")
    if not config.get("dot"):
        return logit
    of_user = graph.add("Mul", graph.add("Tile", user, "repeats"), "dot.user")
    both = graph.add("Add", of_user, graph.add("Mul", pooled, "dot.history"))
    products = graph.add("ReduceSum", graph.add("Mul", both, item), "axis_1", keepdims=0)
    return graph.add("Add", logit, products)


def _factorization_logit(graph: _Graph, user: str, item: str) -> str:
    """`asmg.models.matrix_factorization`."""
    vectors = [graph.add("Slice", each, "start", "bias", "axis_1") for each in (user, item)]
    product = graph.add("ReduceSum", graph.add("Mul", *vectors), "axis_1", keepdims=0)
    biases = [graph.add("Slice", each, "bias", "end", "axis_1") for each in (user, item)]
    return graph.add("Add", product, graph.add("Squeeze", graph.add("Add", *biases), "axis_1"))
