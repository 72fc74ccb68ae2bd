"""The header of our safetensors files: kind, format version and JSON meta data. Needs no torch: serving imports it."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["FORMAT_VERSION", "CheckpointError", "make_header", "parse_header"]

FORMAT_VERSION = 1
"""Version of the format of checkpoints and snapshots; a reader refuses any other."""


class CheckpointError(ValueError):
    """The bytes or parts are no checkpoint of the expected kind, format version or configuration."""


def make_header(kind: str, meta: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a safetensors file; equal arguments give equal text."""
    header = {"version": FORMAT_VERSION, "kind": kind, "meta": dict(meta)}
    return {"asmg": json.dumps(header, sort_keys=True)}


def parse_header(metadata: Mapping[str, str] | None, kind: str | None) -> tuple[str, dict[str, Any]]:
    """Read the metadata of a safetensors file.

    Args:
        metadata: of the file; None if it has none.
        kind: the expected kind; None for any.

    Returns:
        the kind and the JSON meta data.

    Raises:
        CheckpointError: it is no header of a checkpoint of this kind and format version.
    """
    wanted = f"checkpoint: expected one of kind {kind or 'any'!r}"
    if not metadata or "asmg" not in metadata:
        raise CheckpointError(f"{wanted}; received another program's file")
    try:
        header = json.loads(metadata["asmg"])
        version, found, meta = header["version"], header.get("kind"), header.get("meta")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{wanted}; received a damaged header") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"checkpoint: expected format version {FORMAT_VERSION}; received {version}")
    if not isinstance(found, str) or not isinstance(meta, dict):
        raise CheckpointError(f"{wanted}; received a damaged header")
    if kind is not None and found != kind:
        raise CheckpointError(f"checkpoint: expected kind {kind!r}; received {found!r}")
    return found, meta
