"""The history of the schema.

What every migration keeps to:

- It is a transaction of its own, and waits for a lock only as long as `migrate.LOCK_SECONDS`: whoever uses the table
  waits behind it. A new column has no default, or a constant one.
- What takes longer where there are more rows comes first, in an `autocommit_block`, in statements that can be done
  again after an interruption. Indexes of tables that can be large are built by `migrations.indexes.build_index`.
- A downgrade begins with `migrations.losses.refuse_losses`; `tests/service/test_storage_downgrade.py` walks them all.
"""
