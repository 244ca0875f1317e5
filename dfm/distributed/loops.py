"""The training loop of a run: new, at its start, or at a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from dfm.data.footers import padded_folders
from dfm.data.number_sketches import columns_with_statistics
from dfm.distributed import start
from dfm.distributed.calibrating import share_apart
from dfm.distributed.checkpointing import Checkpointer
from dfm.distributed.exact import at_first_block, exact_loop
from dfm.distributed.executor import DaskExecutor
from dfm.distributed.prepare import Prepared
from dfm.distributed.run import Run
from dfm.distributed.stretches import brought_together, judged_together, rounds_together
from dfm.distributed.tuning import tuned
from dfm.errors import DataError, SettingsError
from dfm.model.warm_start import Start
from dfm.settings.job import Job
from dfm.storage import files
from dfm.training.checkpoint import Checkpoint, CheckpointFolder, Identity
from dfm.training.inputs import Inputs
from dfm.training.loop import Goal, Manner, TrainingLoop
from dfm.training.progress import check_round, epoch_event
from dfm.training.steps import StepSchedule

_PRIORS = "by columns"
"""The rule by which an exact solver finds numbers that its job does not give; a checkpoint of another cannot go on."""
_STATISTICS_OF = "sound ones that weigh anything"
"""The rows whose numbers make statistics, where others may be read; a checkpoint of other buckets cannot go on."""
_LOTS = "by folders and names"
"""Which lots rows draw in shards that lie in folders; a checkpoint whose rows drew others cannot go on."""
_INTEGERS = "of folders and shards"
"""The integers that folders with zeros in front and other shards share; a checkpoint of other features cannot go on."""


def identity_of(job: Job, inputs: Inputs, warm: Start | None) -> Identity:
    """The identity of the job's checkpoints: everything that determines the parameters."""
    tables_read = [snapshot.to_dict() for snapshot in inputs.snapshots]
    tables = {**job.determining_tables(), **({"training.warm_start": warm.identity} if warm else {})}
    if job.training.is_exact:
        tables["training.solver"] = {"automatic penalties and priors": _PRIORS}
    has_others = bool(job.schema.weight) or job.data.on_bad_rows == "skip"
    if has_others and warm is None and columns_with_statistics(inputs.schema):
        tables["schema.statistics"] = {"rows": _STATISTICS_OF}
    held_out = (inputs.split.n_rows or inputs.split.lots) and not inputs.split.group
    if (held_out or job.data.sample_negatives < 1) and any("/" in shard.place for shard in inputs.train):
        tables["data"] = {**tables.get("data", {}), "lots of rows": _LOTS}
    padded = padded_folders(inputs.schema.integers, inputs.train)
    if shared := [name for name in padded if any(name not in dict(shard.partition) for shard in inputs.train)]:
        tables["schema.integers"] = dict.fromkeys(shared, _INTEGERS)
    return Identity(tables, inputs.identities, tables_read)


def checkpointer_of(run: Run, checkpoints: CheckpointFolder) -> Checkpointer:
    """Who writes the checkpoints of a training of the run."""
    by_workers = run.shares_disk or not files.is_local(checkpoints.url)
    return Checkpointer(run.watch, checkpoints, identity_of(run.job, run.inputs, run.warm), run.work.layout, by_workers)


def loop_of(run: Run, prepared: Prepared, checkpointer: Checkpointer, found: Sequence[Checkpoint]) -> TrainingLoop:
    """The training loop at its start, or at the newest of the checkpoints whose files are sound."""
    loop = _new_loop(run, prepared, checkpointer if run.job.output.checkpoint_every != "never" else None)
    return loop if resume(run, loop, checkpointer, found) else _at_start(run, prepared, loop)


def started_loop(run: Run, prepared: Prepared) -> TrainingLoop:
    """The training loop at its start, without checkpoints."""
    return _at_start(run, prepared, _new_loop(run, prepared, None))


def _at_start(run: Run, prepared: Prepared, loop: TrainingLoop) -> TrainingLoop:
    """The loop with untrained, or warm, parameters."""
    if run.job.training.is_exact:
        return at_first_block(run, prepared, loop)
    bounds = loop.executor.bounds
    loop.executor.restore(start.initial_blocks(run, prepared, bounds), bounds)
    return loop


def _new_loop(run: Run, prepared: Prepared, checkpointer: Checkpointer | None) -> TrainingLoop:
    """The loop, whose executor has no parameters yet."""
    if run.job.training.is_exact:
        return exact_loop(run, prepared, checkpointer)
    training, objective, unit = run.job.training, run.order.objective, prepared.reading.units.label
    bounds, cuts_pushes = start.cut_table(run, prepared.summary)
    stretch = 1 if training.validate == "average" else rounds_together(run, prepared, len(bounds) - 1)
    judged = judged_together(run, prepared, run.number) if stretch > 1 else None
    found = tuned(run, prepared)
    return TrainingLoop(
        work=dataclasses.replace(
            run.work,
            unit=unit,
            clip=prepared.reading.clip,
            step=found.step,
            shift=math.log(run.job.data.sample_negatives),
            apart=share_apart(run.job),
            by_group=bool(run.job.schema.group),
        ),
        objective=objective,
        plan=run.inputs.plan,
        schedule=StepSchedule(run.inputs.course.schedule, run.job.model.seed),
        goal=Goal(
            n_epochs=run.inputs.course.n_epochs,
            patience=training.patience if training.early_stopping else None,
            plateau=run.inputs.course.schedule == "plateau",
            rollbacks=training.rollbacks,
            validates_averages=training.validate == "average" and bool(prepared.validation),
            judges_start=run.warm is not None,
        ),
        executor=DaskExecutor(
            run.watch,
            prepared.replicas if stretch == 1 else brought_together(run, prepared, run.number),
            prepared.validation if judged is None else judged,
            bounds=bounds,
            cuts_pushes=cuts_pushes,
            resources=run.choice.resources,
            stretch=stretch,
            judges_at_home=judged is not None,
            home=run.number,
        ),
        manner=Manner(functools.partial(epoch_event, objective, unit), functools.partial(check_round, objective)),
        n_rows=prepared.account.accepted,
        tell=run.tell,
        checkpointer=checkpointer,
        renewer=checkpointer,
        checkpoint_every=run.job.output.checkpoint_every,
        pilot=found.pilot,
    )


def resume(run: Run, loop: TrainingLoop, checkpointer: Checkpointer, found: Sequence[Checkpoint]) -> bool:
    """Whether the loop now stands at a checkpoint: the newest of those found whose files are sound."""
    tried: list[Checkpoint] = []
    while left := [each for each in found if each not in tried]:
        checkpoint = left[0]
        tried.append(checkpoint)
        try:
            blocks, best = checkpointer.load(checkpoint)
            for future in (*blocks, *best):
                run.watch.wait(future)
        except (DataError, FileNotFoundError) as error:
            found = checkpointer.instead_of(checkpoint, error)
            continue
        _check_features(loop, checkpoint, run.job)
        loop.restore(checkpoint, blocks, best)
        at = loop.at
        run.tell({"event": "resumed", "epoch": at.epoch, "round": at.round, "rounds": loop.n_rounds})
        return True
    return False


def _check_features(loop: TrainingLoop, checkpoint: Checkpoint, job: Job) -> None:
    """SettingsError where a checkpoint is of a table of another size, as another version of dfm may make it."""
    now, then = loop.executor.bounds[-1:], checkpoint.state["bounds"][-1:]
    if now and now != then:
        raise SettingsError(
            f"the checkpoint at {job.output.checkpoints} has parameters of {then[0]:,} features, and the rows now have "
            f"{now[0]:,}: another version of dfm wrote it. Start afresh with --no-resume (output.resume = false), "
            "which deletes it"
        )
