"""All that knows Postgres."""
