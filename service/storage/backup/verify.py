"""What has to hold in a database, beyond what its constraints say and also where these were circumvented.

Each check is a query for what is wrong, one row each: what it is, what was expected, what was found. A new promise of
the schema is a new entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables
from service.storage.postgres.migrate import head_revision, is_described
from service.storage.postgres.repositories.past import KEPT
from service.storage.postgres.structure import StoredTable, counters, references

__all__ = ["Finding", "find_faults"]

MOST = 20
"""Findings of one check that are listed; the others are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    object: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.object}: expected {self.expected}; found {self.found}"


def _unknown(what: str, table: str, column: str, where: str) -> str:
    """The check that the artifacts which a column of JSON names are there, however deep they are named."""
    return f"""
        SELECT {what}, 'every artifact that it names', format('no artifact %s', digest)
        FROM (SELECT {table}.*, value #>> '{{}}' AS digest
              FROM {table}, jsonb_path_query({column}, 'strict $.** ? (@.type() == "string")') AS value
              WHERE {where}) AS named
        WHERE digest ~ '^[0-9a-f]{{64}}$' AND digest NOT IN (SELECT digest FROM artifacts)
    """


def _folded(table: str, name: str, what: str) -> str:
    """The check of a table of what is left of dropped logs."""
    return f"""
        SELECT format('{name} of user %s', user_id), 'up to {KEPT} {what}, newest first',
               format('%s items, %s events, %s times', cardinality(item_ids), cardinality(event_ids), times)
        FROM {table}
        WHERE cardinality(item_ids) NOT BETWEEN 1 AND {KEPT} OR cardinality(item_ids) <> cardinality(event_ids)
           OR times <> ARRAY(SELECT time FROM unnest(times) AS time ORDER BY time DESC)
           OR cardinality(item_ids) <> cardinality(times)
    """


CHECKS = {
    "periods without a gap": """
        SELECT 'periods', 'numbers from 1 on', format('%s periods from %s to %s', count(*), min(number), max(number))
        FROM periods HAVING (count(*), min(number)) IS DISTINCT FROM (max(number)::bigint, 1)
    """,
    "one open period": """
        SELECT format('period %s', number), CASE WHEN newest THEN 'open' ELSE 'closed: a newer one is there' END, status
        FROM (SELECT number, status, number = max(number) OVER () AS newest FROM periods) AS period
        WHERE newest <> (status = 'open')
    """,
    "sealed periods": """
        SELECT format('period %s', number), 'a time and a number of events exactly if it is sealed',
               format('status %s, sealed at %s, %s events', status, sealed_at, events)
        FROM periods WHERE num_nulls(sealed_at, events) <> CASE status WHEN 'open' THEN 2 ELSE 0 END
    """,
    "updated periods": """
        SELECT format('period %s', number), 'a version exactly if it is updated',
               format('status %s, version %s', status, version)
        FROM periods WHERE (status = 'updated') <> (version IS NOT NULL)
    """,
    "versions of periods": """
        SELECT format('period %s', number), format('version %s to be its own', periods.version),
               CASE WHEN found.version IS NULL THEN 'no such version' ELSE format('that of period %s', found.period) END
        FROM periods LEFT JOIN model_versions AS found ON found.version = periods.version
        WHERE periods.version IS NOT NULL AND found.period IS DISTINCT FROM number
    """,
    "periods of versions": """
        SELECT format('model version %s', model_versions.version), format('period %s to name it', period),
               CASE WHEN number IS NULL THEN 'no such period' ELSE format('version %s', periods.version) END
        FROM model_versions LEFT JOIN periods ON number = period
        WHERE (model_versions.version > 0 OR period <> 0) AND periods.version IS DISTINCT FROM model_versions.version
    """,
    "versions without a gap": """
        SELECT 'model versions', 'numbers from 0 on',
               format('%s versions from %s to %s', count(*), min(version), max(version))
        FROM model_versions HAVING count(*) > 0 AND (count(*), min(version)) <> (max(version)::bigint + 1, 0)
    """,
    "parents of versions": """
        SELECT format('model version %s', version), 'an earlier version as parent',
               coalesce(parent_version::text, 'none')
        FROM model_versions WHERE version > 0 AND NOT coalesce(parent_version < version, false)
    """,
    "artifacts of versions": _unknown("format('model version %s', version)", "model_versions", "state", "true"),
    "artifacts of updates under way": _unknown(
        "format('stage %s of period %s', stage, period)",
        "period_stages",
        "result",
        "status = 'done' AND period IN (SELECT number FROM periods WHERE status IN ('sealed', 'updating'))",
    ),
    "aliases": """
        SELECT format('alias %s', wanted.name), 'a model version', 'none'
        FROM (VALUES ('champion', 0), ('head', 0), ('baseline', 1)) AS wanted (name, since)
        WHERE EXISTS (SELECT FROM model_versions WHERE version >= since AND kind <> 'previous')
          AND wanted.name NOT IN (SELECT name FROM aliases)
    """,
    "what aliases need": """
        SELECT format('alias %s', name), format('version %s with its %s', version, needed), 'none'
        FROM (
            SELECT name, version,
                   CASE name WHEN 'champion' THEN 'serving snapshot' WHEN 'head' THEN 'training state'
                             ELSE 'parameters' END AS needed,
                   CASE name WHEN 'champion' THEN serving_digest IS NOT NULL
                             WHEN 'head' THEN version = 0 OR state -> 'parts' IS NOT NULL
                             ELSE state -> 'serving' IS NOT NULL END AS there
            FROM aliases JOIN model_versions USING (version)
        ) AS alias
        WHERE NOT there
    """,
    "versions of evaluations": """
        SELECT format('evaluation of %s on period %s', model, period), format('version %s', version), 'no such version'
        FROM evaluations WHERE version NOT IN (SELECT version FROM model_versions)
    """,
    "stages": """
        SELECT format('stage %s of period %s', stage, period), 'an end exactly if it is done',
               format('status %s, finished at %s after %s s', status, finished_at, seconds)
        FROM period_stages WHERE num_nulls(finished_at, seconds) <> CASE status WHEN 'done' THEN 0 ELSE 2 END
    """,
    "stages of periods": """
        SELECT format('period %s', number), 'no stage of an open period, one at a time of any other',
               format('status %s, %s stages, %s running', status, count(*), running)
        FROM (SELECT number, periods.status, count(*) FILTER (WHERE period_stages.status = 'running')
                     OVER (PARTITION BY number) AS running
              FROM periods JOIN period_stages ON period = number) AS staged
        GROUP BY number, status, running
        HAVING status = 'open' OR running > CASE status WHEN 'updated' THEN 0 ELSE 1 END
    """,
    "published versions": """
        SELECT format('stage publish of period %s', number), format('it done, with version %s', version),
               CASE WHEN stage IS NULL THEN 'none'
                    ELSE format('it %s, with version %s', published.status, result -> 'version') END
        FROM periods LEFT JOIN period_stages AS published ON period = number AND stage = 'publish'
        WHERE periods.status = 'updated'
          AND (published.status IS DISTINCT FROM 'done' OR result -> 'version' <> to_jsonb(version))
    """,
    "logs as they were sealed": """
        SELECT format('log of period %s', number),
               format('%s interactions, as counted when it was sealed', events)
               || CASE forgotten WHEN 0 THEN '' ELSE format(', without %s that were deleted', forgotten) END,
               coalesce(stored, 0)::text
        FROM periods LEFT JOIN (SELECT period, count(*) AS stored FROM interactions GROUP BY period) AS log
             ON period = number
        WHERE status <> 'open' AND log_dropped_at IS NULL AND coalesce(stored, 0) <> events - forgotten
    """,
    "interactions of the open period": """
        SELECT format('log of period %s', coalesce(log.period, counted.period)),
               format('%s interactions, as counted when they were stored', coalesce(events, 0)),
               coalesce(stored, 0)::text
        FROM (SELECT period, count(*) AS stored FROM interactions
              WHERE period = (SELECT number FROM periods WHERE status = 'open') GROUP BY period) AS log
        FULL JOIN (SELECT period, sum(events) AS events FROM log_counters GROUP BY period) AS counted USING (period)
        WHERE coalesce(stored, 0) <> coalesce(events, 0)
    """,
    "event ids": """
        SELECT format('event %s', event_id),
               CASE WHEN merged THEN 'once in the log, once among the event ids'
                    ELSE 'once in the log, not yet among the event ids' END,
               format('%s times and %s times, in period %s', logged, known, periods)
        FROM (
            SELECT event_id, count(*) FILTER (WHERE log) AS logged, count(*) FILTER (WHERE NOT log) AS known,
                   string_agg(DISTINCT period::text, ', ') AS periods, bool_or(ids_merged_at IS NOT NULL) AS merged,
                   bool_and(labels IS NULL AND status <> 'open') AS unresolved,
                   bool_and(log_dropped_at IS NOT NULL) AS dropped
            FROM (SELECT event_id, period, true AS log FROM interactions
                  UNION ALL SELECT event_id, period, false FROM event_ids WHERE kind = 0) AS entry
            LEFT JOIN periods ON number = period
            GROUP BY event_id
        ) AS event
        WHERE (logged <> 1 OR known <> merged::int OR periods LIKE '%,%')
          AND NOT (logged = 0 AND unresolved) -- reserved for an interaction that an impression becomes
          AND NOT (logged = 0 AND dropped) -- about to be forgotten
    """,
    "ids of impressions and clicks": """
        SELECT format('%s %s', CASE kind WHEN 1 THEN 'impression' ELSE 'click' END, event_id),
               'once stored and once among the event ids, in one period',
               format('stored in %s, among the event ids in %s', coalesce(stored.period::text, 'none'),
                      coalesce(known.period::text, 'none'))
        FROM (SELECT 1 AS kind, request_id AS event_id, period FROM impressions
              UNION ALL SELECT 2, event_id, period FROM clicks) AS stored
        FULL JOIN (SELECT kind, event_id, period FROM event_ids WHERE kind IN (1, 2)) AS known USING (kind, event_id)
        WHERE stored.period IS DISTINCT FROM known.period
          AND NOT (stored.period IS NULL AND known.period IN (
              SELECT number FROM periods WHERE log_dropped_at IS NOT NULL)) -- about to be forgotten
    """,
    "contexts of impressions": """
        SELECT format('impression %s', request_id), 'an object as context, and one or null for each of its items',
               format('%s, and %s for %s items', coalesce(jsonb_typeof(context), 'none'),
                      CASE jsonb_typeof(item_contexts) WHEN 'array' THEN jsonb_array_length(item_contexts)::text
                           ELSE coalesce(jsonb_typeof(item_contexts), 'none') END, cardinality(item_ids))
        FROM impressions
        WHERE jsonb_typeof(context) <> 'object'
           OR CASE jsonb_typeof(item_contexts)
                  WHEN 'array' THEN jsonb_array_length(item_contexts) <> cardinality(item_ids)
                  ELSE item_contexts IS NOT NULL END
    """,
    "fields of interactions": """
        SELECT format('event %s', event_id), 'an object as context, and a weight above 0',
               format('%s and %s', coalesce(jsonb_typeof(context), 'none'), coalesce(weight::text, 'none'))
        FROM interactions WHERE jsonb_typeof(context) <> 'object' OR NOT weight > 0
    """,
    "features": """
        SELECT format('features of %s %s at %s', kind, id, at), 'an object', jsonb_typeof(features)
        FROM (SELECT 'user' AS kind, user_id AS id, at, features FROM user_features
              UNION ALL SELECT 'item', item_id, at, features FROM item_features) AS version
        WHERE jsonb_typeof(features) <> 'object'
    """,
    "logs that are dropped": """
        SELECT format('log of period %s', number), 'its clicks in the histories that stay, for it is dropped', 'not'
        FROM periods WHERE log_dropped_at IS NOT NULL AND log_folded_at IS NULL
    """,
    "labels of periods": """
        SELECT format('period %s', number), 'its impressions and clicks resolved, for it is updated', 'not'
        FROM periods WHERE status = 'updated' AND labels IS NULL
    """,
    "rows of ids": """
        SELECT format('rows of the kind %s', kind), 'numbers from 1 on, each once',
               format('%s rows from %s to %s, %s different', count(*), min(row), max(row), count(DISTINCT row))
        FROM entity_rows GROUP BY kind
        HAVING (count(*), count(DISTINCT row), min(row)) <> (max(row)::bigint, count(*), 1)
    """,
    "first periods of ids": """
        SELECT format('row %s of the kind %s', row, kind), 'a first period that is there', first_period::text
        FROM entity_rows WHERE first_period NOT IN (SELECT number FROM periods)
    """,
    "rows that periods have seen": """
        SELECT format('rows of the kind %s that period %s has seen', seen.kind, period),
               'a period and rows that are there', format('row %s of period %s, which is not there', row, period)
        FROM seen_rows AS seen CROSS JOIN LATERAL unnest(rows) AS row
        LEFT JOIN entity_rows AS known USING (kind, row)
        WHERE known.first_period IS NULL OR period NOT IN (SELECT number FROM periods)
    """,
    "periods of items": """
        SELECT format('item %s', item_id), 'the period in which it was stored', format('%s, which is not there', period)
        FROM items WHERE period NOT IN (SELECT number FROM periods)
    """,
    "folded histories": _folded("user_histories", "history", "clicks"),
    "folded passes": _folded("user_passes", "passes", "passes"),
    "sizes of artifacts": """
        SELECT format('artifact %s', digest), format('%s bytes in chunks from 0 on', size),
               format('%s bytes in %s chunks up to %s', coalesce(sum(length(data)), 0), count(index), max(index))
        FROM artifacts LEFT JOIN artifact_chunks USING (digest)
        GROUP BY digest, size
        HAVING coalesce(sum(length(data)), 0) <> size OR count(index) <> coalesce(max(index) + 1, 0)
    """,
}


async def find_faults(connection: AsyncConnection, stored: Sequence[StoredTable]) -> list[Finding]:
    """All that is wrong in the tables, but for the content of artifacts.

    Args:
        connection: in a transaction with one snapshot.
        stored: the tables that hold rows, of the same snapshot.
    """
    revision = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    if revision != head_revision():  # the checks know no other schema
        return [Finding("schema", f"revision {head_revision()}, that of this release", str(revision))]
    findings = [*await _schema(connection), *await _partitions(connection, stored)]
    for reference in await references(connection):
        findings += await _find(connection, reference.dangling())
    for query in CHECKS.values():
        findings += await _find(connection, query)
    for counter in await counters(connection):
        findings += await _find(
            connection,
            f"SELECT '{counter.table}.{counter.column}', 'values below the next, {counter.next}', max::text "
            f"FROM (SELECT max({counter.column}) FROM {counter.table}) AS counted WHERE max >= {counter.next}",
        )
    return findings


async def _schema(connection: AsyncConnection) -> list[Finding]:
    """The tables are those of this release, whatever the revision that is noted says."""

    def compare(sync: Connection) -> list[Any]:
        context = MigrationContext.configure(sync, opts={"include_name": is_described, "compare_type": True})
        return list(compare_metadata(context, tables.metadata))

    return [
        Finding("schema", "the tables of this release", f"a difference: {_described(difference)}")
        for difference in await connection.run_sync(compare)
    ]


def _described(difference: Any) -> str:
    """One operation that would have to be done, in a line."""
    if isinstance(difference, list):
        return "; ".join(_described(part) for part in difference)
    action, *objects = difference
    return f"{action} {' '.join(str(part) for part in objects if part is not None)}"


async def _find(connection: AsyncConnection, query: str) -> list[Finding]:
    listed = f"""
        SELECT object, expected, found, count(*) OVER () AS total FROM ({query}) AS fault (object, expected, found)
        ORDER BY 1, 3 LIMIT {MOST}
    """
    rows = (await connection.exec_driver_sql(listed)).all()
    findings = [Finding(row.object, row.expected, row.found) for row in rows]
    if rows and rows[0].total > MOST:
        findings.append(Finding(f"{rows[0].total - MOST:,} more", rows[0].expected, "others"))
    return findings


async def _partitions(connection: AsyncConnection, stored: Sequence[StoredTable]) -> list[Finding]:
    """A period's log has its partition until it is dropped; every partition belongs to a period."""
    dropped = {
        number: log_dropped_at is not None
        for number, log_dropped_at in await connection.execute(text("SELECT number, log_dropped_at FROM periods"))
    }
    parts = [table.partition for table in stored if table.partition is not None]
    findings = [
        Finding(f"partition of {part.of} for period {part.period}", "a period that is there", "none")
        for part in parts
        if part.period not in dropped
    ]
    for table in tables.LOG:
        there = {part.period for part in parts if part.of == table.name}
        for number, gone in sorted(dropped.items()):
            if gone == (number in there):
                expected, found = ("no partition, for it was dropped", "one") if gone else ("a partition", "none")
                findings.append(Finding(f"{table.name} of period {number}", expected, found))
    return findings
