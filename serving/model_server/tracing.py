"""A span of OpenTelemetry for every request, and one for each of its parts."""

import os
from collections.abc import Mapping

from serving.model_server.errors import Code, invalid
from serving.model_server.journal import Entry

_SERVICE = "transduce-model-server"


class Tracing:
    """Sends entries to a collector, as OpenTelemetry's own environment variables say.

    A caller that sends a `traceparent` sees the spans in its own trace.

    Raises:
        ServingError: OpenTelemetry is not installed.
    """

    def __init__(self):
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise invalid(
                f"--enable_tracing needs OpenTelemetry ({error}): pip install 'transduce[tracing]'"
            ) from None
        self._trace = trace
        self._extract = propagate.extract
        name = os.environ.get("OTEL_SERVICE_NAME", _SERVICE)
        resource = Resource.create({"service.name": name})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(_SERVICE)

    def __call__(self, entry: Entry) -> None:
        """Sends the spans of one entry."""
        span = self._tracer.start_span(
            f"{entry.entrypoint} {entry.method}",
            context=self._extract(entry.headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=_nanoseconds(entry.start),
            attributes=_attributes(entry),
        )
        inside = self._trace.set_span_in_context(span)
        for part in entry.parts:
            start = _nanoseconds(part.start)
            child = self._tracer.start_span(part.name, context=inside, start_time=start)
            child.end(_nanoseconds(part.start + part.seconds))
        if entry.code is not Code.OK:
            span.set_status(self._trace.StatusCode.ERROR, entry.message)
        span.end(_nanoseconds(entry.start + entry.seconds))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _attributes(entry: Entry) -> Mapping[str, str | int]:
    return {
        "model.name": entry.model,
        "model.version": entry.version,
        "model.signature": entry.signature,
        "request.id": entry.id,
        "rpc.status": entry.code.name,
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
