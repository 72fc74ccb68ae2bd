"""Log lines on the standard error: one format for all processes of the service."""

import logging

from service.context import NameRequest

__all__ = ["configure_logging"]


def configure_logging() -> None:
    """Write log lines to the standard error, each with its process id and the id of the request that it belongs to."""
    output = logging.StreamHandler()
    output.addFilter(NameRequest())
    line = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(request_id)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, handlers=[output])
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs, and those of webhooks may hold secrets
