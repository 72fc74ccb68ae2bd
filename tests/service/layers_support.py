"""Training states, served models and prepared periods as whole tables, read from the artifacts of a version."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from asmg.batch import PeriodData
from asmg.checkpoint import Checkpoint, load_data
from asmg.layers import Selection, data_of_log, excerpt_state
from asmg.statistics import Statistics
from asmg.updaters.trust import blend
from service.storage.artifacts.state_files import StateFiles
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.repositories import digests_in
from service.use_cases.update.context import UpdateContext


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


async def whole_statistics(artifacts: ArtifactStore, digests: Any) -> Statistics:
    """The statistics of all items.

    Args:
        artifacts: hold them.
        digests: of the base and its layers, oldest first.
    """
    return Statistics.load((await whole_parts(artifacts, {"statistics": digests}))["statistics"])


async def stored_period(context: UpdateContext, digest: str) -> PeriodData:
    """A prepared period in rows of whole tables, with the categories of all items; see `with_all_items`.

    Where no version names it, the worker's host has it until the next update has ended.
    """
    files = StateFiles(context.artifacts, context.settings.state_dir)
    return with_all_items(load_data(data_of_log(await files.open(digest, "period-data"))))


def with_all_items(data: PeriodData) -> PeriodData:
    """A log with a row of categories for every item, none for those of which it has none."""
    matrix = Selection.everything([data], data.sizes).item_categories
    return replace(data, item_categories=matrix, category_items=None)
