"""Fitted estimators as lazy predictions carry them: a graph names one by the digest of its content, whatever its size.

Each graph that is computed passes through the scheduler, so a model does not belong there. Workers of this machine read
it from a file that this process keeps, once per process; those of other machines fetch it from the cluster whose client
was the current one at `predict`, where tasks keep it. Schedulers without a cluster find it in this process.
"""

from __future__ import annotations

import collections
import hashlib
import os
import pickle
import tempfile
import threading
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import Client, Future, get_worker, worker_client

from dfm.distributed.cluster.connect import shares_disk
from dfm.distributed.cluster.watch import Watch
from dfm.errors import ClusterError

_INLINE = 1 << 16
"""Bytes up to which a pickled estimator travels in the graph, like any other argument."""
_RECENT = 8
"""Models that are kept though no graph of this process names them any more: one may have been sent off before."""
_LOADED = 2
"""Models that a worker process keeps."""
_PATIENCE = 60.0

_lock = threading.Lock()
_kept: weakref.WeakValueDictionary[tuple[str, str], _Kept] = weakref.WeakValueDictionary()
_recent: collections.deque[_Kept] = collections.deque(maxlen=_RECENT)
_made_here: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_loaded: collections.OrderedDict[str, Any] = collections.OrderedDict()


class Scorer:
    """A fitted estimator, or where to find it.

    digest: of its pickle. data: the pickle, where it is small; else path: of a file with it, and key: of a task that
    keeps it on a cluster, empty where there is none.
    """

    def __init__(self, digest: str, data: bytes, path: str, key: str) -> None:
        self.digest, self._data, self._path, self._key = digest, data, path, key
        self._estimator: Any = None
        self._where: _Kept | None = None

    @classmethod
    def of(cls, estimator: Any) -> Scorer:
        """The scorer of an estimator of this process, which keeps it for workers to come."""
        data = cloudpickle.dumps(estimator, protocol=pickle.HIGHEST_PROTOCOL)
        digest = hashlib.sha256(data).hexdigest()
        if len(data) <= _INLINE:
            made = cls(digest, data, "", "")
        else:
            where = _keep(digest, data)
            made = cls(digest, b"", where.path, where.key)
            made._where = where
        made._estimator = _made_here[digest] = estimator
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Scorer, (self.digest, self._data, self._path, self._key)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "dfm-scorer", self.digest

    def estimator(self) -> Any:
        """The estimator. ClusterError where this process has no way to it."""
        if self._estimator is not None:
            return self._estimator
        with _lock:
            found = _made_here.get(self.digest)
            if found is None and self.digest in _loaded:
                _loaded.move_to_end(self.digest)
                found = _loaded[self.digest]
            if found is None and (data := self._data or self._read()):
                found = _load(self.digest, data)
        if found is None:  # not within the lock: what waits for the cluster may wait for a task of this process
            data = _fetch(self._key)
            with _lock:
                found = _loaded[self.digest] if self.digest in _loaded else _load(self.digest, data)
        return found

    def _read(self) -> bytes:
        """The pickle in the file; nothing where this machine has no such file."""
        try:
            data = Path(self._path).read_bytes()
        except OSError:
            return b""
        return data if hashlib.sha256(data).hexdigest() == self.digest else b""


def _load(digest: str, data: bytes) -> Any:
    _loaded[digest] = pickle.loads(data)
    while len(_loaded) > _LOADED:
        _loaded.popitem(last=False)
    return _loaded[digest]


class _Kept:
    """The pickle of an estimator in a file of this process, and on a cluster whose workers do not see that file."""

    def __init__(self, digest: str, data: bytes, client: Client | None) -> None:
        folder = tempfile.TemporaryDirectory(prefix="dfm-")
        weakref.finalize(self, folder.cleanup)
        self.path = _written(os.path.join(folder.name, f"{digest[:16]}.pickle"), data)
        self.future: Future | None = None if client is None else Watch(client, _PATIENCE).keep(data)

    @property
    def key(self) -> str:
        """The key of the task that keeps it; empty where none does."""
        return "" if self.future is None else str(self.future.key)


def _written(path: str, data: bytes) -> str:
    Path(path).write_bytes(data)
    return path


def _keep(digest: str, data: bytes) -> _Kept:
    """The place of the pickle: it is written once, however many predictions name it."""
    client = _client_elsewhere()
    name = digest, "" if client is None else client.id
    with _lock:
        found = _kept.get(name)
    if found is None:
        found = _Kept(digest, data, client)
    with _lock:
        _kept[name] = found
        _recent.append(found)
    return found


def _client_elsewhere() -> Client | None:
    """The current client, where its workers do not see files of this machine."""
    try:
        client = Client.current()
    except ValueError:
        return None
    is_usable = client.status == "running" and not client.asynchronous and not getattr(client, "_asynchronous", False)
    return client if is_usable and not shares_disk(client) else None


def _fetch(key: str) -> bytes:
    """The pickle that a task of this worker's cluster keeps."""
    out_of_reach = ClusterError(
        "the model of this prediction is not within reach of this worker: its process has ended, or the client of "
        "this cluster was not the current one at predict; predict within `with client.as_current():`, or save the "
        "model (model_.save) and use dfm.predict"
    )
    try:
        here = get_worker().address
    except ValueError:
        here = ""
    if not key or not here:
        raise out_of_reach
    with worker_client(timeout=_PATIENCE) as client:
        # A task, as Dask tells those alone of a key that nobody keeps any more.
        copy = client.submit(_itself, Future(key, client), pure=False, workers=[here], allow_other_workers=True)
        try:
            data: bytes = copy.result()
        except CancelledError as error:
            raise out_of_reach from error
    return data


def _itself(data: bytes) -> bytes:
    return data
