"""Whether a process traces, by the standard variables of OpenTelemetry.

Traces are on where the variables name a receiver (`OTEL_EXPORTER_OTLP_ENDPOINT`, or that of traces alone) or an
exporter (`OTEL_TRACES_EXPORTER`: `otlp` or `console`). The sampler, the resource, headers and timeouts are those of the
standard variables too; OpenTelemetry's own library reads them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service import __version__
from service.errors import ConfigurationError
from service.telemetry.tracing import use_provider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["is_wanted", "traced_process"]

EXPORTERS = ("otlp", "console", "none")
"""Values of `OTEL_TRACES_EXPORTER`."""
PROTOCOL = "http/protobuf"
"""The only value of `OTEL_EXPORTER_OTLP_PROTOCOL`: by gRPC the service would have to bring 20 MB more."""
FLUSH_SECONDS = 5
"""How long a process that ends sends the spans that it has not sent yet."""


@contextmanager
def traced_process(name: str) -> Iterator[None]:
    """The life of a process, which traces if the variables of OpenTelemetry say so.

    Args:
        name: of the service, where `OTEL_SERVICE_NAME` does not give another: `asmg-api` or `asmg-worker`.

    Raises:
        ConfigurationError: the extra `otel` is not installed, or a variable has a value that is not supported.
    """
    if not is_wanted(os.environ):
        yield
        return
    provider = _configured_provider(name)
    try:
        with use_provider(provider):
            yield
    finally:
        provider.force_flush(FLUSH_SECONDS * 1000)
        provider.shutdown()


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if exporter := environment.get("OTEL_TRACES_EXPORTER", ""):
        return exporter != "none"
    return bool(environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def _configured_provider(name: str) -> "TracerProvider":
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter not in EXPORTERS:
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER: expected one of {', '.join(EXPORTERS)}; received {exporter}")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := os.environ.get(variable) or PROTOCOL) != PROTOCOL:
            raise ConfigurationError(f"{variable}: expected {PROTOCOL}; received {protocol}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise ConfigurationError(
            f"the OTEL_ variables ask for traces, which need the extra `otel` (asmg-service[otel]): {error}"
        ) from None
    default = {"service.version": __version__} | ({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": name})
    provider = TracerProvider(resource=Resource.create(default), shutdown_on_exit=False)
    sends = ConsoleSpanExporter() if exporter == "console" else OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(sends))
    return provider
