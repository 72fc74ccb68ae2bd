"""Spans of the statements that SQLAlchemy sends within a sampled trace."""

from typing import Any

from sqlalchemy import Engine, event

from service.telemetry.tracing import Tracing

__all__ = ["trace_statements"]

SPAN = "asmg.span"
"""Where a connection keeps the span of the statement that it runs; it runs one at a time."""


def trace_statements(engine: Engine, tracing: Tracing) -> None:
    """Make a span of each statement from now on. It has the statement's text, in which values are `$1`, `$2`, ….

    Args:
        engine: of whose connections.
        tracing: makes the spans.
    """

    def begin(connection: Any, _cursor: object, statement: str, *_: object) -> None:
        if tracing.is_recording():
            words = statement.split(None, 1)
            attributes = {"db.system.name": "postgresql", "db.query.text": statement}
            connection.info[SPAN] = tracing.start_client(words[0].upper() if words else "statement", attributes)

    def end(connection: Any, *_: object) -> None:
        if (span := connection.info.pop(SPAN, None)) is not None:
            span.end()

    def fail(failed: Any) -> None:
        if failed.connection is not None and (span := failed.connection.info.pop(SPAN, None)) is not None:
            span.set_attribute("error.type", type(failed.original_exception).__name__)
            span.end()

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", end)
    event.listen(engine, "handle_error", fail)
