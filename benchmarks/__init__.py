"""Benchmarks: what the update methods score and cost, and the whole-table implementation that they are held against."""
