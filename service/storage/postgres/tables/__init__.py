"""The schema, as SQLAlchemy Core tables by subject.

The repositories build their statements from them. Only the migrations change a schema; `alembic check` and
`asmg verify` compare a database with `metadata`.
"""

from service.storage.postgres.tables.access import api_keys, audit, deletions
from service.storage.postgres.tables.alerts import alerts
from service.storage.postgres.tables.base import metadata
from service.storage.postgres.tables.log import (
    LOG,
    clicks,
    event_ids,
    impressions,
    interactions,
    log_counters,
    unresolved_positives,
)
from service.storage.postgres.tables.models import (
    aliases,
    artifact_chunks,
    artifacts,
    breakdowns,
    canaries,
    evaluations,
    model_versions,
    takeovers,
)
from service.storage.postgres.tables.processes import api_processes
from service.storage.postgres.tables.rows import entity_rows, seen_rows
from service.storage.postgres.tables.samples import period_samples, sample_scores
from service.storage.postgres.tables.shadows import shadow_periods, shadows
from service.storage.postgres.tables.updates import period_stages, periods
from service.storage.postgres.tables.users import item_features, items, user_features, user_histories, user_passes
from service.storage.postgres.tables.webhooks import webhook_deliveries, webhooks

__all__ = [
    "LOG",
    "alerts",
    "aliases",
    "api_keys",
    "api_processes",
    "artifact_chunks",
    "artifacts",
    "audit",
    "breakdowns",
    "canaries",
    "clicks",
    "deletions",
    "entity_rows",
    "evaluations",
    "event_ids",
    "impressions",
    "interactions",
    "item_features",
    "items",
    "log_counters",
    "metadata",
    "model_versions",
    "period_samples",
    "period_stages",
    "periods",
    "sample_scores",
    "seen_rows",
    "shadow_periods",
    "shadows",
    "takeovers",
    "unresolved_positives",
    "user_features",
    "user_histories",
    "user_passes",
    "webhook_deliveries",
    "webhooks",
]
