"""Counters and times of a service, in the text format that Prometheus scrapes."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper ends of the histogram of times, in seconds."""


class Metrics:
    """Numbers of one process, from any of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[int] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._rows = self._reload_failures = 0

    def answered(self, code: int, n_rows: int, seconds: float) -> None:
        """Count a request for predictions and, where it got them, its rows and its time."""
        with self._lock:
            self._requests[code] += 1
            if code == 200:
                self._rows += n_rows
                self._seconds += seconds
                self._buckets[bisect_left(BUCKETS, seconds)] += 1

    def reload_failed(self) -> None:
        """Count a look at the model that ended in an error."""
        with self._lock:
            self._reload_failures += 1

    def text(self, version: int, is_ready: bool) -> str:
        """All of them as lines."""
        with self._lock:
            return "\n".join([*self._lines(version, is_ready), ""])

    def _lines(self, version: int, is_ready: bool) -> Iterator[str]:
        name = "dfm_serving"
        yield f"# TYPE {name}_requests_total counter"
        yield from (f'{name}_requests_total{{code="{code}"}} {n}' for code, n in sorted(self._requests.items()))
        yield f"# TYPE {name}_rows_total counter"
        yield f"{name}_rows_total {self._rows}"
        yield f"# TYPE {name}_seconds histogram"
        for place, end in enumerate((*BUCKETS, "+Inf")):
            yield f'{name}_seconds_bucket{{le="{end}"}} {sum(self._buckets[: place + 1])}'
        yield f"{name}_seconds_sum {self._seconds}"
        yield f"{name}_seconds_count {sum(self._buckets)}"
        yield f"# TYPE {name}_reload_failures_total counter"
        yield f"{name}_reload_failures_total {self._reload_failures}"
        yield f"# TYPE {name}_model_version gauge"
        yield f"{name}_model_version {version}"
        yield f"# TYPE {name}_ready gauge"
        yield f"{name}_ready {int(is_ready)}"
