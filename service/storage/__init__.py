"""Where everything is kept: Postgres is the truth, Redis the fast copy, and both can be embedded.

| module | is |
| --- | --- |
| `database` | connections, the read session and the unit of work, advisory locks, the leader election |
| `tables`, `migrate` | the schema and the way it changes |
| `repositories` | all SQL, one small class a table |
| `artifacts` | content-addressed blobs with a fast copy |
| `redis_state` | recent user histories and notices |
| `embedded` | a real Postgres and a real Redis under a data folder |
"""
