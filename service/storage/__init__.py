"""Where data is kept. Postgres holds everything; Redis and files on disk hold fast copies.

| package | contains |
| --- | --- |
| `postgres` | the database: sessions, schema, migrations, and all SQL |
| `redis` | users' last interactions, notices between processes, shared rate limits |
| `artifacts` | models and other large values, addressed by their digest |
| `backup` | backups, restores, and the checks of `asmg verify` |
| `embedded` | a real Postgres and a real Redis under a data folder |
"""
