"""`asmg models canary …`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from service.cli.errors import plain_errors
from service.cli.installation import DataDir, load_settings, use_database
from service.limits import MAX_REASON_LENGTH
from service.processes.installation import installation
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Canary
from service.use_cases.audit import command_line

__all__ = ["canary"]

canary = typer.Typer(
    help="The version that answers a share of the users first: let it answer all, or none.", no_args_is_help=True
)

Reason = Annotated[str, typer.Option("--reason", help="Reason that the audit log keeps.")]
Version = Annotated[
    int | None,
    typer.Option("--version", min=0, help="Its number, so that no newer one is meant. [whichever runs]"),
]


@canary.command("promote")
def promote_command(reason: Reason, version: Version = None, data_dir: DataDir = None) -> None:
    """Let the canary answer all users before its time is over."""
    _end(True, reason, version, data_dir)


@canary.command("revert")
def revert_command(reason: Reason, version: Version = None, data_dir: DataDir = None) -> None:
    """Take the canary out of service; the champion answers all users again."""
    _end(False, reason, version, data_dir)


def _end(promote: bool, reason: str, version: int | None, data_dir: Path | None) -> None:
    with plain_errors():
        if not 1 <= len(reason) <= MAX_REASON_LENGTH:
            raise ValueError(f"reason: expected 1 to {MAX_REASON_LENGTH} characters; received {len(reason)}")
        with installation(load_settings(data_dir=data_dir)) as settings:
            ended = asyncio.run(
                use_database(settings, lambda database: _ended(database, settings, promote, reason, version))
            )
        print(f"asmg: canary {ended.version} is {ended.state}")


async def _ended(database: Database, settings: Settings, promote: bool, reason: str, version: int | None) -> Canary:
    from service.storage.redis.connection import connect
    from service.storage.redis.notices import Notices
    from service.use_cases.guardrails.canary import end_canary

    assert settings.redis_url is not None
    redis = connect(settings.redis_url)
    try:
        return await end_canary(
            database,
            Notices(redis),
            settings,
            promote=promote,
            reason=reason,
            actor=command_line(),
            version=version,
        )
    finally:
        await redis.aclose()
