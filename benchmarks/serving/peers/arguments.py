"""How a peer is started."""

import argparse
from pathlib import Path

__all__ = ["HOST", "Arguments", "parse_arguments"]

HOST = "127.0.0.1"
"""What every peer listens on."""


class Arguments(argparse.Namespace):
    """The options of a peer."""

    folder: Path
    """What `save_model` has left."""
    port: int
    workers: int
    batching: bool
    """Whether requests that come together are scored together."""


def parse_arguments() -> Arguments:
    """Those of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batching", action="store_true")
    return parser.parse_args(namespace=Arguments())
