"""What a server tells Prometheus; nothing in it names a speaker."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specialize.serve.batcher import Batch
from specialize.serve.service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one server."""

    def __init__(self):
        self._registry = CollectorRegistry()
        name = "specialize"
        self.requests = Counter(f"{name}_requests", "Requests.", ["route", "status"], registry=self._registry)
        self.latency = Histogram(
            f"{name}_request_seconds", "From request to response.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.audio = Counter(f"{name}_audio_seconds", "Audio that was transcribed.", registry=self._registry)
        self._rows = Histogram(f"{name}_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=self._registry)
        self._waited = Histogram(
            f"{name}_batch_wait_seconds", "Wait of a batch's first row.", buckets=_SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            f"{name}_batch_seconds", "Computing of a batch.", buckets=_SECONDS, registry=self._registry
        )
        self.under_way = Gauge(f"{name}_requests_under_way", "Requests being served.", registry=self._registry)

    def batch(self, batch: Batch) -> None:
        """Counts a batch."""
        self._rows.observe(batch.rows)
        self._waited.observe(batch.waited)
        self._batches.observe(batch.seconds)

    def watch(self, service: Service) -> None:
        """Reads what a service holds whenever it is asked."""
        self._registry.register(_Held(service))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Held(Collector):
    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> list[Metric]:
        recognizer = self._service.recognizer
        cache = recognizer.cache.counts()
        values = {
            "rows_waiting": ("Utterances that wait for a batch.", self._service.batcher.waiting),
            "submodels_in_memory": ("Submodels in the memory of the host.", cache.resident),
            "submodel_bytes": ("Bytes of them.", cache.bytes),
            "cache_hits": ("Submodels that were in memory when they were asked for.", cache.hits),
            "cache_misses": ("Submodels that were read from the store.", cache.misses),
            "cache_evictions": ("Submodels that made room for others.", cache.evictions),
            "slots_taken": ("Slots on the device with a Submodel, of all specs.", sum(recognizer.held().values())),
        }
        return [GaugeMetricFamily(f"specialize_{name}", text, value) for name, (text, value) in values.items()]
