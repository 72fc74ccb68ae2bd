"""The id of the request that is being answered, for log lines and rows of the audit.

It is a context variable. The tasks that a request starts for its own work (`service.tasks.start_for_caller`) and its
threads of `asyncio.to_thread` have the request's id. Tasks that work for several requests, or go on after the request
that started them (`start_alone`), have none.
"""

import logging
from contextvars import ContextVar

__all__ = ["NameRequest", "current_request_id"]

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)


class NameRequest(logging.Filter):
    """A logging filter that gives each record the `request_id` of the request in which it was made, else `-`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        record.request_id = current_request_id.get() or "-"
        return True
