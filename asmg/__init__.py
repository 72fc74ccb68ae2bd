"""Incremental updating of click-through-rate models with a meta model-generator (ASMG): the algorithms, pure torch."""
