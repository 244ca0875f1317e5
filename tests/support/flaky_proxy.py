"""A proxy in front of an S3 server that now and then answers as a store under load does; imports nothing from dfm."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCESS_KEY, SECRET_KEY = "CANARYACCESSKEY", "canary-secret-of-the-store"
"""What must be found nowhere but in the environment."""
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'
SLOW_DOWN = (503, ERROR.format("SlowDown", "Please reduce your request rate."))
DENIED = (403, ERROR.format("AccessDenied", "Access Denied"))
INTERNAL_ERROR = (500, ERROR.format("InternalError", "We encountered an internal error. Please try again."))
KINDS = ("slow down", "internal error", "cut", "done but failed")
"""Refused, failed before or after the work was done, or cut off without an answer."""


class Faults:
    """How often, and which: `rate` of all requests fail, drawn by a seed; `counts` tells what was injected.

    Or the one with number `at` (from 1), or all from there on, in one way of `kinds`, or by `kill`, which is called
    before it is done ("killed") or when it is done and not answered ("killed after").
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.kinds: tuple[str, ...] = KINDS
        self.counts: Counter[str] = Counter()
        self.met: list[str] = []
        self.at, self.way, self.for_ever = 0, "", False
        self.kill: Callable[[], None] = lambda: None
        self._random = random.Random(7)
        self._lock = threading.Lock()

    def choose(self, at: int, way: str = "", for_ever: bool = False) -> None:
        """Begin to count, and let that request fail; 0: none."""
        with self._lock:
            self.met, self.at, self.way, self.for_ever = [], at, way, for_ever

    def draw(self, request: str) -> str:
        """The fault of the next request, or nothing."""
        with self._lock:
            self.met.append(request)
            if self.at and (len(self.met) == self.at or (self.for_ever and len(self.met) > self.at)):
                self.counts[self.way] += 1
                return self.way
            fault = self._random.choice(self.kinds) if self._random.random() < self.rate else ""
            self.counts[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets, and the second one waited for 40 ms
    upstream: str
    faults: Faults

    def _serve(self) -> None:
        body = self._body()
        fault = self.faults.draw(f"{self.command} {self.path}")
        if fault == "killed":
            self.faults.kill()
        if fault == "slow down":
            self._answer(SLOW_DOWN[0], {"Content-Type": "application/xml"}, SLOW_DOWN[1].encode())
        elif fault == "denied":
            self._answer(DENIED[0], {"Content-Type": "application/xml"}, DENIED[1].encode())
        elif fault == "internal error":
            self._answer(INTERNAL_ERROR[0], {"Content-Type": "application/xml"}, INTERNAL_ERROR[1].encode())
        elif fault == "cut":
            self.close_connection = True
            self.connection.close()
        else:
            status, headers, data = self._forward(body)
            if fault == "killed after":
                self.faults.kill()
            if fault == "done but failed":
                status, headers, data = (
                    INTERNAL_ERROR[0],
                    {"Content-Type": "application/xml"},
                    INTERNAL_ERROR[1].encode(),
                )
            self._answer(status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        skipped = {"transfer-encoding", "connection", "content-length", "expect"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        with contextlib.closing(upstream):
            upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = upstream.getresponse()
            data = answer.read()
            kept = {
                name: value for name, value in answer.getheaders() if name.lower() not in skipped - {"content-length"}
            }
            return answer.status, kept, data

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            length = headers.get("Content-Length", headers.get("content-length", len(data)))
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were cut off leave without a word."""


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[tuple[str, Faults]]:
    """URL of a proxy in front of `upstream` (host:port), and its faults."""
    faults = Faults()
    handler = type("Handler", (_Handler,), {"upstream": upstream, "faults": faults})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
