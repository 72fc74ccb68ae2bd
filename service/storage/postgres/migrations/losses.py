"""Refuses downgrades that would lose data. Every `downgrade` calls `refuse_losses` first."""

from collections.abc import Mapping

from alembic import context, op

from service.errors import ConfigurationError

__all__ = ["DowngradeRefused", "refuse_losses"]


class DowngradeRefused(ConfigurationError):
    """A downgrade would lose rows and was not told to. It has changed nothing."""

    def __init__(self, revision: str, losses: Mapping[str, int]) -> None:
        rows = ", ".join(f"{name} ({count:,} rows)" for name, count in losses.items())
        super().__init__(
            f"the downgrade from schema {revision} would lose {rows}; restore a backup of the older release instead, "
            f"or name what may be lost: alembic -x lose={','.join(losses)} downgrade …"
        )
        self.losses = losses


def refuse_losses(held: Mapping[str, str]) -> None:
    """Return if the older schema can hold all data, or the user has named what may be lost.

    Args:
        held: what the older schema cannot hold. Each key is a table or `table.column`; its value is the end of a
            `SELECT count(*) FROM …` that counts the rows with data there.

    Raises:
        DowngradeRefused: there is data that was not named by `-x lose=NAME,NAME`.
    """
    named = set(context.config.attributes.get("lose", ()))
    for value in context.get_x_argument(as_dictionary=True).get("lose", "").split(","):
        named.add(value.strip())
    connection = op.get_bind()
    losses = {}
    for name, rows in held.items():
        if name not in named:
            count = int(connection.exec_driver_sql(f"SELECT count(*) FROM {rows}").scalar_one())
            if count:
                losses[name] = count
    if losses:
        raise DowngradeRefused(str(context.get_context().get_current_revision()), losses)
