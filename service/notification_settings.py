"""The settings of alerts and webhooks, a part of `service.settings.Settings`."""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

__all__ = ["NotificationSettings", "Several", "checked_networks", "split_list"]

Several = Annotated[tuple[str, ...], NoDecode]
"""Texts; in the environment separated by commas."""


def split_list(value: Any) -> Any:
    """The parts of a text that is separated by commas, without spaces around them; anything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def checked_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    """The same addresses and networks.

    Raises:
        ValueError: one is neither an IP address nor a network in CIDR notation.
    """
    for network in networks:
        try:
            ip_network(network)
        except ValueError:
            raise ValueError(
                f"expected addresses or networks such as 10.0.0.7, 10.0.0.0/24 or fd00::/8; received {network!r}"
            ) from None
    return networks


class NotificationSettings(BaseSettings):
    """Settings of alerts and webhooks; their units are in the names."""

    keep_alerts_days: int = Field(90, ge=1)
    """How long an alert is kept after it was closed."""
    webhook_networks: Several = ()
    """Addresses and networks (CIDR) that webhooks may reach beside public addresses, in plain HTTP too; none by
    default."""
    webhook_timeout_seconds: float = Field(10.0, gt=0)
    """How long an attempt to deliver to a webhook may take."""
    webhook_retry_seconds: float = Field(5.0, gt=0)
    """Pause after the first attempt that failed; each next one is twice as long, up to 15 minutes."""
    webhook_give_up_hours: float = Field(72.0, gt=0)
    """For how long a delivery is tried again."""
    keep_deliveries_days: int = Field(30, ge=1)
    """How long a delivery is kept after its last attempt."""

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("webhook_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_networks(value)

    @property
    def webhooks_reach(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`webhook_networks`, parsed."""
        return tuple(ip_network(network) for network in self.webhook_networks)

    @property
    def webhook_give_up(self) -> timedelta:
        """`webhook_give_up_hours` as a timedelta."""
        return timedelta(hours=self.webhook_give_up_hours)
