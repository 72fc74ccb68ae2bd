"""All SQL of the service: one small class a table, over one connection. Results are frozen dataclasses, never rows.

Repositories neither begin nor commit; the session that holds them (`service.storage.postgres.database`) does.
"""

from service.storage.postgres.events import EventBatch, Happened, Interaction
from service.storage.postgres.repositories.access import ApiKey, Audit, AuditEntry, Keys
from service.storage.postgres.repositories.alerts import Alert, AlertKind, Alerts, Severity
from service.storage.postgres.repositories.artifacts import (
    CHUNK_BYTES,
    Artifacts,
    Stored,
    Upload,
    digest_of,
    digests_in,
)
from service.storage.postgres.repositories.breakdowns import Breakdowns
from service.storage.postgres.repositories.canaries import Canaries, Canary, CanaryState, Outcome
from service.storage.postgres.repositories.deletions import Deletable, Deletion, Deletions, id_digest
from service.storage.postgres.repositories.deliveries import Deliveries, Delivery, DeliveryStatus
from service.storage.postgres.repositories.entities import Allocation, Entities, EntityKind, Extent, IdRows
from service.storage.postgres.repositories.evaluations import Evaluation, Evaluations, GateSummary
from service.storage.postgres.repositories.exports import EXPORTED, ExportPage, Exports, columns_of
from service.storage.postgres.repositories.features import NOTHING_KNOWN, Features, FeaturesOf, FeatureVersion
from service.storage.postgres.repositories.insertion import Inserted, Raced
from service.storage.postgres.repositories.interactions import Interactions
from service.storage.postgres.repositories.items import Catalogue, Items
from service.storage.postgres.repositories.label_events import Click, Impression, interaction_id
from service.storage.postgres.repositories.label_resolution import Resolved
from service.storage.postgres.repositories.labels import Labels
from service.storage.postgres.repositories.log_columns import Contexts, PeriodLog
from service.storage.postgres.repositories.models import (
    Alias,
    AliasName,
    ModelKind,
    Models,
    ModelVersion,
)
from service.storage.postgres.repositories.past import Earlier, Past, PastEvent
from service.storage.postgres.repositories.period_logs import PeriodLogs
from service.storage.postgres.repositories.periods import ENDED, WAITING, Period, Periods, PeriodStatus
from service.storage.postgres.repositories.processes import ApiProcess, ApiProcesses, ProcessState
from service.storage.postgres.repositories.removals import FOUND_AT_ONCE, LOG_ROWS, Removals
from service.storage.postgres.repositories.samples import PeriodSample, Samples, SampleScore
from service.storage.postgres.repositories.shadows import Shadow, ShadowPeriod, Shadows
from service.storage.postgres.repositories.stages import Stage, Stages
from service.storage.postgres.repositories.takeovers import Takeover, Takeovers
from service.storage.postgres.repositories.traces import PeriodTraces, Traces
from service.storage.postgres.repositories.webhooks import Webhook, Webhooks

__all__ = [
    "CHUNK_BYTES",
    "ENDED",
    "EXPORTED",
    "FOUND_AT_ONCE",
    "LOG_ROWS",
    "NOTHING_KNOWN",
    "WAITING",
    "Alert",
    "AlertKind",
    "Alerts",
    "Alias",
    "AliasName",
    "Allocation",
    "ApiKey",
    "ApiProcess",
    "ApiProcesses",
    "Artifacts",
    "Audit",
    "AuditEntry",
    "Breakdowns",
    "Canaries",
    "Canary",
    "CanaryState",
    "Catalogue",
    "Click",
    "Contexts",
    "Deletable",
    "Deletion",
    "Deletions",
    "Deliveries",
    "Delivery",
    "DeliveryStatus",
    "Earlier",
    "Entities",
    "EntityKind",
    "Evaluation",
    "Evaluations",
    "EventBatch",
    "ExportPage",
    "Exports",
    "Extent",
    "FeatureVersion",
    "Features",
    "FeaturesOf",
    "GateSummary",
    "Happened",
    "IdRows",
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
    "Outcome",
    "Past",
    "PastEvent",
    "Period",
    "PeriodLog",
    "PeriodLogs",
    "PeriodSample",
    "PeriodStatus",
    "PeriodTraces",
    "Periods",
    "ProcessState",
    "Raced",
    "Removals",
    "Resolved",
    "SampleScore",
    "Samples",
    "Severity",
    "Shadow",
    "ShadowPeriod",
    "Shadows",
    "Stage",
    "Stages",
    "Stored",
    "Takeover",
    "Takeovers",
    "Traces",
    "Upload",
    "Webhook",
    "Webhooks",
    "columns_of",
    "digest_of",
    "digests_in",
    "id_digest",
    "interaction_id",
]
