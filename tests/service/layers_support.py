"""Training states and served models as whole tables, read from the artifacts of a version."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from asmg.checkpoint import Checkpoint
from asmg.layers import excerpt_state
from asmg.updaters.trust import blend
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.repositories import digests_in


async def whole_parts(artifacts: ArtifactStore, parts: Mapping[str, Any]) -> dict[str, Checkpoint]:
    """The parts of a training state with all rows of all tables.

    Args:
        artifacts: holds them.
        parts: name → a digest, or the digests of a base and its layers.
    """
    opened = {
        name: [Checkpoint.from_bytes(await artifacts.get(digest)) for digest in digests_in(value)]
        for name, value in parts.items()
    }
    return {name: part.checkpoint for name, part in excerpt_state(opened, everything=True).parts.items()}


async def served_parameters(artifacts: ArtifactStore, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that a version with this state serves, without its logit correction."""
    serving = state["serving"]
    parts = {"base": serving["part"]} | ({"generated": serving["toward"]} if serving["toward"] else {})
    found = await whole_parts(artifacts, parts)
    plain = dict(found["base"].tensors)
    return blend(plain, found["generated"].tensors, serving["fraction"]) if serving["toward"] else plain
