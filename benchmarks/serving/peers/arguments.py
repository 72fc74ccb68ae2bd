"""The command line of a peer."""

import argparse
from pathlib import Path

HOST = "127.0.0.1"
"""Address that every peer listens on."""


class Arguments(argparse.Namespace):
    """The options of a peer."""

    folder: Path
    """Holds the model, see `tutorial.save_model`."""
    port: int
    workers: int
    batching: bool
    """Whether requests that come together are scored together."""


def parse_arguments() -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batching", action="store_true")
    return parser.parse_args(namespace=Arguments())
