"""What /metrics gives, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
ACCEPTED = Counter("clean_lm_jobs_accepted", "Jobs that were accepted", registry=REGISTRY)
FINISHED = Counter("clean_lm_jobs_finished", "Jobs by how they ended", ["state"], registry=REGISTRY)
FACTOR = Histogram("clean_lm_real_time_factor", "Seconds of new audio per second, all takes of a job together",
                   buckets=(0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 20), registry=REGISTRY)  # fmt: skip
ANSWERS = Counter("clean_lm_http_responses", "Responses by status", ["status"], registry=REGISTRY)
WAITING = Gauge("clean_lm_jobs_waiting", "Jobs in the queue", registry=REGISTRY)
RUNNING = Gauge("clean_lm_jobs_running", "Jobs that run", registry=REGISTRY)
RESIDENT = Gauge("clean_lm_resident_weights_bytes", "Bytes of weights that are loaded", registry=REGISTRY)


def text(counts: Callable[[], tuple[int, int]], resident: Callable[[], int]) -> bytes:
    """All of them, as they are now."""
    waiting, running = counts()
    WAITING.set(waiting)
    RUNNING.set(running)
    RESIDENT.set(resident())
    return generate_latest(REGISTRY)
