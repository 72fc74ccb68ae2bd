"""The Alembic migrations, from an empty database to the schema of this release.

Rules for every migration:

- It is one transaction, and waits for a lock for at most `migrate.LOCK_SECONDS`, since others who want the table queue
  up behind it. A new column has no default or a constant one.
- Work that takes longer for more rows comes first, in an `autocommit_block`, in statements that can be repeated after
  an interruption. `migrations.indexes.build_index` builds the indexes of tables that can be large.
- A downgrade begins with `migrations.losses.refuse_losses`; `tests/service/test_storage_downgrade.py` runs them all.
"""
