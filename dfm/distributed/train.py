"""The whole run: shards found, replicas planned, rounds driven, the best parameters published."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import logging
import math
import os
import platform
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future

from dfm.averaging.rules import MergeRule, automatic_weights, scaled_rate
from dfm.data.accounting import RowAccount
from dfm.data.hashing import expected_collisions
from dfm.data.preparation import Reading, fingerprint, prune_cache
from dfm.distributed import backends, monitoring, prepare
from dfm.distributed.checkpointing import Checkpointer
from dfm.distributed.cluster import connect
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.diagnose import Diagnosis
from dfm.distributed.keeping import PATIENCE_OF_A_USER, kept, tolerated
from dfm.distributed.loop import Best, TrainingLoop
from dfm.errors import DataError, DivergenceError, RunCancelled
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import InitialValues, Layout
from dfm.model.fm_model import FMModel
from dfm.model.objective import Objective, kernel_spec
from dfm.model.warm_start import Start, find_start
from dfm.settings.constraints import parse_bytes
from dfm.settings.job import Job
from dfm.storage import files
from dfm.training import rounds
from dfm.training.checkpoint import Checkpoint, CheckpointFolder, Identity
from dfm.training.diagnosis import Finding
from dfm.training.inputs import Inputs, find_inputs, nothing_left, plan_event
from dfm.training.publish import check_output, check_shards, publish_model

logger = logging.getLogger(__name__)
Event = dict[str, Any]
OnEvent = Callable[[Event], None]
_BLOCK_BYTES = 1 << 23
"""From this size on a block is worth its tasks: two workers then merge and send half of the table each."""
_WHOLE_PUSH_BYTES = 64 << 20
"""Two blocks of a table up to this size get whole pushes: half of one more than needed takes less than the tasks do."""
_MOST_BLOCKS = 8


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: where the model is, one record per epoch, validation metrics, the row account."""

    model_url: str
    parameters_sha256: str
    history: list[Event]
    validation: dict[str, Any]
    rows: RowAccount
    best_epoch: int
    interrupted: bool = False
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> FMModel:
        """The published model, loaded."""
        return FMModel.load(self.model_url, self.storage_options)


def train(
    job: Job,
    client: Client | None = None,
    on_event: OnEvent | None = None,
    loss: CustomLoss | None = None,
    regularizer: CustomRegularizer | None = None,
) -> TrainResult:
    """Train the job's model and publish it in output.directory/model.

    loss, regularizer: the functions that the job was marked with, by `objective.with_functions`.

    client: a Dask client to run on; without one the job's [cluster] is connected to, or started. on_event is called
    with a JSON-ready record as stages and epochs pass. Ctrl-C ends training after the best epoch so far is published.
    """
    job.require_training()
    check_output(job)
    merge_rule(job)
    objective, spec = kernel_spec(job, loss, regularizer)
    tell = on_event or (lambda event: None)
    inputs = find_inputs(job)
    check_shards(job, [*inputs.train, *inputs.validation])
    family_of(spec.family).check_fields(len(inputs.schema.fields))
    warm = find_start(job, inputs.schema, None if objective.is_plain else objective.info.to_dict())
    tell(plan_event(inputs))
    checkpoints, found = _find_checkpoints(job, inputs)
    result = None
    try:
        with connect.client_of(job.cluster, client) as own:
            watch = Watch(own, job.cluster.worker_timeout)
            tell = monitoring.observed(own, tell, job.fingerprint()[:12], inputs.plan.rounds_until)
            tell(monitoring.placement_event(inputs.plan, watch.addresses()))
            result = _Run(job, inputs, watch, tell, checkpoints, objective, spec, warm).run(found)
    except Exception as error:
        if result is None:
            raise
        logger.warning("the model is published; the cluster did not end well: %s: %s", type(error).__name__, error)
    return result


def _find_checkpoints(job: Job, inputs: Inputs) -> tuple[CheckpointFolder, list[Checkpoint]]:
    """Where checkpoints lie, and those to go on from. SettingsError where they are another job's."""
    url = files.join(job.output.directory, "checkpoint")
    url = os.path.abspath(files.local_path(url)) if files.is_local(url) else url
    writer = f"{platform.node()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
    folder = CheckpointFolder(url, writer, job.data.storage_options)
    if not job.output.resume:
        folder.clear()
    found = folder.found()
    if found:
        identity_of(job, inputs).check(found[0].identity, url)
    return folder, found


def identity_of(job: Job, inputs: Inputs) -> Identity:
    """What a checkpoint of the job belongs to: everything that determines the parameters."""
    return Identity(job.determining_tables(), inputs.identities)


def merge_rule(job: Job) -> MergeRule:
    """How the job's replicas become one model. "auto": weighted by accumulators where the optimizer has them."""
    training = job.training
    automatic = automatic_weights(training.optimizer)
    rule = MergeRule(
        automatic if training.merge == "auto" else training.merge,
        training.accumulators,
        training.precision,
        training.outer_rate,
        training.outer_momentum,
    )
    rule.check_optimizer(training.optimizer)
    rule.check_replicas(training.n_replicas)
    return rule


@dataclass
class _Run:
    job: Job
    inputs: Inputs
    watch: Watch
    tell: OnEvent
    checkpoints: CheckpointFolder
    objective: Objective
    spec: KernelSpec
    warm: Start | None
    """The model that training goes on from."""
    prepared: prepare.Prepared = field(init=False)
    work: rounds.Work = field(init=False)
    backend: backends.Backend = field(init=False)
    shares_disk: bool = field(init=False)
    """Whether paths mean the same to the workers as to this process."""
    interrupted: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def client(self) -> Client:
        """The client of the cluster that the run uses."""
        return self.watch.client

    def run(self, found: Sequence[Checkpoint]) -> TrainResult:
        """Prepare, train from the newest sound checkpoint that was found, publish."""
        started = time.time()
        self.shares_disk = connect.shares_disk(self.client)
        training = self.job.training
        self.backend = backends.choose(
            self.client, training.backend, self.spec, self.watch.addresses(), training.deterministic
        )
        self.work = self._work()
        warm = self._warm_up()
        self.prepared = self._prepare()
        self.work = dataclasses.replace(
            self.work, unit=self.prepared.reading.units.label, clip=self.prepared.reading.clip
        )
        self.tell(self._vocabulary_event())
        compile_seconds = max(self.watch.result(future) for future in warm)
        self.tell(
            {
                "event": "prepared",
                "seconds": time.time() - started,
                "compile_seconds": compile_seconds,
                "backend": self.backend.name,
                "backend_text": self.backend.text,
            }
        )
        try:
            with contextlib.closing(self._checkpointer()) as checkpointer:
                loop = self._loop(checkpointer, found)
                with kept(loop, checkpointer):
                    self._train(loop)
                with kept(loop, checkpointer, publishing=True):
                    self.findings = self._diagnose(loop)
                    result = self._publish(loop)
        except DivergenceError:
            self.checkpoints.clear()  # they lead to the same end, and another learning rate is another job
            raise
        if not self.interrupted:
            with tolerated("its checkpoints could not be deleted"):
                self.checkpoints.clear()
        with tolerated("old partitions could not be deleted"):
            self._prune(started)
        self.tell(self._done_event(result))
        return result

    def _diagnose(self, loop: TrainingLoop) -> list[Finding]:
        """What the best parameters could not learn; of a run that was interrupted there is nothing to say."""
        if self.interrupted or loop.best is None:
            return []
        share = self._vocabulary_event()["collided_share"]
        diagnosis = Diagnosis(self.job, self.watch, self.work, self.prepared, share)
        findings = diagnosis.findings(loop.best.blocks, loop.best.metrics)
        self.tell({"event": "diagnosis", "findings": [finding.to_dict() for finding in findings]})
        return findings

    def _train(self, loop: TrainingLoop) -> None:
        try:
            loop.run()
        except (KeyboardInterrupt, RunCancelled) as error:
            if loop.checkpointer is not None:
                loop.checkpointer.flush(PATIENCE_OF_A_USER)
            if isinstance(error, RunCancelled) or loop.best is None:
                raise
            self.interrupted = True

    def _checkpointer(self) -> Checkpointer:
        by_workers = self.shares_disk or not files.is_local(self.checkpoints.url)
        identity = identity_of(self.job, self.inputs)
        return Checkpointer(self.client, self.checkpoints, identity, self._layout(), by_workers)

    def _loop(self, checkpointer: Checkpointer, found: Sequence[Checkpoint]) -> TrainingLoop:
        """The training loop at its start, or where the newest checkpoint with sound files was made."""
        bounds = self._block_bounds()
        plan = self.inputs.plan
        loop = TrainingLoop(
            self.job, plan, self.work, self.prepared, self.watch, self.tell, [], bounds,
            checkpointer if self.job.output.checkpoint_every != "never" else None,
            self._cuts_pushes(len(bounds) - 1), self.backend.resources,
        )  # fmt: skip
        for checkpoint in found:
            blocks, best = checkpointer.load(checkpoint)
            try:
                for future in (*blocks, *best):
                    self.watch.wait(future)
            except (DataError, FileNotFoundError) as error:
                self.checkpoints.discard(checkpoint, error)
                continue
            loop.restore(checkpoint, blocks, best)
            at, n_rounds = loop.at, plan.n_rounds(loop.at.epoch)
            self.tell({"event": "resumed", "epoch": at.epoch, "round": at.round, "rounds": n_rounds})
            return loop
        loop.blocks = self._initial_blocks(bounds)
        return loop

    # ----------------------------------------------------------------------------------------- preparation ----

    def _work(self) -> rounds.Work:
        training, memory = self.job.training, self.job.cluster.gpu_memory
        rate = scaled_rate(training.learning_rate, training.rate_scaling, training.n_replicas)
        step = Step(
            learning_rate=rate,
            factor_learning_rate=rate * training.factor_rate_scale,
            l2_linear=training.l2_linear,
            l2_factors=training.l2_factors,
            n_threads=training.threads_per_replica,
            deterministic=training.deterministic,
            device_bytes=0 if memory == "auto" else parse_bytes(memory),
            **training.own_knobs,
        )
        return rounds.Work(
            self.spec, merge_rule(self.job), step, training.n_replicas, self.backend.name, training.wire_dtype
        )

    def _warm_up(self) -> list[Future]:
        """Compile while the shards are being read: one local worker for all, remote ones each for itself."""
        futures: list[Future] = []
        for home in self.watch.addresses():
            after = futures[0] if futures and self.shares_disk else None
            futures.append(
                self.client.submit(
                    rounds.warm_up,
                    self.work,
                    self.inputs.plan.longest_round,
                    after,
                    workers=[home],
                    allow_other_workers=True,
                    pure=False,
                )
            )
        return futures

    def _reading(self) -> tuple[Reading, Reading]:
        """How training rows are read, and how validation rows are."""
        job = self.job
        bound = job.data.validation_from if self.inputs.split_rows else ""
        reading = Reading(
            self.inputs.schema,
            job.model.hash_bits,
            job.model.task,
            time_until=bound,
            on_bad_rows=job.data.on_bad_rows,
            label_kind=self.objective.label_kind,
            cache=connect.cache_directory(job.cluster, self.client),
            storage_options=job.data.storage_options,
        )
        return reading, dataclasses.replace(reading, time_until="", time_from=bound)

    def _prepare(self) -> prepare.Prepared:
        training, validation = self._reading()
        plan = self.inputs.plan
        if self.warm:
            training = dataclasses.replace(training, statistics=self.warm.statistics)
        else:
            training = prepare.learn_statistics(self.watch, training, plan, self._progress)
        tasks = self.inputs.validation_tasks
        prepared = prepare.prepare(self.watch, self.job, training, plan, (validation, tasks), self._progress)
        self._check_rows(prepared)
        return prepared

    def _check_rows(self, prepared: prepare.Prepared) -> None:
        """DataError where the split by time, or the bad rows, left nothing to train or to validate on."""
        bound = self.job.data.validation_from
        if not prepared.account.accepted:
            if self.inputs.split_rows and not prepared.account.read:
                raise DataError(nothing_left(bound, "row to train on; choose a later time"))
            raise DataError(f"all {prepared.account.read} training rows are bad: {prepared.account.rejections[0]}")
        held_out = prepared.validation_account
        if self.inputs.split_rows and not held_out.read:
            raise DataError(nothing_left(bound, "row to validate on; choose an earlier time"))
        if bound or self.job.data.validation:
            held_out.check_any("validate on", self.inputs.schema.weight)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.tell({"event": "progress", "stage": stage, "done": done, "total": total})

    def _vocabulary_event(self) -> Event:
        summary, bits = self.prepared.summary, self.job.model.hash_bits
        return {
            "event": "vocabulary",
            "distinct_features": summary.n_distinct,
            "features": summary.n_features,
            "features_with_factors": summary.n_factored,
            "table_load": summary.n_distinct / 2**bits,
            "collided_share": expected_collisions(_distinct_tokens(summary.n_distinct, bits), bits),
            "parameter_bytes": self._parameter_bytes(),
            "rows": _rows_event(self.prepared.account),
        }

    def _layout(self) -> Layout:
        return self.spec.layout

    def _parameter_bytes(self) -> int:
        layout, summary = self._layout(), self.prepared.summary
        return 4 * layout.n_numbers(summary.n_features, summary.n_factored, len(self.inputs.schema.fields))

    def _cuts_pushes(self, n_blocks: int) -> bool:
        """Whether it pays to cut pushes: whole ones cost more bytes on the wire, parts a task each."""
        return n_blocks > 2 or (n_blocks == 2 and self._parameter_bytes() > _WHOLE_PUSH_BYTES)

    def _block_bounds(self) -> list[int]:
        """Rows at which the table is cut into blocks of equal bytes: the leading rows own factors and weigh more."""
        n_blocks = min(-(-self._parameter_bytes() // _BLOCK_BYTES), _MOST_BLOCKS, len(self.watch.addresses()))
        summary = self.prepared.summary
        return block_bounds(summary.n_features, summary.n_factored, self._layout(), max(1, n_blocks))

    def _initial_blocks(self, bounds: Sequence[int]) -> list[Future]:
        account, unit = self.prepared.account, self.work.unit
        mean = account.label_sum / max(account.accepted, 1)
        initial = InitialValues(
            self.job.model.seed,
            self.job.model.init_stdev,
            self.job.training.initial_accumulator,
            self.objective.link.start((mean - unit.mean) / unit.scale),
        )
        blocks = [
            self.client.submit(
                rounds.initial_block, self.prepared.vocabulary, self._layout(), pair, initial, pure=False
            )
            for pair in itertools.pairwise(bounds)
        ]
        return self._warmed(blocks, self.warm) if self.warm else blocks

    def _warmed(self, blocks: list[Future], warm: Start) -> list[Future]:
        """The blocks moved towards the earlier model, which a worker loads, or this machine where only it can."""
        here = files.is_local(warm.url) and not self.shares_disk
        model = self.client.scatter(warm.load(), hash=False) if here else self.client.submit(warm.load, pure=False)
        vocabulary = self.prepared.vocabulary
        return [
            self.client.submit(rounds.warm_block, b, vocabulary, model, warm.decay, self.work.unit, pure=False)
            for b in blocks
        ]

    # ---------------------------------------------------------------------------------------------- result ----

    def _publish(self, loop: TrainingLoop) -> TrainResult:
        url = files.join(self.job.output.directory, "model")
        best = loop.best
        assert best is not None
        digest = self._save(url, best, loop.at.history)
        return TrainResult(
            url,
            digest,
            loop.at.history,
            best.metrics,
            self.prepared.account,
            best.epoch,
            self.interrupted,
            dict(self.job.data.storage_options),
        )

    def _done_event(self, result: TrainResult) -> Event:
        return {
            "event": "done",
            "model": result.model_url,
            "validation": result.validation,
            "best_epoch": result.best_epoch,
            "rows": _rows_event(self.prepared.account),
            "validation_rows": _rows_event(self.prepared.validation_account),
            "interrupted": self.interrupted,
            "parameters_sha256": result.parameters_sha256,
        }

    def _save(self, url: str, best: Best, history: list[Event]) -> str:
        """Write the best parameters as a model: by a worker, or here where only this machine can write the path."""
        reading = self.prepared.reading
        units = self.inputs.validation_tasks[0] if self.inputs.validation_tasks else self.inputs.plan.replicas[0][0]
        where = os.path.abspath(files.local_path(url)) if files.is_local(url) else url
        arguments = reading, self._metadata(best, history), units[0], where, self.objective.info
        if files.is_local(url) and not self.shares_disk:
            blocks, vocabulary = self.client.gather([best.blocks, self.prepared.vocabulary])
            published = publish_model(blocks, vocabulary, *arguments)
        else:
            future = self.client.submit(publish_model, best.blocks, self.prepared.vocabulary, *arguments, pure=False)
            published = self.watch.result(future)
        for warning in published.warnings:
            logger.warning("%s", warning)
        return published.parameters_sha256

    def _metadata(self, best: Best, history: list[Event]) -> dict[str, Any]:
        shards = [[s.url, s.size, s.modified] for s in self.inputs.train]
        return {
            "dfm_version": importlib.metadata.version("dfm"),
            "settings": self.job.to_dict(),
            "job_fingerprint": self.job.fingerprint(),
            "backend": self.backend.name,
            "validation": best.metrics,
            "best_epoch": best.epoch,
            "history": history,
            "rows": _rows_event(self.prepared.account),
            "validation_rows": _rows_event(self.prepared.validation_account),
            "data_fingerprint": fingerprint(shards),
            "distinct_features": self.prepared.summary.n_distinct,
            "diagnosis": [finding.to_dict() for finding in self.findings],
            "units": dataclasses.asdict(self.prepared.reading.units),
            "warm_start": self.warm.describe() if self.warm else {},
        }

    def _prune(self, started: float) -> None:
        """Keep the cache of local workers below its limit; what this run used stays."""
        if self.shares_disk:
            directory = connect.cache_directory(self.job.cluster, self.client)
            freed = prune_cache(directory, parse_bytes(self.job.cluster.cache_limit), started)
            if freed:
                logger.info("deleted %d bytes of old partitions in %s", freed, directory)


def block_bounds(n_features: int, n_factored: int, layout: Layout, n_blocks: int) -> list[int]:
    """Row bounds of blocks of about equal bytes, n_blocks + 1 ascending integers."""
    light = sum(layout.width(block) for block in layout.touched if not block.is_vector)
    heavy = sum(layout.width(block) for block in layout.touched)
    total = heavy * n_factored + light * (n_features - n_factored)
    bounds = [0]
    for number in range(1, n_blocks):
        share = total * number // n_blocks
        in_heavy = share // heavy
        row = in_heavy if in_heavy < n_factored else n_factored + (share - heavy * n_factored) // light
        bounds.append(max(bounds[-1], row))
    return [*bounds, n_features]


def _rows_event(account: RowAccount) -> dict[str, Any]:
    return {
        "read": account.read,
        "trained": account.accepted,
        "rejected": account.rejected,
        "reasons": account.by_reason(),
    }


def _distinct_tokens(n_indices: int, hash_bits: int) -> int:
    """About how many tokens gave this many occupied indices (balls in bins: occupied = B (1 - (1 - 1/B)^n))."""
    buckets = 2**hash_bits
    if n_indices >= buckets:
        return buckets * 20
    return round(math.log1p(-n_indices / buckets) / math.log1p(-1 / buckets))
