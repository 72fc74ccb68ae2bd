"""The click-through-rate service: an HTTP API, a worker and their storage around the `asmg` library."""

__version__ = "0.1.0"
