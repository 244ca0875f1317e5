"""An HTTP server that answers like a Kubernetes API server, keeps what it is given, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]
COLLECTIONS = ("pods", "daskjobs", "events", "deployments", "configmaps", "poddisruptionbudgets")
REASONS = {403: "Forbidden", 404: "NotFound", 409: "AlreadyExists", 410: "Expired", 422: "Invalid", 503: "Unavailable"}


@dataclass
class Fault:
    """What happens to the next request of a method whose path ends so: a status, or "drop" (the connection breaks)."""

    method: str
    ending: str
    what: int | str
    after: bool = False
    """Whether the request takes effect all the same: its answer is lost."""
    message: str = "told so by the test"


@dataclass
class ApiServer:
    """The server's store. `requests`: (method, path, query) of all that was asked."""

    objects: dict[str, Manifest] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    events: list[Manifest] = field(default_factory=list)
    """What every watch is told."""
    watched: list[dict[str, str]] = field(default_factory=list)
    on_create: Callable[[Manifest], None] = lambda body: None
    away: int | str | None = None
    """What every request meets as long as it is set: a status, or "drop"."""
    away_from: int = 0
    """The request, counted from 1, with which the server goes away; 0: none."""
    away_seconds: float = 0.0
    on_return: Callable[[], None] = lambda: None
    version: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, path: str, body: Manifest) -> Manifest:
        """Store an object under the path of its collection."""
        with self.lock:
            self.version += 1
            metadata = {"uid": f"uid-{self.version}", **body["metadata"], "resourceVersion": str(self.version)}
            stored = {**body, "metadata": metadata}
            self.objects[f"{path}/{metadata['name']}"] = stored
            return stored

    def go_away_when_due(self) -> None:
        """Be away for `away_seconds` from the request `away_from` on."""
        with self.lock:
            if not self.away_from or len(self.requests) < self.away_from:
                return
            self.away_from, self.away = 0, "drop"

        def return_() -> None:
            self.away = None
            self.on_return()

        threading.Timer(self.away_seconds, return_).start()

    def delete(self, path: str) -> None:
        """Delete an object and, as the garbage collector does, what it owns; the operator owns through its DaskJob."""
        with self.lock:
            gone = self.objects.pop(path)
            name, uid = gone["metadata"]["name"], gone["metadata"].get("uid")
            for other, body in list(self.objects.items()):
                owners = [owner["uid"] for owner in body["metadata"].get("ownerReferences", [])]
                of_operator = body["kind"] in ("Pod", "DaskCluster", "Deployment") and gone["kind"] == "DaskJob"
                labels = body["metadata"].get("labels", {})
                if uid in owners or (of_operator and labels.get("dask.org/cluster-name") == name):
                    del self.objects[other]

    def kinds(self) -> list[str]:
        return sorted(body["kind"] for body in self.objects.values())

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and path.endswith(fault.ending):
                    self.faults.remove(fault)
                    return fault
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        store = self.server.store
        store.requests.append((self.command, parts.path, query))
        store.go_away_when_due()
        fault = store.fault_for(self.command, parts.path + ("?watch" if query.get("watch") else ""))
        if store.away is not None:
            return self._misbehave(Fault(self.command, "", store.away))
        if fault is not None and not fault.after:
            return self._misbehave(fault)
        status, answer = self._answer(parts.path, query, body)
        if fault is not None:
            return self._misbehave(fault)
        if answer is not None:
            self._json(status, answer)
        return None

    do_GET = do_POST = do_DELETE = do_PATCH = _serve

    def _misbehave(self, fault: Fault) -> None:
        if fault.what == "drop":
            self.close_connection = True
            self.connection.close()
        else:
            self._json(int(fault.what), self._status(int(fault.what), fault.message))

    def _answer(self, path: str, query: dict[str, str], body: Manifest) -> tuple[int, Manifest | None]:
        store = self.server.store
        if self.command == "POST":
            if f"{path}/{body['metadata']['name']}" in store.objects:
                return 409, self._status(409, "it exists already")
            stored = store.put(path, body)
            store.on_create(stored)
            return 201, stored
        if path.endswith("/log"):
            return self._log(path, query)
        if self.command == "GET" and path.rsplit("/", 1)[-1] in COLLECTIONS:
            return self._list(path, query)
        found = store.objects.get(path)
        if found is None:
            return 404, self._status(404, f'"{path.rsplit("/", 1)[-1]}" not found')
        if self.command == "DELETE":
            wanted = body.get("preconditions", {}).get("resourceVersion")
            if wanted and wanted != found["metadata"]["resourceVersion"]:
                return 409, self._status(409, "the object has been modified")
            store.delete(path)
        if self.command == "PATCH":
            found["metadata"] |= body["metadata"]
        return 200, found

    def _list(self, path: str, query: dict[str, str]) -> tuple[int, Manifest | None]:
        store = self.server.store
        if query.get("watch"):
            store.watched.append(query)
            self._stream("".join(f"{json.dumps(event)}\n" for event in store.events).encode())
            return 200, None
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        without = query.get("fieldSelector", "").partition("type!=")[2]
        items = [
            body for name, body in store.objects.items()
            if name.startswith(path + "/") and wanted.items() <= body["metadata"].get("labels", {}).items()
            and not (without and body.get("type") == without)
        ]  # fmt: skip
        return 200, {"items": items, "metadata": {"resourceVersion": str(store.version)}}

    def _log(self, path: str, query: dict[str, str]) -> tuple[int, Manifest | None]:
        lines = self.server.store.logs.get(path.split("/")[-2], [])
        since = query.get("sinceTime", "")[:19]  # to the second, as the real one
        self._stream("".join(f"{line}\n" for line in lines if line[:19] >= since).encode())
        return 200, None

    def _status(self, code: int, message: str) -> Manifest:
        return {"kind": "Status", "status": "Failure", "code": code, "reason": REASONS.get(code), "message": message}

    def _json(self, status: int, body: Manifest) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(data), 100):  # lines fall apart between chunks
            chunk = data[start : start + 100]
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    store: ApiServer


@contextlib.contextmanager
def api_server(kubeconfig: Path, namespace: str = "team") -> Iterator[ApiServer]:
    """A running server; `kubeconfig` is written such that clients find it."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.store = ApiServer()
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "me", "user": {"token": "a token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me", "namespace": namespace}}],
        }  # fmt: skip
        kubeconfig.write_text(json.dumps(config))
        try:
            yield server.store
        finally:
            server.shutdown()
            thread.join()
