"""Log lines on the standard error: one format for all processes of the service, and for uvicorn in them."""

import logging

from service.context import NameRequest
from service.telemetry.log_lines import JsonLines
from service.telemetry.settings import TelemetrySettings

__all__ = ["configure_logging"]

LINE = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(request_id)s: %(message)s"

NOISY = ("asyncio", "httpcore", "numba", "urllib3")
"""Libraries whose DEBUG lines would drown those of the service: machine code as it is compiled, each socket."""


def configure_logging(settings: TelemetrySettings) -> None:
    """Write log lines to the standard error, each with its process id and the id of the request that it belongs to.

    Args:
        settings: say how lines look, and which are written.
    """
    output = logging.StreamHandler()
    output.addFilter(NameRequest())
    output.setFormatter(JsonLines() if settings.log_format == "json" else logging.Formatter(LINE))
    logging.basicConfig(level=settings.log_level, handlers=[output])
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs, and those of webhooks may hold secrets
    if settings.log_level == "DEBUG":
        for library in NOISY:
            logging.getLogger(library).setLevel(logging.INFO)
