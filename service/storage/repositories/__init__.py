"""All SQL of the service: one small class a table, over one connection. Results are frozen dataclasses, never rows.

Repositories neither begin nor commit; the session that holds them (`service.storage.database`) does.
"""

from service.storage.events import Clicks, EventBatch, Interaction
from service.storage.repositories.access import ApiKey, Audit, AuditEntry, Keys
from service.storage.repositories.artifacts import CHUNK_BYTES, Artifacts, digest_of
from service.storage.repositories.catalogue import Catalogue, Entities, EntityKind, Extent, Items
from service.storage.repositories.interactions import (
    HistoryEntry,
    Inserted,
    Interactions,
    PeriodLog,
    Positives,
    Raced,
    Stored,
)
from service.storage.repositories.labels import Click, Impression, Labels, Resolved, interaction_id
from service.storage.repositories.models import (
    Alias,
    AliasName,
    Evaluation,
    Evaluations,
    GateSummary,
    ModelKind,
    Models,
    ModelVersion,
)
from service.storage.repositories.periods import ENDED, WAITING, Period, Periods, PeriodStatus, Stage, Stages

__all__ = [
    "CHUNK_BYTES",
    "ENDED",
    "WAITING",
    "Alias",
    "AliasName",
    "ApiKey",
    "Artifacts",
    "Audit",
    "AuditEntry",
    "Catalogue",
    "Click",
    "Clicks",
    "Entities",
    "EntityKind",
    "Evaluation",
    "Evaluations",
    "EventBatch",
    "Extent",
    "GateSummary",
    "HistoryEntry",
    "Impression",
    "Inserted",
    "Interaction",
    "Interactions",
    "Items",
    "Keys",
    "Labels",
    "ModelKind",
    "ModelVersion",
    "Models",
    "Period",
    "PeriodLog",
    "PeriodStatus",
    "Periods",
    "Positives",
    "Raced",
    "Resolved",
    "Stage",
    "Stages",
    "Stored",
    "digest_of",
    "interaction_id",
]
