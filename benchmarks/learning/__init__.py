"""Logs as table rows, and update methods that learn them, for the benchmarks that need no service."""
