"""`python -m dfm.distributed.retire`: hand this worker's results to the others before its pod is ended.

A worker that just dies is no loss either, but what it held is computed again. For a container's preStop hook: the
worker is found by DASK_WORKER_NAME, the scheduler by DASK_SCHEDULER_ADDRESS.
"""

from __future__ import annotations

import os
import sys

from distributed import Client

from dfm.distributed.cluster.remote import workers_of

PATIENCE = 15.0
"""Seconds: within the grace period of nodes that are taken away at short notice."""


def retire(name: str, timeout: float = PATIENCE) -> list[str]:
    """Ask the scheduler to move a worker's results and to let it go; returns the workers that were."""
    with Client(timeout=timeout, set_as_default=False) as client:
        workers = workers_of(client).items()
        mine = [address for address, worker in workers if worker["name"] == name]
        if mine and len(workers) > len(mine):
            client.retire_workers(workers=mine, close_workers=True)
        return mine


def main() -> None:
    """Retire the worker of this container; a scheduler that is gone is no reason to stay."""
    try:
        found = retire(os.environ["DASK_WORKER_NAME"])
        print(f"retired {', '.join(found) or 'nothing'}", file=sys.stderr)
    except (OSError, ValueError, KeyError) as error:
        print(f"not retired: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
