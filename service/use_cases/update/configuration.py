"""The update method that the settings name, and whether it can continue the stored training state.

The worker calls these at its start and before each update.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asmg.checkpoint import Checkpoint, CheckpointError
from asmg.models import EmbeddingMLPConfig
from asmg.ranks import ALONE, Ranks, device_of_rank
from asmg.statistics import NAMES, StatisticsConfig
from asmg.training import Execution
from asmg.updaters import UPDATERS, build_updater
from asmg.updaters.base import Updater
from service.errors import ConfigurationError
from service.settings import Settings
from service.storage.artifacts.store import ArtifactStore
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import AliasName, ModelVersion

__all__ = ["cannot_go_on", "check_configuration", "configured_shadows", "configured_updater"]

SHAPE = {
    "dim": "ASMG_EMBEDDING_DIM",
    "hidden": "ASMG_HIDDEN_LAYERS",
    "dot": "ASMG_DOT_PRODUCT",
    "numeric": "ASMG_STATISTICS",
}
"""Field of the base model's configuration → the setting that it comes from."""


def configured_updater(settings: Settings, ranks: Ranks = ALONE) -> Updater[Any]:
    """The update method with the base model that the settings describe.

    Args:
        settings: of the installation.
        ranks: the processes that train together, each on its own device.

    Raises:
        ConfigurationError: there is no such method or device.
    """
    device = settings.device if ranks.size == 1 else device_of_rank(settings.device)
    try:
        return _built(settings, settings.updater, Execution(device=device, ranks=ranks))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def configured_shadows(settings: Settings, served: Updater[Any]) -> dict[str, Updater[Any]]:
    """Name → update method, of those that run beside the served one. Each trains in this process alone.

    Args:
        settings: of the installation.
        served: the served method, on whose device they train.

    Raises:
        ConfigurationError: a method is unknown, or is named twice, or is the served one, or has another base model.
    """
    execution, shadows = replace(served.base.execution, ranks=ALONE), {}
    others = [name for name in UPDATERS if name != settings.updater]
    for name in settings.shadow:
        problem = None
        if name in UPDATERS:
            shadows[name] = _built(settings, name, execution)
            if name == settings.updater:
                problem = "which is served (ASMG_UPDATER)"
            elif shadows[name].model.config != served.model.config:
                problem = f"whose base model is not that of {settings.updater}, from which it would have to start"
            elif settings.shadow.count(name) > 1:
                problem = "more than once"
        else:
            problem = "which is unknown"
        if problem is not None:
            raise ConfigurationError(
                f"ASMG_SHADOW: expected update methods other than the served one, each once, of "
                f"{', '.join(others)}; received {name!r}, {problem}"
            )
    return shadows


def _built(settings: Settings, name: str, execution: Execution) -> Updater[Any]:
    """The method of this name, with the base model that the settings describe."""
    shape = EmbeddingMLPConfig(
        dim=settings.embedding_dim,
        hidden=settings.hidden_layers,
        dot=settings.dot_product,
        numeric=len(NAMES) if settings.statistics else 0,
        categories=True,  # costs nothing without categories, and a catalogue may come at any time
        fields=True,  # so that fields can be added and removed: their values are rows of one table
    )
    statistics = StatisticsConfig() if settings.statistics else None
    return build_updater(name, shape, execution=execution, statistics=statistics)


async def check_configuration(database: Database, artifacts: ArtifactStore, updater: Updater[Any]) -> None:
    """Make sure that the update method can continue the training state of the head, according to its header.

    Raises:
        ConfigurationError: it cannot, or a method that this release does not know made the state.
        ArtifactError: the header cannot be read.
        NotReady: Postgres does not answer.
    """
    async with database.read() as session:
        alias = await session.models.alias(AliasName.HEAD)
        head = None if alias is None else await session.models.get(alias.version)
    parts = {} if head is None else head.state.get("parts", {})
    if head is None or not parts:  # nothing was learned yet: any method can start
        return
    meta: Mapping[str, Any] = {}
    if "updater" in parts:
        meta = Checkpoint.from_bytes(await artifacts.get(parts["updater"])).meta
    try:
        updater.check_continuable(meta, parts.keys())
    except CheckpointError as error:
        raise cannot_go_on(updater, head, meta, error) from error


def cannot_go_on(
    updater: Updater[Any], head: ModelVersion, meta: Mapping[str, Any], error: Exception
) -> ConfigurationError:
    """The error that tells an operator that the method cannot continue the head's state, and what to do.

    Args:
        updater: the method.
        head: the version whose state it should continue.
        meta: header of the state.
        error: why it cannot.
    """
    other = [name for field, name in SHAPE.items() if _differs(meta, updater, field)]
    advice = f"with another {' and another '.join(other)}" if other else "with a method of the same base model"
    return ConfigurationError(
        f"ASMG_UPDATER={updater.name} cannot go on from the training state of version {head.version}, which "
        f"{meta.get('updater', 'an unknown method')} has left ({error}). No period loses an attempt. Start the worker "
        f'{advice}, or roll back with sequence "excise" to one that this method can go on from (any method can from '
        "version 0)"
    )


def _differs(meta: Mapping[str, Any], updater: Updater[Any], field: str) -> bool:
    """Whether the base model of the state has another value of this field, though it is of the same kind."""
    made, now = meta.get("model", {}), updater.model.config.to_json()
    return "hidden" in made and "hidden" in now and made.get(field) != now.get(field)
