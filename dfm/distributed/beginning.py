"""The beginning of a run: on which workers it is, kernels compiled, rows hashed and placed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distributed import Client, Future

from dfm.data.coded_rows import are_long_runs
from dfm.distributed import backends, monitoring, rehearsal
from dfm.distributed.cluster import connect
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.preparation_events import vocabulary_event
from dfm.distributed.prepare import Prepared, plain_reading, prepare
from dfm.distributed.progress import follow, progress_of
from dfm.distributed.run import Event, OnEvent, Run
from dfm.distributed.stretches import may_be_together
from dfm.distributed.tuning import table_bytes
from dfm.model.warm_start import Start
from dfm.storage import files
from dfm.training.inputs import Inputs
from dfm.training.order import Order


def begin(order: Order, inputs: Inputs, warm: Start | None, client: Client, tell: OnEvent, run_id: str = "") -> Run:
    """The run on this cluster, which from now on hears of its events, by the run's id or the job's fingerprint."""
    job, watch = order.job, Watch(client, order.job.cluster.worker_timeout)
    tell = monitoring.observed(client, tell, _name(order, run_id), inputs.plan.rounds_until)
    tell(monitoring.placement_event(inputs.plan, watch.addresses()))
    knobs = order.work.backend, order.work.spec, watch.addresses(), job.training.deterministic
    return Run(
        order=order,
        inputs=inputs,
        warm=warm,
        watch=watch,
        shares_disk=connect.shares_disk(client),
        choice=backends.choose(client, *knobs),
        tell=tell,
        run_id=run_id,
    )


@contextlib.contextmanager
def begun(order: Order, inputs: Inputs, client: Client, tell: OnEvent) -> Iterator[Run]:
    """A block with a run that publishes nothing: where it ends well, the cluster hears of that."""
    run = begin(order, inputs, None, client, tell)
    yield run
    monitoring.tell_end(client, _name(order))


def _name(order: Order, run_id: str = "") -> str:
    """The label of a run in metrics and events."""
    return run_id or order.job.fingerprint()[:12]


def prepare_rows(run: Run) -> Prepared:
    """Rows hashed and placed, once kernels are compiled; workers of several threads do both at a time."""
    started = time.monotonic()
    warm_ups = _WarmUps(run, warm_up(run))
    warm_ups.tell()
    prepared = prepare(dataclasses.replace(run, tell=warm_ups.pass_on))
    compile_seconds = warm_ups.wait()
    run.tell(vocabulary_event(run, prepared, table_bytes(run, prepared.summary)))
    run.tell(
        {
            "event": "prepared",
            "seconds": time.monotonic() - started,
            "compile_seconds": compile_seconds,
            "backend": run.choice.backend.name,
            "backend_text": run.choice.text,
        }
    )
    return prepared


@dataclass
class _WarmUps:
    """Workers that compile, whose progress stands beside that of the rows."""

    run: Run
    futures: Sequence[Future]
    _told: int = -1

    def pass_on(self, event: Event) -> None:
        """Tell of an event of the run, and before it of what is compiled by now."""
        self.tell()
        self.run.tell(event)

    def tell(self) -> None:
        """Tell how many workers are done, where that is news."""
        done = sum(future.done() for future in self.futures)
        if done != self._told:
            self._told = done
            progress_of(self.run)("compile", done, len(self.futures))

    def wait(self) -> float:
        """Seconds that the slowest worker took, once all are done."""
        if self._told < len(self.futures):
            follow(self.run.watch, self.futures, [1] * len(self.futures), "compile", progress_of(self.run))
        return float(max(self.run.watch.results(self.futures)))


def warm_up(run: Run, with_rows: bool = True) -> list[Future]:
    """Let each worker compile first: local ones share the work, remote ones do it each for itself.

    with_rows: also what rows need, with some of a local path: of others a whole row group would have to be fetched.
    """
    plan, job = run.inputs.plan, run.job
    tasks = [task for replica in plan.replicas for task in replica]
    units = [unit for unit in tasks[0][:1] if with_rows and files.is_local(unit.shard.url)]
    reading = dataclasses.replace(plain_reading(run), on_bad_rows="skip")
    told = run.work, reading, units, plan.longest_round, job.model.n_models
    wanted = rehearsal.Wanted(job.output.report, _may_have_few(run), may_be_together(run))
    return [
        run.watch.submit(rehearsal.warm_up, *told, number if run.shares_disk else 0, wanted, near=address)
        for number, address in enumerate(run.watch.addresses())
    ]


def _may_have_few(run: Run) -> bool:
    """Whether a task may deal so few rows into a slice that these lie side by side."""
    plan, inputs = run.inputs.plan, run.inputs
    if inputs.split.is_needed or run.job.data.sample_negatives < 1 or run.work.spec.is_paired:
        return True
    dealt = [(task, plan.n_slices) for replica in plan.replicas for task in replica]
    dealt += [(task, 1) for tasks in inputs.validation_tasks for task in tasks]
    return not all(
        are_long_runs(sum(unit.n_rows for unit in task), sum(unit.n_batches for unit in task), n_slices)
        for task, n_slices in dealt
    )
