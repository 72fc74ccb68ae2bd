"""Postgres and Redis from Python packages, for one host without servers."""
