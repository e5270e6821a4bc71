"""OpenTelemetry with another implementation of its protocol at the other end, and another clock beside it."""

import concurrent.futures
import json
import time
import urllib.request

import grpc
import pytest
from conftest import MESSAGES, Server, wait_until
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps the points of histograms that came last, by name."""

    def __init__(self):
        self.points = {}

    def Export(self, request, context):
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.points |= {metric.name: list(metric.histogram.data_points) for metric in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps all spans."""

    def __init__(self):
        self.spans = []

    def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector():
    """Where it listens, and what comes."""
    metrics, traces = Metrics(), Traces()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics, server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(traces, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", metrics, traces
    server.stop(None)


def stream(url):
    """Seconds to the first token, and to the end."""
    body = json.dumps({"messages": MESSAGES, "stream": True, "max_tokens": 100, "ignore_eos": True}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    start, first = time.perf_counter(), None
    with urllib.request.urlopen(request) as response:
        for line in response:
            if first is None and line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
    return first, time.perf_counter() - start


def test_times_are_those_that_a_client_measures(collector):
    endpoint, metrics, traces = collector
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "200"}
    with Server(environment=environment) as server:
        measured = [stream(server.url) for _ in range(20)]
        name = "gen_ai.server.request.duration"
        wait_until("sent", lambda: sum(point.count for point in metrics.points.get(name, [])) == 20)
    means = [sum(times) / len(times) for times in zip(*measured)]
    for name, mean in zip(("gen_ai.server.time_to_first_token", name), means):
        [point] = metrics.points[name]
        told = point.sum / point.count
        # A connection is made and a request sent before the server's clock starts.
        assert point.count == 20 and told <= mean <= told + max(0.010, 0.1 * told), (name, told, mean)
    operations = [span for span in traces.spans if span.name == "chat stories"]
    assert len(operations) == 20
