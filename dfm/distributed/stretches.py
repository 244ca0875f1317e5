"""Short rounds, several in one task: a worker trains all replicas in its threads, and nothing travels between.

A round is a few tasks of Dask, whose messages cost processors as much time as some ten thousand rows do. Where all
workers are on this machine they share its processors, so that one of them can do the work of all; and a stretch of
rounds is, like each of them, a function of parameters and rows, which is computed again where a worker is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from distributed import Future

from dfm.data.accounting import RowAccount
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
    if n_blocks > 1:
        return 1
    account = prepared.account
    return _rounds_of(run, account.accepted, _entries_of_a_row(account), table_bytes(run, prepared.summary))


def may_be_together(run: Run) -> bool:
    """Whether several rounds are begun together, as far as one can tell before rows are read."""
    training = run.job.training
    if training.validate == "average" or training.n_replicas == 1:
        return False
    return _rounds_of(run, run.inputs.n_rows, len(run.inputs.schema.fields), 0) > 1


def _rounds_of(run: Run, n_rows: int, of_a_row: float, n_bytes: int) -> int:
    """Rounds of so many rows, of so many entries each, that make a stretch. n_bytes: of the table."""
    plan, layout = run.inputs.plan, run.work.layout
    if not _fit_one(run, n_rows, of_a_row):
        return 1
    per_feature = layout.n_numbers(1, 1, 0) - layout.n_numbers(0, 0, 0)
    per_entry = per_feature * (1 + family_of(layout.family).cost_of_fields * of_a_row)
    of_a_round = of_a_row * n_rows * per_entry * plan.longest_round / plan.n_slices + n_bytes / 4
    return max(1, min(int(_MOST_NUMBERS / max(of_a_round, 1.0)), plan.n_slices))


def _entries_of_a_row(account: RowAccount) -> float:
    return account.entries.n_entries / max(account.entries.n_rows, 1)


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
    n_rows = prepared.account.accepted + prepared.validation_account.accepted
    if not _fit_one(run, n_rows, _entries_of_a_row(prepared.account)):
        return None
    addresses = run.watch.addresses()
    return _judged_near(run, prepared, addresses[home % len(addresses)], addresses)


def _judged_near(run: Run, prepared: Prepared, near: str, addresses: Sequence[str]) -> list[Future]:
    with prepared.lock:
        if near not in prepared.judged:
            prepared.judged[near] = _judged(run, prepared, near, addresses)
        return prepared.judged[near]


def _judged(run: Run, prepared: Prepared, near: str, addresses: Sequence[str]) -> list[Future]:
    if prepared.origin is not None:
        n_factored, parts = prepared.summary.n_factored, _judged_near(run, prepared.origin, near, addresses)
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
