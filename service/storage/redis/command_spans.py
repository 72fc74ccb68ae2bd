"""Spans of the commands that the client sends to Redis within a sampled trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from service.telemetry.tracing import Tracing

__all__ = ["traced_client"]


def traced_client(tracing: Tracing) -> type[Redis]:
    """The class of a client that makes a span of each command and each pipeline. It has the names of the commands, and
    no keys, since these hold ids of users.

    Args:
        tracing: makes the spans.
    """

    @contextmanager
    def span(name: str, **more: str | int) -> Iterator[None]:
        if not tracing.is_recording():
            yield
            return
        made = tracing.start_client(name, {"db.system.name": "redis", "db.operation.name": name, **more})
        try:
            yield
        except Exception as error:
            made.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            made.end()

    class TracedPipeline(Pipeline):
        async def execute(self, raise_on_error: bool = True) -> list[Any]:
            with span("PIPELINE", **{"db.operation.batch.size": len(self)}):
                return await super().execute(raise_on_error)

    class TracedRedis(Redis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            with span(str(args[0])):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

        def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
            return TracedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    return TracedRedis
