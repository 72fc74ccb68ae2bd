"""Checkpoints: JSON meta data and safetensors tensors in one file, with a format version. Never pickle."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from asmg.adam import AdamState
from asmg.batch import PeriodData
from asmg.field_columns import FieldColumns
from asmg.header import FORMAT_VERSION, CheckpointError, make_header, parse_header
from asmg.models import Params
from asmg.tensor_writer import BFLOAT16, Writable, write_tensors

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointError",
    "as_array",
    "dump_adam",
    "dump_data",
    "load_adam",
    "load_data",
    "tensors_of",
]


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors with JSON meta data. `write` is deterministic: equal checkpoints have equal digests."""

    kind: str
    """Kind of content, such as "model" or "period-data"."""
    meta: Mapping[str, Any]
    """Plain JSON values, such as hyper-parameters."""
    tensors: Mapping[str, Tensor]
    """Name → tensor."""

    def same_as(self, other: "Checkpoint") -> bool:
        """Whether the other has the same tensor objects (not only equal ones) and equal meta data."""
        same = self.tensors.keys() == other.tensors.keys() and self.kind == other.kind and self.meta == other.meta
        return same and all(tensor is other.tensors[name] for name, tensor in self.tensors.items())

    def write(self, file: Writable) -> None:
        """Write a safetensors file with kind, version and meta data in its header."""
        arrays = {name: as_array(tensor) for name, tensor in self.tensors.items()}
        # Numbers of eight bytes first, so that every tensor is aligned.
        ordered = dict(sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
        write_tensors(file, make_header(self.kind, self.meta), ordered)

    def to_bytes(self) -> bytes:
        """What `write` writes."""
        file = io.BytesIO()
        self.write(file)
        return file.getvalue()

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """A checkpoint in a file, which is mapped into memory: its tensors are read when they are used.

        Nothing may change the file meanwhile.

        Raises:
            CheckpointError: the file is no checkpoint of this format version.
            OSError: it cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found, meta = parse_header(file.metadata(), None)
                return cls(found, meta, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError("checkpoint: expected a safetensors file; received an unreadable one") from error

    @classmethod
    def from_bytes(cls, data: bytes, kind: str | None = None) -> "Checkpoint":
        """The inverse of `to_bytes`.

        Args:
            data: the file's bytes.
            kind: the expected kind; None for any.

        Raises:
            CheckpointError: the bytes are no checkpoint of this kind and format version.
        """
        try:
            tensors = load_tensors(data)
            size = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint: expected one of kind {kind or 'any'!r}; received unreadable bytes"
            ) from error
        found, meta = parse_header(metadata, kind)
        return cls(found, meta, tensors)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array that shares its memory, if it is contiguous."""
    values = tensor.detach().contiguous()
    if values.dtype == torch.bfloat16:
        return np.asarray(values.view(torch.int16).numpy().view(BFLOAT16))
    return np.asarray(values.numpy())


def dump_adam(adam: AdamState, **meta: Any) -> Checkpoint:
    """An optimizer state as a checkpoint, with further meta data."""
    tensors = {
        f"{part}.{name}": tensor
        for part in ("first", "second", "moved", "restless")
        for name, tensor in getattr(adam, part).items()
    }
    return Checkpoint("adam", {"step": adam.step, **meta}, tensors)


def load_adam(checkpoint: Checkpoint) -> AdamState:
    """The inverse of `dump_adam`."""
    parts = {name: tensors_of(checkpoint, f"{name}.") for name in ("first", "second", "moved", "restless")}
    return AdamState(step=checkpoint.meta["step"], **parts)


def tensors_of(checkpoint: Checkpoint, prefix: str) -> Params:
    """The tensors whose names start with `prefix`, by their names without it."""
    return {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}


def dump_data(data: PeriodData) -> Checkpoint:
    """A period's data as a checkpoint."""
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
    meta: dict[str, Any] = {n: v for n, v in values.items() if isinstance(v, int)}
    if data.fields is not None:
        tensors |= {f"fields.{name}": t for name, t in data.fields.tensors().items()}
        meta["fields"] = data.fields.meta()
    return Checkpoint("period-data", meta, tensors)


def load_data(checkpoint: Checkpoint) -> PeriodData:
    """The inverse of `dump_data`."""
    of_fields = tensors_of(checkpoint, "fields.")
    tensors = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("fields.")}
    values: dict[str, Any] = {**checkpoint.meta, **tensors}
    if of_fields:
        values["fields"] = FieldColumns.of(of_fields, checkpoint.meta["fields"])
    return PeriodData(**values)
