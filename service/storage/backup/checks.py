"""The checks of `asmg verify`: queries for rows that break an invariant of the schema.

Constraints do not express these invariants, or may have been circumvented. Each query returns one row for each fault:
the object, what was expected, and what was found. A new invariant of the schema gets a new query here.
"""

from service.storage.postgres.packing import CONTENT_LENGTH
from service.storage.postgres.repositories.past import KEPT

__all__ = ["CHECKS"]


def _missing_artifacts(what: str, table: str, column: str, where: str) -> str:
    """A check that all artifacts exist whose digests are somewhere in a JSON column.

    What stages of an update hand to each other is on the worker's host, so notes of stages are not looked into.

    Args:
        what: an SQL expression that names the row.
        table: with the column.
        column: of JSON.
        where: an SQL condition for the rows that are checked.
    """
    return f"""
        SELECT {what}, 'every artifact that it names', format('no artifact %s', digest)
        FROM (SELECT {table}.*, value #>> '{{}}' AS digest
              FROM {table}, jsonb_path_query({column}, 'strict $.** ? (@.type() == "string")') AS value
              WHERE {where}) AS named
        WHERE digest ~ '^[0-9a-f]{{64}}$' AND digest NOT IN (SELECT digest FROM artifacts)
    """


def _last_interactions(table: str, name: str, what: str) -> str:
    """A check of a table of the last interactions in dropped logs; `name` and `what` describe its rows in messages."""
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
    "artifacts of versions": _missing_artifacts(
        "format('model version %s', version)", "model_versions", "state", "true"
    ),
    "artifacts of shadows": _missing_artifacts("format('shadow %s', method)", "shadows", "state", "true"),
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
    "canaries": """
        SELECT format('canary %s', canaries.version), 'named by the champion exactly while it runs',
               format('state %s, named by %s', state, coalesce(name, 'none'))
        FROM canaries LEFT JOIN aliases ON canary_version = canaries.version
        WHERE (state = 'running') <> (name IS NOT NULL)
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
    "scores of impressions": """
        SELECT format('impression %s', request_id), 'a model version and a score for each of its items, or neither',
               format('version %s, and %s scores for %s items', coalesce(model_version::text, 'none'),
                      coalesce(cardinality(scores)::text, 'no'), cardinality(item_ids))
        FROM impressions
        WHERE num_nulls(model_version, scores) = 1 OR cardinality(scores) <> cardinality(item_ids)
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
    "allocations of rows": """
        SELECT format('row %s of the kind %s', row, kind), format('added by allocation %s or a later one', before),
               appended::text
        FROM (
            SELECT kind, row, appended, lag(appended, 1, 0) OVER (PARTITION BY kind ORDER BY row) AS before
            FROM entity_rows
        ) AS ordered
        WHERE appended < before
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
    "folded histories": _last_interactions("user_histories", "history", "clicks"),
    "folded passes": _last_interactions("user_passes", "passes", "passes"),
    "sizes of artifacts": f"""
        SELECT format('artifact %s', digest),
               CASE WHEN key IS NULL THEN format('%s bytes in chunks from 0 on', size)
                    ELSE 'no chunk, for its content is an object' END,
               format('%s bytes in %s chunks up to %s', coalesce(sum(length), 0), count(index), max(index))
        FROM artifacts LEFT JOIN (SELECT digest, index, {CONTENT_LENGTH} AS length FROM artifact_chunks) USING (digest)
        GROUP BY digest, size, key
        HAVING CASE WHEN key IS NULL THEN coalesce(sum(length), 0) <> size
                                          OR count(index) <> coalesce(max(index) + 1, 0)
                    ELSE count(index) > 0 END
    """,
}
