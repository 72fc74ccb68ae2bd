"""`asmg migrate`."""

from service.cli.errors import plain_errors
from service.cli.installation import DataDir, load_settings
from service.processes.installation import installation

__all__ = ["migrate_command"]


def migrate_command(data_dir: DataDir = None) -> None:
    """Bring the schema of the database up to date."""
    with plain_errors(), installation(load_settings(data_dir=data_dir), migrate_first=True):
        print("asmg: the schema is up to date")
