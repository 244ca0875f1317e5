"""`python -m dfm.distributed.retire`: hand this worker's results to the others before its pod is ended.

A worker that just dies is no loss either, but what it held is computed again. For a container's preStop hook: the
worker is found by DASK_WORKER_NAME, the scheduler by DASK_SCHEDULER_ADDRESS.

At the end of a job the scheduler goes at the same moment, and with it the worker: a hook that is still at work when its
container ends counts as failed. So the scheduler is looked for before Dask is imported, and the worker is not closed.
"""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlsplit

PATIENCE = 15.0
"""Seconds: within the grace period of nodes that are taken away at short notice."""
_LOOK = 2.0


def retire(name: str, timeout: float = PATIENCE) -> list[str]:
    """Ask the scheduler to move a worker's results and to give it no more work; returns the workers that were."""
    from distributed import Client

    from dfm.distributed.cluster.remote import workers_of

    with Client(timeout=timeout, set_as_default=False) as client:
        workers = workers_of(client).items()
        mine = [address for address, worker in workers if worker["name"] == name]
        if mine and len(workers) > len(mine):
            client.retire_workers(workers=mine, close_workers=False)
        return mine


def scheduler_is_there(address: str) -> bool:
    """Whether anybody listens at tcp://HOST:PORT or tls://HOST:PORT; true for other addresses, which nobody can ask."""
    parts = urlsplit(address)
    if not parts.hostname or not parts.port:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port), _LOOK).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Retire the worker of this container; a scheduler that is gone is no reason to stay."""
    try:
        if not scheduler_is_there(os.environ.get("DASK_SCHEDULER_ADDRESS", "")):
            print("not retired: the scheduler is gone", file=sys.stderr)
            return
        found = retire(os.environ["DASK_WORKER_NAME"])
        print(f"retired {', '.join(found) or 'nothing'}", file=sys.stderr)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        print(f"not retired: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
