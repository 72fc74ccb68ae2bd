"""Which request is being answered: log lines and audit rows name it without being told.

Each task has its own. Tasks of a request's own work (`service.tasks.start_for_caller`), and its threads of
`asyncio.to_thread`, have that of the request. What works for several requests, or goes on after the one that happened
to start it, has none (`start_alone`).
"""

import logging
from contextvars import ContextVar

__all__ = ["NameRequest", "current_request_id"]

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)


class NameRequest(logging.Filter):
    """Gives each log record its `request_id`: that of the request in which it was made, else `-`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        record.request_id = current_request_id.get() or "-"
        return True
