"""`asmg webhooks …`."""

import sys
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.console import make_console
from service.cli.errors import plain_errors
from service.cli.installation import DataDir, load_settings, with_database
from service.storage.postgres.repositories import DeliveryStatus
from service.use_cases.audit import command_line
from service.use_cases.webhooks.announce import Event
from service.use_cases.webhooks.endpoints import (
    OVERLAP_HOURS,
    add_webhook,
    delete_webhook,
    list_deliveries,
    list_webhooks,
    redeliver,
    rotate_secret,
    switch_webhook,
)

__all__ = ["webhooks"]

webhooks = typer.Typer(help="Webhooks: endpoints that are told of events.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="WEBHOOK", help="Number of the webhook, see `asmg webhooks list`.")]
Reason = Annotated[str, typer.Option(help="Reason that the audit log keeps.")]


@webhooks.command("add")
def add_command(
    url: Annotated[str, typer.Argument(help="https://HOST/PATH; http:// to ASMG_WEBHOOK_NETWORKS only.")],
    events: Annotated[
        list[Event] | None, typer.Option("--event", help="What it is told of, repeated for several; by default all.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Add a webhook and print the secret that signs, this once."""
    with plain_errors():
        networks = load_settings(data_dir=data_dir).webhooks_reach
        added = with_database(
            data_dir, lambda d: add_webhook(d, url, events or None, actor=command_line(), networks=networks)
        )
        print(f"asmg: webhook {added.number}; its secret is shown only now", file=sys.stderr)
        print(added.secret)


@webhooks.command("list")
def list_command(data_dir: DataDir = None) -> None:
    """List all webhooks."""
    with plain_errors():
        table = Table("webhook", "URL", "events", "added (UTC)", "off")
        for webhook in with_database(data_dir, list_webhooks).webhooks:
            events = "all" if webhook.events is None else " ".join(webhook.events)
            cells = (str(webhook.number), webhook.url, events, f"{webhook.created_at:%Y-%m-%d %H:%M}")
            table.add_row(*(Text(cell) for cell in (*cells, webhook.off_reason or "")))
        make_console().print(table)


@webhooks.command("rotate")
def rotate_command(
    number: Number,
    overlap_hours: Annotated[
        float, typer.Option(min=0, help="For how many hours the secret before signs too.")
    ] = OVERLAP_HOURS,
    data_dir: DataDir = None,
) -> None:
    """Sign with a new secret and print it, this once."""
    with plain_errors():
        rotated = with_database(
            data_dir, lambda d: rotate_secret(d, number, actor=command_line(), overlap_hours=overlap_hours)
        )
        print(f"asmg: the new secret of webhook {number} is shown only now", file=sys.stderr)
        print(rotated.secret)


@webhooks.command("on")
def on_command(number: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Switch a webhook on; it is told of what happens from now on."""
    with plain_errors():
        with_database(data_dir, lambda d: switch_webhook(d, number, on=True, reason=reason, actor=command_line()))
        print(f"asmg: webhook {number} is on")


@webhooks.command("off")
def off_command(number: Number, reason: Reason, data_dir: DataDir = None) -> None:
    """Switch a webhook off; what waits for it is given up."""
    with plain_errors():
        with_database(data_dir, lambda d: switch_webhook(d, number, on=False, reason=reason, actor=command_line()))
        print(f"asmg: webhook {number} is off")


@webhooks.command("remove")
def remove_command(number: Number, data_dir: DataDir = None) -> None:
    """Remove a webhook with what it was told, and what waits for it."""
    with plain_errors():
        with_database(data_dir, lambda d: delete_webhook(d, number, actor=command_line()))
        print(f"asmg: webhook {number} is removed")


@webhooks.command("deliveries")
def deliveries_command(
    webhook: Annotated[int | None, typer.Option(help="Only those to this webhook.")] = None,
    status: Annotated[DeliveryStatus | None, typer.Option(help="Only those with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of deliveries, the newest.")] = 20,
    data_dir: DataDir = None,
) -> None:
    """List what webhooks were told, and what became of it."""
    with plain_errors():
        page = with_database(data_dir, lambda d: list_deliveries(d, limit=limit, webhook=webhook, status=status))
        table = Table("delivery", "webhook", "event", "occurred (UTC)", "status", "attempts", "next (UTC)", "error")
        for delivery in page.deliveries:
            occurred, due = (f"{at:%Y-%m-%d %H:%M:%S}" if at else "" for at in (delivery.occurred_at, delivery.due_at))
            cells = (str(delivery.number), str(delivery.webhook), delivery.event, occurred, delivery.status)
            table.add_row(*(Text(cell) for cell in (*cells, str(delivery.attempts), due, delivery.error or "")))
        make_console().print(table)


@webhooks.command("redeliver")
def redeliver_command(
    number: Annotated[int, typer.Argument(metavar="DELIVERY", help="Number, see `asmg webhooks deliveries`.")],
    data_dir: DataDir = None,
) -> None:
    """Have a delivery sent again, with all attempts."""
    with plain_errors():
        with_database(data_dir, lambda d: redeliver(d, number, actor=command_line()))
        print(f"asmg: delivery {number} is sent again")
