"""Traces by OpenTelemetry: of requests, of statements and commands within them, and of updates.

`service.processes.traces` switches them on. Where they are off OpenTelemetry's library is not imported (FastAPI imports
its interface), and those who would make spans find `active_tracing()` to be None once, when they are made.

Spans of statements, commands and waits exist within a sampled trace only: what goes on by itself, such as looking for
a new version four times a second, would fill any store of traces.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any

from service import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = [
    "Tracing",
    "active_tracing",
    "current_trace_id",
    "current_traceparent",
    "span",
    "trace_context",
    "use_provider",
]

Attributes = Mapping[str, str | int | float | bool]


class Tracing:
    """Makes the spans of this process.

    Args:
        provider: of OpenTelemetry's library.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context, trace
        from opentelemetry.sdk.trace import Tracer
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._attach, self._nothing = trace, context.attach, context.Context()
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("asmg", __version__)
        # For requests without a parent, which `samples` was asked about before: that decision is not made twice.
        self._decided = provider.get_tracer("asmg.requests", __version__)
        assert isinstance(self._decided, Tracer), "the library is not told to do nothing"
        self._decided.sampler, self._wanted = ALWAYS_ON, Decision.RECORD_AND_SAMPLE
        self._sampler, self._new_trace = provider.sampler, provider.id_generator.generate_trace_id

    def is_recording(self) -> bool:
        """Whether the code that asks runs within a sampled trace."""
        return self._trace.get_current_span().is_recording()

    def current(self) -> "Span":
        """The span that the code that asks runs in."""
        return self._trace.get_current_span()

    def samples(self, name: str) -> bool:
        """Whether the sampler wants a request in whose trace there is nothing yet.

        To ask it first is cheaper than to make a span that is not sampled: 5 µs instead of 25.
        """
        kind = self._trace.SpanKind.SERVER
        return self._sampler.should_sample(self._nothing, self._new_trace(), name, kind).decision is self._wanted

    @contextmanager
    def server_span(self, name: str, traceparent: str | None, tracestate: str | None) -> Iterator["Span"]:
        """The span of a request, whose trace the client may have begun. If it has not, ask `samples` before.

        Args:
            name: of the span.
            traceparent: that header of the request (W3C Trace Context).
            tracestate: that header.
        """
        tracer, parent = self._decided, self._nothing
        if traceparent is not None:
            more = {} if tracestate is None else {"tracestate": tracestate}
            tracer, parent = self._tracer, self._extract({"traceparent": traceparent, **more})
        with tracer.start_as_current_span(
            name, parent, self._trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as made:
            yield made

    @contextmanager
    def root_span(self, name: str, attributes: Attributes, linked: Sequence[str]) -> Iterator["Span"]:
        """The span of work that begins a trace of its own.

        Args:
            name: of the span.
            attributes: of the span.
            linked: `traceparent`s of spans that led to it.
        """
        contexts = [
            self._trace.get_current_span(self._extract({"traceparent": given})).get_span_context() for given in linked
        ]
        links = [self._trace.Link(context) for context in contexts if context.is_valid]
        with self._tracer.start_as_current_span(name, self._nothing, attributes=attributes, links=links) as made:
            yield made

    def start_client(self, name: str, attributes: Attributes) -> "Span":
        """Begin a span of a question to a server; whoever begins it ends it."""
        return self._tracer.start_span(name, kind=self._trace.SpanKind.CLIENT, attributes=attributes)

    @contextmanager
    def child_span(self, name: str, attributes: Attributes) -> Iterator["Span"]:
        """A span within the current one."""
        with self._tracer.start_as_current_span(name, attributes=attributes) as made:
            yield made

    def traceparent(self) -> str | None:
        """The current span as a `traceparent`; None outside of a trace."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def context_of_current(self) -> Context:
        """A context that has the current span and nothing else of the caller's."""
        context = Context()
        context.run(self._attach, self._trace.set_span_in_context(self.current(), self._nothing))
        return context

    def _extract(self, carrier: Mapping[str, str]) -> Any:
        """The context that these headers describe."""
        return self._propagator.extract(carrier, self._nothing)


_active: Tracing | None = None


def active_tracing() -> Tracing | None:
    """Makes the spans of this process; None where traces are off."""
    return _active


@contextmanager
def use_provider(provider: "TracerProvider") -> Iterator[None]:
    """A block in which what this process makes traces with a provider."""
    global _active
    _active = Tracing(provider)
    try:
        yield
    finally:
        _active = None


@contextmanager
def span(name: str, attributes: Attributes | None = None) -> Iterator["Span | None"]:
    """A span within the current one; None where traces are off, or this one is not sampled."""
    if _active is None or not _active.is_recording():
        yield None
        return
    with _active.child_span(name, attributes or {}) as made:
        yield made


def current_trace_id() -> str | None:
    """The id of the current trace, 32 hexadecimal digits; None outside of one."""
    if _active is None:
        return None
    context = _active.current().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def current_traceparent() -> str | None:
    """The current span as a `traceparent` header; None outside of a trace."""
    return None if _active is None else _active.traceparent()


def trace_context() -> Context:
    """A context without a request in which work of several requests runs.

    Its spans belong to the trace of the request that happens to begin it.
    """
    return Context() if _active is None else _active.context_of_current()
