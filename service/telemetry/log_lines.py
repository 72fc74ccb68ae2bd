"""Log lines as JSON objects, for programs that collect logs."""

import json
import logging
from datetime import UTC, datetime

from service.telemetry.tracing import current_trace_id

__all__ = ["JsonLines"]


class JsonLines(logging.Formatter):
    """One JSON object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, `request_id` and `process` (its
    number); `exception` with the traceback, and `trace_id` in a request or an update that is traced, where there are
    any.

    It says what the lines of text say and nothing more, so it holds no secrets either.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
            "process": record.process,
        }
        if (trace_id := current_trace_id()) is not None:
            fields["trace_id"] = trace_id
        exception = [self.formatException(record.exc_info)] if record.exc_info else []
        if record.stack_info:
            exception.append(self.formatStack(record.stack_info))
        if exception:
            fields["exception"] = "\n".join(exception)
        return json.dumps(fields, ensure_ascii=False)
