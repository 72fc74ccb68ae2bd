"""`asmg keys …`."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from service.cli.console import make_console
from service.cli.errors import plain_errors
from service.cli.installation import DataDir, with_database
from service.http.schemas import parse_timestamp
from service.limits import MAX_KEY_DAYS, MAX_REASON_LENGTH
from service.use_cases.keys import SCOPES, create_key, limit_key, list_keys, revoke_key

__all__ = ["expiry_of", "keys"]

keys = typer.Typer(help="API keys: who may call what.", no_args_is_help=True)

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DURATION = re.compile(r"([1-9]\d{0,8})([smhdw])", re.ASCII)


def _check_reason(value: str | None) -> str | None:
    if value is not None and not (0 < len(value) <= MAX_REASON_LENGTH and "\0" not in value):
        raise typer.BadParameter(f"expected 1 to {MAX_REASON_LENGTH} characters; received {len(value)}")
    return value


KeyId = Annotated[str, typer.Argument(help="The key's id, as `asmg keys list` shows it.")]
Rate = Annotated[
    float | None,
    typer.Option(help="Requests per second that the key may make, 0 for no limit; by default ASMG_RATE_LIMIT."),
]
Reason = Annotated[str | None, typer.Option(help="Reason that the audit log keeps.", callback=_check_reason)]


@keys.command("create")
def create_key_command(
    name: Annotated[str, typer.Argument(help="What the key is for, or whose it is; the audit log shows it.")],
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope", "--scopes", help=f"One or more of {', '.join(SCOPES)}, separated by commas or repeated."
        ),
    ],
    expires_in: Annotated[
        str | None,
        typer.Option(help=f"Time after which the key expires, such as 90d, 12h or 30m; at most {MAX_KEY_DAYS}d."),
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(help="Moment from which the key has expired, RFC 3339 with an offset.")
    ] = None,
    rate: Rate = None,
    reason: Reason = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print it, this once; without an expiry it is valid until it is revoked."""
    scopes = [part.strip() for value in scope for part in value.split(",")]
    with plain_errors():
        expiry = expiry_of(expires_in, expires_at)
        key_id, key = with_database(
            data_dir,
            lambda database: create_key(database, name, scopes, rate_limit=rate, expires_at=expiry, reason=reason),
        )
        print(f"asmg: key {key_id}; it is shown only now", file=sys.stderr)
        print(key)


@keys.command("list")
def list_keys_command(data_dir: DataDir = None) -> None:
    """List all keys ever created."""
    with plain_errors():
        table = Table("id", "name", "scopes", "rate", "created (UTC)", "expires", "revoked", "valid")
        for key in with_database(data_dir, list_keys):
            times = [f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created_at, key.expires_at, key.revoked_at)]
            rate = "" if key.rate_limit is None else f"{key.rate_limit:g}/s" if key.rate_limit else "any"
            table.add_row(key.key_id, key.name, " ".join(key.scopes), rate, *times, "yes" if key.valid else "no")
        make_console().print(table)


@keys.command("limit")
def limit_key_command(key_id: KeyId, rate: Rate = None, reason: Reason = None, data_dir: DataDir = None) -> None:
    """Change how many requests per second a key may make; the api processes apply it a second later."""
    with plain_errors():
        if not with_database(data_dir, lambda database: limit_key(database, key_id, rate, reason=reason)):
            raise ValueError(f"there is no valid key {key_id}")
        print(f"asmg: key {key_id} has its new limit")


@keys.command("revoke")
def revoke_key_command(key_id: KeyId, reason: Reason = None, data_dir: DataDir = None) -> None:
    """Revoke a key for ever; the api processes refuse it a second later."""
    with plain_errors():
        if not with_database(data_dir, lambda database: revoke_key(database, key_id, reason=reason)):
            raise ValueError(f"there is no valid key {key_id}")
        print(f"asmg: key {key_id} is revoked")


def expiry_of(after: str | None, moment: str | None) -> datetime | None:
    """The moment at which a key expires; None for never.

    Args:
        after: value of `--expires-in`: a number and a unit, such as 90d.
        moment: value of `--expires-at`: RFC 3339 with an offset.

    Raises:
        ValueError: both are given, or one is not understood.
    """
    if after is not None and moment is not None:
        raise ValueError("expected --expires-in or --expires-at; received both")
    if after is not None:
        match = DURATION.fullmatch(after)
        if match is None:
            raise ValueError(f"expected a time such as 90d, 12h or 30m with --expires-in; received {after!r}")
        seconds = int(match[1]) * UNIT_SECONDS[match[2]]
        if seconds > MAX_KEY_DAYS * UNIT_SECONDS["d"]:
            raise ValueError(f"expected at most {MAX_KEY_DAYS}d with --expires-in; received {after!r}")
        return datetime.now(UTC) + timedelta(seconds=seconds)
    if moment is None:
        return None
    try:
        return parse_timestamp(moment)
    except ValueError:
        raise ValueError(
            f"expected RFC 3339 with an offset, such as 2030-01-31T12:00:00Z, with --expires-at; received {moment!r}"
        ) from None
