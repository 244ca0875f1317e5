"""Short rounds, several in one task: a worker trains all replicas in its threads, and nothing travels between.

A round is a few tasks of Dask, whose messages cost processors as much time as some ten thousand rows do. Where all
workers are on this machine they share its processors, so that one of them can do the work of all; and a stretch of
rounds is, like each of them, a function of parameters and rows, which is computed again where a worker is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from distributed import Future

from dfm.distributed.cluster.remote import least_memory
from dfm.distributed.cluster.watch import home_of
from dfm.distributed.preparation_tasks import with_factored
from dfm.distributed.prepare import Prepared, judged_near, places_to_judge, replica_near
from dfm.distributed.run import Run
from dfm.distributed.tuning import table_bytes
from dfm.kernels.families.registry import family_of
from dfm.training.backends import NUMBA

_MOST_NUMBERS = 1 << 30
"""Parameters of the entries of a stretch, and of the tables that it merges: a few tenths of a second, which checkpoints
and a word to stop wait.
"""
_MOST_BYTES = 1 << 29
"""Partitions of all replicas: of so many rows the messages are a small part."""
_PART_OF_MEMORY = 4
"""The part of a worker's memory that they take at most: what it maps of files counts as its own."""
_ENTRY, _ROW = 8, 12
"""Bytes of an entry, its index and value, and of a row beside its entries, at most."""


def rounds_together(run: Run, prepared: Prepared, n_blocks: int) -> int:
    """Rounds that are best begun together; 1: each is tasks of its own. n_blocks: of the table."""
    plan, account = run.inputs.plan, prepared.account
    of_a_row = account.entries.n_entries / max(account.entries.n_rows, 1)
    if n_blocks > 1 or not _fit_one(run, account.accepted, of_a_row):
        return 1
    layout = run.work.layout
    per_feature = layout.n_numbers(1, 1, 0) - layout.n_numbers(0, 0, 0)
    per_entry = per_feature * (1 + family_of(layout.family).cost_of_fields * of_a_row)
    n_entries = of_a_row * account.accepted
    of_a_round = n_entries * per_entry * plan.longest_round / plan.n_slices + table_bytes(run, prepared.summary) / 4
    return max(1, min(int(_MOST_NUMBERS / max(of_a_round, 1.0)), plan.n_slices))


def may_be_together(run: Run) -> bool:
    """Whether rounds may be begun together, as far as one can tell before rows are read."""
    return _fit_one(run, run.inputs.n_rows, len(run.inputs.schema.fields))


def _fit_one(run: Run, n_rows: int, of_a_row: float) -> bool:
    """Whether so many rows, of so many entries each, are few enough for one worker that shares a disk with others."""
    n_bytes, memory = (_ENTRY * of_a_row + _ROW) * n_rows, least_memory(run.client)
    most = min(_MOST_BYTES, memory // _PART_OF_MEMORY if memory else _MOST_BYTES)
    return run.shares_disk and run.choice.backend is NUMBA and n_bytes <= most


def brought_together(run: Run, prepared: Prepared, home: int) -> list[Future]:
    """The partitions of every replica on the worker of this number, of several on this machine: it opens the files that
    others have written, once for all trainings. Whole groups, of rows from all tasks, are sent to it.
    """
    if run.work.spec.is_paired:
        return prepared.replicas
    addresses = run.watch.addresses()
    near = addresses[home % len(addresses)]
    with prepared.lock:
        if near not in prepared.opened:
            prepared.opened[near] = _opened(run, prepared, home, near, addresses)
        return prepared.opened[near]


def judged_together(run: Run, prepared: Prepared, home: int) -> list[Future] | None:
    """The rows to validate on, on that worker, too; None where they are too many."""
    addresses, account = run.watch.addresses(), prepared.account
    near, of_a_row = addresses[home % len(addresses)], account.entries.n_entries / max(account.entries.n_rows, 1)
    if not _fit_one(run, account.accepted + prepared.validation_account.accepted, of_a_row):
        return None
    with prepared.lock:
        if near not in prepared.judged:
            prepared.judged[near] = _judged(run, prepared, home, near, addresses)
        return prepared.judged[near]


def _judged(run: Run, prepared: Prepared, home: int, near: str, addresses: Sequence[str]) -> list[Future]:
    if prepared.origin is not None:
        n_factored, parts = prepared.summary.n_factored, judged_together(run, prepared.origin, home) or []
        return [run.watch.submit(with_factored, part, n_factored, near=near) for part in parts]
    how = prepared.held_out, prepared.vocabulary, prepared.vocabulary_key
    return [
        part if home_of(*place, addresses) == near else judged_near(near, run, *how, number)
        for number, (part, place) in enumerate(zip(prepared.validation, places_to_judge(run), strict=True))
    ]


def _opened(run: Run, prepared: Prepared, home: int, near: str, addresses: Sequence[str]) -> list[Future]:
    if prepared.origin is not None:
        n_factored, parts = prepared.summary.n_factored, brought_together(run, prepared.origin, home)
        return [run.watch.submit(with_factored, part, n_factored, near=near) for part in parts]
    n_replicas, how = run.inputs.plan.n_replicas, (prepared.reading, prepared.vocabulary, prepared.vocabulary_key)
    return [
        replica if home_of(number, n_replicas, addresses) == near else replica_near(near, run, *how, number)
        for number, replica in enumerate(prepared.replicas)
    ]
