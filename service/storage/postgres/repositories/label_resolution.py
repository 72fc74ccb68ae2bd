"""Statements that resolve the impressions and clicks of a sealed period into interactions, in the order in which
`Labels.reserve` and `Labels.resolve` run them.

They name the partitions of the period, so that Postgres locks and plans only these.
"""

from dataclasses import dataclass

from service.storage.postgres.repositories.label_events import INTERACTION_ID

__all__ = [
    "ANALYZE",
    "DERIVE",
    "FREE",
    "HAND_OVER",
    "IN_TIME",
    "JUDGE_CLICKS",
    "MOVE_IMPRESSIONS",
    "NOT_IN_LOG",
    "POSITIVES_MISSING_FROM_HISTORIES",
    "RESERVE",
    "Resolved",
]

IN_TIME = "click.clicked_at BETWEEN shown.shown_at AND shown.shown_at + CAST(:window AS interval)"
DUE = "least(shown.shown_at, shown.received_at) + CAST(:window AS interval) <= CAST(:sealed_at AS timestamptz)"
"""Conditions on `shown` and `click`: the click came within the window of the impression; the window had passed when the
period was sealed."""

# The partitions are as old as their period. A new table has no statistics, without which a join can take very long.
ANALYZE = "ANALYZE impressions_p{period}, clicks_p{period}"

# The outcome depends only on what was stored when the period was sealed, however late the worker runs: ids of later
# periods are ignored.
JUDGE_CLICKS = f"""
    WITH judged AS MATERIALIZED (
        SELECT click.ctid AS place, CASE
            WHEN shown.request_id IS NOT NULL THEN CASE
                WHEN click.item_id <> ALL (shown.item_ids) THEN 'orphan'
                WHEN NOT {DUE} THEN 'waits'
                WHEN {IN_TIME} THEN 'counts'
                ELSE 'late'
            END
            WHEN logged.event_id IS NOT NULL THEN 'late'
            WHEN seen.event_id IS NOT NULL THEN 'orphan'
            WHEN least(click.clicked_at, click.received_at) + CAST(:window AS interval)
                > CAST(:sealed_at AS timestamptz) THEN 'waits'
            ELSE 'orphan'
        END AS verdict
        FROM clicks_p{{period}} AS click
        LEFT JOIN impressions_p{{period}} AS shown USING (request_id)
        LEFT JOIN event_ids AS seen ON shown.request_id IS NULL
            AND seen.kind = 1 AND seen.event_id = click.request_id AND seen.period <= {{period}}
        LEFT JOIN event_ids AS logged ON seen.event_id IS NOT NULL
            AND logged.kind = 0 AND logged.event_id = click.interaction_id AND logged.period <= {{period}}
    ), moved AS (
        UPDATE clicks AS click SET period = {{next}} FROM judged
        WHERE click.period = {{period}} AND click.ctid = judged.place AND judged.verdict = 'waits'
        RETURNING click.event_id, click.interaction_id
    ), named AS (
        UPDATE event_ids SET period = {{next}} FROM moved WHERE kind = 2 AND event_ids.event_id = moved.event_id
    ), noted AS (
        UPDATE unresolved_positives AS noted SET period = {{next}} FROM moved
        WHERE noted.interaction_id = moved.interaction_id
    )
    SELECT count(*) FILTER (WHERE verdict = 'waits') AS moved_clicks,
           count(*) FILTER (WHERE verdict = 'late') AS late_clicks,
           count(*) FILTER (WHERE verdict = 'orphan') AS orphan_clicks
    FROM judged
"""

MOVE_IMPRESSIONS = f"""
    WITH moved AS (
        UPDATE impressions AS shown SET period = {{next}} WHERE period = {{period}} AND NOT {DUE} RETURNING request_id
    ), named AS (
        UPDATE event_ids SET period = {{next}} FROM moved WHERE kind = 1 AND event_ids.event_id = moved.request_id
    )
    SELECT count(*) AS moved_impressions FROM moved
"""

# The values of an item take precedence over those of all items.
MADE_CONTEXT = """
    nullif(coalesce(context, '{{}}') || coalesce(nullif(item_contexts -> (n - 1)::int, 'null'), '{{}}'), '{{}}')
"""

MADE = f"""
    SELECT {INTERACTION_ID} COLLATE "C" AS event_id, user_id, item_id, shown_at, request_id, {MADE_CONTEXT} AS context
    FROM impressions_p{{period}} AS shown CROSS JOIN LATERAL unnest(item_ids) WITH ORDINALITY AS item (item_id, n)
    WHERE {DUE}
"""

RESERVE = f"""
    WITH made AS MATERIALIZED ({MADE}), reserved AS (
        INSERT INTO event_ids (kind, event_id, period) SELECT 0, event_id, {{period}} FROM made ORDER BY event_id
        ON CONFLICT (kind, event_id) DO NOTHING
    )
    SELECT count(*) FROM made
"""

# An interaction is new where its id is reserved for the period and in no log.
DERIVE = f"""
    WITH clicked AS (
        SELECT DISTINCT interaction_id
        FROM clicks_p{{period}} AS click JOIN impressions_p{{period}} AS shown USING (request_id)
        WHERE {IN_TIME}
    ), made AS MATERIALIZED ({MADE}), stored AS (
        INSERT INTO interactions_p{{period}}
            (event_id, period, user_id, item_id, label, occurred_at, request_id, context)
        SELECT event_id, {{period}}, user_id, item_id, (interaction_id IS NOT NULL)::int, shown_at, request_id, context
        FROM made LEFT JOIN clicked ON interaction_id = event_id
        WHERE EXISTS (
            SELECT FROM event_ids AS reserved
            WHERE reserved.kind = 0 AND reserved.event_id = made.event_id AND reserved.period = {{period}}
        ) {{not_elsewhere}}
        ON CONFLICT (event_id, period) DO NOTHING
        RETURNING label
    )
    SELECT (SELECT count(*) FROM impressions_p{{period}}) AS impressions,
           (SELECT count(*) FROM stored WHERE label = 1) AS positives,
           (SELECT count(*) FROM stored WHERE label = 0) AS negatives,
           (SELECT count(*) FROM made) - (SELECT count(*) FROM stored) AS already_logged
"""

# An interaction that another log has does not belong to this period. Where the ids of that log are merged into
# `event_ids`, the reservation becomes its entry; else the reservation is deleted.
HAND_OVER = """
    UPDATE event_ids SET period = other.period, content = other.content
    FROM interactions_p{other} AS other JOIN periods ON number = other.period AND ids_merged_at IS NOT NULL
    WHERE event_ids.kind = 0 AND event_ids.period = {period} AND event_ids.event_id = other.event_id
"""
FREE = """
    DELETE FROM event_ids USING interactions_p{other} AS other
    WHERE event_ids.kind = 0 AND event_ids.period = {period} AND event_ids.event_id = other.event_id
"""

NOT_IN_LOG = "AND NOT EXISTS (SELECT FROM interactions_p{period} AS other WHERE other.event_id = made.event_id)"

POSITIVES_MISSING_FROM_HISTORIES = """
    SELECT DISTINCT click.interaction_id, made.user_id, made.item_id, made.occurred_at AS shown_at
    FROM clicks_p{period} AS click JOIN interactions_p{period} AS made
        ON made.event_id = click.interaction_id AND made.label = 1
    WHERE NOT EXISTS (SELECT FROM unresolved_positives AS noted WHERE noted.interaction_id = click.interaction_id)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What became of the impressions and clicks of a period."""

    impressions: int = 0
    """Impressions whose window had passed: their items are interactions now."""
    positives: int = 0
    negatives: int = 0
    already_logged: int = 0
    """Items whose interaction was in the log before, where it stays as it is."""
    moved_impressions: int = 0
    """Impressions whose window was open: they wait in the next period."""
    moved_clicks: int = 0
    """Clicks on these impressions, or on one that is not known yet."""
    late_clicks: int = 0
    """Clicks outside the window of their impression, or after it was resolved."""
    orphan_clicks: int = 0
    """Clicks on an item that was not in their impression, or whose impression did not come within a window."""
