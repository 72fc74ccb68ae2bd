"""Alembic migrations, the only way the schema changes; a package, so that an installed service can migrate too."""
