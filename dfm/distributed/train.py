"""The whole run: shards found, replicas planned, rounds driven, the best parameters published."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from distributed import Client, Future

from dfm import storage
from dfm.accounting import RowAccount
from dfm.averaging import MergeRule, aligned_groups, scaled_rate
from dfm.distributed import cluster, prepare, rounds
from dfm.distributed.placement import Plan, plan_reading, plan_training
from dfm.encoding import encode_batch
from dfm.errors import DataError, DivergenceError, SettingsError
from dfm.hashing import expected_collisions
from dfm.ingest import HIVE_NULL, Shard, Unit, arrow_schema, find_shards, naming_shard, read_unit, stored_schema
from dfm.kernels.contract import KernelSpec, Step
from dfm.kernels.optimizers import rate_factor, scheduled
from dfm.metrics import TALLIES, Tally
from dfm.model import GOLDEN_ROWS, LOSSES, MANIFEST, FMModel
from dfm.params import InitialValues, Layout
from dfm.preparation import Reading, fingerprint, prune_cache
from dfm.schema import ResolvedSchema, infer, resolve
from dfm.settings import Job, parse_bytes
from dfm.timesplit import at_or_after, first_and_last
from dfm.vocabulary import Vocabulary
from dfm.warmstart import Start, find_start

logger = logging.getLogger(__name__)
Event = dict[str, Any]
OnEvent = Callable[[Event], None]
_BLOCK_BYTES = 1 << 23
"""From this size on a block is worth its tasks: two workers then merge and send half of the table each."""
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


@dataclass(frozen=True)
class Inputs:
    """What the footers of the shards and the job decide before any row is read."""

    schema: ResolvedSchema
    train: list[Shard]
    validation: list[Shard]
    plan: Plan
    validation_tasks: list[tuple[Unit, ...]]
    split_rows: bool
    """Whether data.validation_from has to be compared row by row (the shards' paths do not tell)."""

    @property
    def n_rows(self) -> int:
        """Rows of the training shards."""
        return sum(shard.n_rows for shard in self.train)


def find_inputs(job: Job) -> Inputs:
    """Find shards, match the schema with their columns, plan the replicas."""
    options = job.data.storage_options
    train = find_shards(job.data.train, options)
    validation = find_shards(job.data.validation, options) if job.data.validation else []
    schema = resolve_schema(job, next(shard for shard in train if shard.n_rows))
    by_path = _split_by_path(job, train)
    if by_path is not None:
        train, validation = by_path
    total = sum(shard.n_rows for shard in train)
    if total < job.training.n_replicas:
        raise DataError(
            f"{total} training rows are too few for training.n_replicas = {job.training.n_replicas}; lower n_replicas"
        )
    plan = plan_training(train, job.training.n_replicas, job.training.averages_per_epoch, job.model.seed)
    split_rows = bool(job.data.validation_from) and by_path is None
    held_out = plan_reading(train if split_rows else validation)
    return Inputs(schema, train, validation, plan, held_out, split_rows)


def _split_by_path(job: Job, shards: Sequence[Shard]) -> tuple[list[Shard], list[Shard]] | None:
    """Shards before data.validation_from and from it on, where the time column comes from the shards' paths alone."""
    bound, column = job.data.validation_from, job.schema.time
    if not bound or not all(column in dict(shard.partition) for shard in shards):
        return None
    # A stored column wins over the path, as it does where rows are read.
    if column in stored_schema(next(shard for shard in shards if shard.n_rows), job.data.storage_options).names:
        return None
    found = [dict(shard.partition)[column] for shard in shards]
    times = pa.array([None if time == HIVE_NULL else time for time in found], pa.string())
    later = at_or_after(times, bound, column).to_pylist()
    before = [shard for shard, is_later in zip(shards, later, strict=True) if not is_later]
    after = [shard for shard, is_later in zip(shards, later, strict=True) if is_later]
    first, last = first_and_last(times, bound, column)
    if not before:
        raise DataError(_nothing_left(bound, f"shard to train on: {column} begins at {first}; choose a later time"))
    if not after:
        raise DataError(_nothing_left(bound, f"shard to validate on: {column} ends at {last}; choose an earlier time"))
    return before, after


def _nothing_left(bound: str, what: str) -> str:
    return f"data.validation_from = {bound!r} leaves no {what}"


def resolve_schema(job: Job, shard: Shard) -> ResolvedSchema:
    """The job's schema on the columns of one shard."""
    found = arrow_schema(shard, job.data.storage_options)
    kinds = {field.name: _kind(field.type) for field in found}
    return resolve(infer(job.schema, kinds), found.names)


def _kind(arrow_type: pa.DataType) -> str:
    tests = {
        "bool": pa.types.is_boolean,
        "int": pa.types.is_integer,
        "float": lambda t: pa.types.is_floating(t) or pa.types.is_decimal(t),
        "dictionary": pa.types.is_dictionary,
        "null": pa.types.is_null,
        "list": lambda t: pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t),
        "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_binary(t),
    }
    return next((kind for kind, test in tests.items() if test(arrow_type)), str(arrow_type))


def train(job: Job, client: Client | None = None, on_event: OnEvent | None = None) -> TrainResult:
    """Train the job's model and publish it in output.directory/model.

    client: a Dask client to run on; without one the job's [cluster] is connected to, or started. on_event is called
    with a JSON-ready record as stages and epochs pass. Ctrl-C ends training after the best epoch so far is published.
    """
    job.require_training()
    check_output(job)
    merge_rule(job)
    tell = on_event or (lambda event: None)
    inputs = find_inputs(job)
    warm = find_start(job, inputs.schema)
    tell(plan_event(inputs))
    with cluster.client_of(job.cluster, client) as own:
        return _Run(job, inputs, own, tell, warm).run()


def merge_rule(job: Job) -> MergeRule:
    """How the job's replicas become one model. "auto": weighted by accumulators where the optimizer has them."""
    training = job.training
    automatic = "mean" if training.optimizer == "sgd" else "weighted"
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


def check_output(job: Job) -> None:
    """SettingsError where the output may not be replaced, or cannot be written: now, and not after an hour."""
    url, options = storage.join(job.output.directory, "model"), job.data.storage_options
    if not job.output.overwrite and storage.exists(storage.join(url, MANIFEST), options):
        raise SettingsError(
            f"there is a model at {url}, and output.overwrite = false; choose another output.directory, or allow it"
        )
    try:
        storage.check_writable(job.output.directory, options)
    except (OSError, ImportError, ValueError) as error:
        raise SettingsError(
            f"output.directory = {job.output.directory!r} cannot be written: {error}; choose another folder or URL"
        ) from error


def plan_event(inputs: Inputs) -> Event:
    """What is going to be read and by how many replicas."""
    return {
        "event": "plan",
        "shards": len(inputs.train),
        "rows": inputs.n_rows,
        "validation_shards": len(inputs.validation),
        "validation_rows": sum(shard.n_rows for shard in inputs.validation),
        "fields": len(inputs.schema.fields),
        "replicas": inputs.plan.n_replicas,
        "rounds_per_epoch": inputs.plan.n_rounds,
        "rows_per_replica": inputs.plan.rows_of(0),
    }


@dataclass
class _Best:
    """The parameters to publish, and how good they were."""

    blocks: list[Future]
    epoch: int
    metrics: dict[str, Any]


@dataclass
class _Run:
    job: Job
    inputs: Inputs
    client: Client
    tell: OnEvent
    warm: Start | None = None
    """The model that training goes on from."""
    history: list[Event] = field(default_factory=list)
    best: _Best | None = None
    prepared: prepare.Prepared = field(init=False)
    blocks: list[Future] = field(init=False)
    work: rounds.Work = field(init=False)
    shares_disk: bool = field(init=False)
    """Whether paths mean the same to the workers as to this process."""
    interrupted: bool = False
    rounds_done: int = 0
    worse: int = 0
    rollbacks: int = 0
    new_book: bool = True
    """Whether the next round begins the reports of an epoch: at its start, and on parameters that were gone back to."""

    def run(self) -> TrainResult:
        started = time.time()
        self.shares_disk = cluster.shares_disk(self.client)
        self.work = self._work()
        warm = self._warm_up()
        self.prepared = self._prepare()
        self.tell(self._vocabulary_event())
        compile_seconds = max(self.client.gather(warm))
        self.tell({"event": "prepared", "seconds": time.time() - started, "compile_seconds": compile_seconds})
        self.blocks = self._initial_blocks()
        try:
            self._epochs()
        except KeyboardInterrupt:
            if self.best is None:
                raise
            self.interrupted = True
        result = self._publish()
        self._prune(started)
        return result

    # ----------------------------------------------------------------------------------------- preparation ----

    def _work(self) -> rounds.Work:
        training, model = self.job.training, self.job.model
        rate = scaled_rate(training.learning_rate, training.rate_scaling, training.n_replicas)
        step = Step(
            learning_rate=rate,
            factor_learning_rate=rate * training.factor_rate_scale,
            l2_linear=training.l2_linear,
            l2_factors=training.l2_factors,
            l1_linear=training.l1_linear,
            ftrl_beta=training.ftrl_beta,
            n_threads=training.threads_per_replica,
        )
        spec = KernelSpec(LOSSES[model.task], training.optimizer, model.n_factors)
        return rounds.Work(spec, merge_rule(self.job), step, training.n_replicas)

    def _warm_up(self) -> list[Future]:
        """Compile while the shards are being read: one local worker for all, remote ones each for itself."""
        futures: list[Future] = []
        for home in cluster.worker_addresses(self.client):
            after = futures[0] if futures and self.shares_disk else None
            futures.append(
                self.client.submit(
                    rounds.warm_up, self.work, after, workers=[home], allow_other_workers=True, pure=False
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
            cache=cluster.cache_directory(job.cluster, self.client),
            storage_options=job.data.storage_options,
        )
        return reading, dataclasses.replace(reading, time_until="", time_from=bound)

    def _prepare(self) -> prepare.Prepared:
        training, validation = self._reading()
        plan = self.inputs.plan
        if self.warm:
            training = dataclasses.replace(training, statistics=self.warm.statistics)
        else:
            training = prepare.learn_statistics(self.client, training, plan, self._progress)
        tasks = self.inputs.validation_tasks
        prepared = prepare.prepare(self.client, self.job, training, plan, (validation, tasks), self._progress)
        self._check_rows(prepared)
        return prepared

    def _check_rows(self, prepared: prepare.Prepared) -> None:
        """DataError where the split by time, or the bad rows, left nothing to train or to validate on."""
        bound = self.job.data.validation_from
        if not prepared.account.accepted:
            if self.inputs.split_rows and not prepared.account.read:
                raise DataError(_nothing_left(bound, "row to train on; choose a later time"))
            raise DataError(f"all {prepared.account.read} training rows are bad: {prepared.account.rejections[0]}")
        if self.inputs.split_rows and not prepared.validation_account.accepted:
            raise DataError(_nothing_left(bound, "row to validate on; choose an earlier time"))

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
        return Layout(self.job.training.optimizer, self.job.model.n_factors)

    def _parameter_bytes(self) -> int:
        layout, summary = self._layout(), self.prepared.summary
        return 4 * (summary.n_features * layout.linear_width + summary.n_factored * layout.factor_width)

    def _initial_blocks(self) -> list[Future]:
        """Blocks of equal bytes: the leading rows own factors and weigh more."""
        n_blocks = min(
            -(-self._parameter_bytes() // _BLOCK_BYTES),
            _MOST_BLOCKS,
            len(cluster.worker_addresses(self.client)),
        )
        bounds = block_bounds(
            self.prepared.summary.n_features,
            self.prepared.summary.n_factored,
            self._layout(),
            max(1, n_blocks),
        )
        initial = InitialValues(
            self.job.model.seed,
            self.job.model.init_stdev,
            self.job.training.initial_accumulator,
            _initial_bias(self.job.model.task, self.prepared.account),
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
        here = storage.is_local(warm.url) and not self.shares_disk
        model = self.client.scatter(warm.load(), hash=False) if here else self.client.submit(warm.load, pure=False)
        vocabulary = self.prepared.vocabulary
        return [self.client.submit(rounds.warm_block, b, vocabulary, model, warm.decay, pure=False) for b in blocks]

    # -------------------------------------------------------------------------------------------- training ----

    def _epochs(self) -> None:
        for epoch in range(1, self.job.training.n_epochs + 1):
            event = self._epoch(epoch)
            self.history.append(event)
            self.tell(event)
            if self.best and self.best.epoch == epoch and self.job.output.checkpoint_every == "epoch":
                self._save(storage.join(self.job.output.directory, "checkpoint"))
            if self._has_worsened():
                self.tell({"event": "stopped", "epoch": epoch, "best_epoch": self.best.epoch if self.best else epoch})
                return

    def _epoch(self, epoch: int) -> Event:
        """Train one epoch, or until validation has worsened too often; returns what there is to tell of it."""
        started, validating, self.new_book = time.perf_counter(), 0.0, True
        homes, threads = cluster.worker_addresses(self.client), cluster.n_threads(self.client)
        for slice_number in range(self.inputs.plan.n_rounds):
            self._round(slice_number, homes, threads)
            if self.job.training.validate == "average" and slice_number + 1 < self.inputs.plan.n_rounds:
                _check_finite(epoch, self._await_round(), self.job.model.task)
                paused = time.perf_counter()
                metrics = self._validate()
                self.tell({"event": "average", "epoch": epoch, "average": slice_number + 1, **metrics})
                self._judge(epoch, metrics)
                validating += time.perf_counter() - paused
                if self._has_worsened():
                    break
        reports = self._await_round()
        seconds = time.perf_counter() - started - validating
        _check_finite(epoch, reports, self.job.model.task)
        started = time.perf_counter()
        metrics = self._validate()
        self._judge(epoch, metrics)
        validating += time.perf_counter() - started
        return {
            "event": "epoch",
            "epoch": epoch,
            **self._training_part(reports, seconds),
            **metrics,
            "validation_seconds": validating,
        }

    def _training_part(self, reports: Sequence[rounds.ReplicaReport], seconds: float) -> Event:
        """Loss and speed of an epoch. What the busiest thread did not spend in the kernel counts as averaging."""
        by_place: dict[str, float] = defaultdict(float)
        for report in reports:
            by_place[report.place] += report.seconds
        rows, weight = sum(r.tally.rows for r in reports), sum(r.tally.weight for r in reports)
        mean_loss = sum(r.tally.loss for r in reports) / weight if weight else float("nan")
        busiest = max(by_place.values())
        return {
            **_train_metric(self.job.model.task, mean_loss),
            "rows_per_second": rows / seconds,
            "seconds": seconds,
            "training_seconds": busiest,
            "averaging_seconds": max(0.0, seconds - busiest),
            "bytes_per_round": 2 * sum(r.touched_bytes for r in reports) * self.inputs.plan.n_replicas // len(reports),
        }

    def _await_round(self) -> tuple[rounds.ReplicaReport, ...]:
        reports: tuple[rounds.ReplicaReport, ...] = self.client.submit(
            rounds.reports_of, self.blocks[0], pure=False
        ).result()
        return reports

    def _round(self, slice_number: int, homes: Sequence[str], threads: int) -> None:
        """Submit one round; nothing is waited for, the blocks of the next round depend on those of this one."""
        training, plan = self.job.training, self.inputs.plan
        factor = rate_factor(training.schedule, self.rounds_done, training.n_epochs * plan.n_rounds)
        step = scheduled(self.work.step, training.optimizer, factor * 0.5**self.rollbacks)
        seed = (self.job.model.seed * 1_000_003 + self.rounds_done * plan.n_replicas) % 2**62
        work = dataclasses.replace(self.work, step=dataclasses.replace(step, seed=seed))
        pushes = [
            self.client.submit(
                rounds.train_replicas, work, group.start, slice_number, self.blocks,
                self.prepared.replicas[group.start : group.stop],
                workers=[prepare.home_of(group.start, plan.n_replicas, homes)], allow_other_workers=True, pure=False,
            )
            for group in aligned_groups(plan.n_replicas, 1 << (threads - 1).bit_length())
        ]  # fmt: skip
        self.blocks = [
            self._merge(work, number, pushes, not self.new_book, homes) for number in range(len(self.blocks))
        ]
        self.rounds_done += 1
        self.new_book = False

    def _merge(
        self, work: rounds.Work, number: int, pushes: list[Future], keep_reports: bool, homes: Sequence[str]
    ) -> Future:
        home = prepare.home_of(number, len(self.blocks), homes)
        parts = pushes
        if len(self.blocks) > 1:
            bounds = self._bounds()[number : number + 2]
            parts = [self.client.submit(rounds.part_of_push, push, *bounds, pure=False) for push in pushes]
        return self.client.submit(
            rounds.merge_block, work, self.blocks[number], parts, keep_reports,
            workers=[home], allow_other_workers=True, pure=False,
        )  # fmt: skip

    def _bounds(self) -> list[int]:
        summary = self.prepared.summary
        return block_bounds(summary.n_features, summary.n_factored, self._layout(), len(self.blocks))

    def _validate(self) -> dict[str, Any]:
        if not self.prepared.validation:
            return {}
        held_out, homes = self.prepared.validation, cluster.worker_addresses(self.client)
        tallies = [
            self.client.submit(
                rounds.evaluate_partitions, self.work, self.job.model.task, self.blocks, partitions,
                workers=[prepare.home_of(number, len(held_out), homes)], allow_other_workers=True, pure=False,
            )
            for number, partitions in enumerate(held_out)
        ]  # fmt: skip
        tally: Tally = self.client.submit(rounds.merge_tallies, tallies, pure=False).result()
        return tally.metrics()

    def _judge(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Keep these parameters if they are the best so far; without validation the last ones are."""
        primary = TALLIES[self.job.model.task].loss_name
        value = metrics.get(primary)
        if value is None or self.best is None or value < self.best.metrics[primary]:
            self.best, self.worse = _Best(list(self.blocks), epoch, metrics), 0
        else:
            self.worse += 1

    def _has_worsened(self) -> bool:
        """Whether to stop now. As long as rollbacks are left, it goes back to the best parameters instead."""
        if not self.job.training.early_stopping or self.worse < self.job.training.patience:
            return False
        if self.rollbacks >= self.job.training.rollbacks or self.best is None:
            return True
        self.blocks, self.worse, self.new_book = list(self.best.blocks), 0, True
        self.rollbacks += 1
        self.tell({"event": "rolled_back", "to_epoch": self.best.epoch, "rate_factor": 0.5**self.rollbacks})
        return False

    # ---------------------------------------------------------------------------------------------- result ----

    def _publish(self) -> TrainResult:
        url = storage.join(self.job.output.directory, "model")
        digest = self._save(url)
        assert self.best is not None
        options = dict(self.job.data.storage_options)
        result = TrainResult(
            url,
            digest,
            self.history,
            self.best.metrics,
            self.prepared.account,
            self.best.epoch,
            self.interrupted,
            options,
        )
        self.tell(
            {
                "event": "done",
                "model": url,
                "validation": self.best.metrics,
                "best_epoch": self.best.epoch,
                "rows": _rows_event(self.prepared.account),
                "validation_rows": _rows_event(self.prepared.validation_account),
                "interrupted": self.interrupted,
                "parameters_sha256": digest,
            }
        )
        return result

    def _save(self, url: str) -> str:
        """Write the best parameters as a model: by a worker, or here where only this machine can write the path."""
        assert self.best is not None
        reading = self.prepared.reading
        units = self.inputs.validation_tasks[0] if self.inputs.validation_tasks else self.inputs.plan.replicas[0][0]
        where = os.path.abspath(storage.local_path(url)) if storage.is_local(url) else url
        arguments = reading, self._metadata(), units[0], where
        if storage.is_local(url) and not self.shares_disk:
            blocks, vocabulary = self.client.gather([self.best.blocks, self.prepared.vocabulary])
            return publish_model(blocks, vocabulary, *arguments)
        digest: str = self.client.submit(
            publish_model, self.best.blocks, self.prepared.vocabulary, *arguments, pure=False
        ).result()
        return digest

    def _metadata(self) -> dict[str, Any]:
        assert self.best is not None
        shards = [[s.url, s.size, s.modified] for s in self.inputs.train]
        return {
            "dfm_version": importlib.metadata.version("dfm"),
            "settings": self.job.to_dict(),
            "job_fingerprint": self.job.fingerprint(),
            "validation": self.best.metrics,
            "best_epoch": self.best.epoch,
            "history": self.history,
            "rows": _rows_event(self.prepared.account),
            "validation_rows": _rows_event(self.prepared.validation_account),
            "data_fingerprint": fingerprint(shards),
            "distinct_features": self.prepared.summary.n_distinct,
            "warm_start": self.warm.describe() if self.warm else {},
        }

    def _prune(self, started: float) -> None:
        """Keep the cache of local workers below its limit; what this run used stays."""
        if self.shares_disk:
            directory = cluster.cache_directory(self.job.cluster, self.client)
            freed = prune_cache(directory, parse_bytes(self.job.cluster.cache_limit), started)
            if freed:
                logger.info("deleted %d bytes of old partitions in %s", freed, directory)


def publish_model(
    blocks: Sequence[rounds.Block],
    vocabulary: Vocabulary,
    reading: Reading,
    metadata: dict[str, Any],
    golden_unit: Unit,
    url: str,
) -> str:
    """Put the model together and save it with some golden rows; returns the fingerprint of its parameters."""
    table = rounds.whole_table(blocks)
    model = FMModel(reading.schema, reading.task, vocabulary, table, reading.statistics, metadata)
    return model.save(url, golden_rows(reading, golden_unit), reading.storage_options)


def golden_rows(reading: Reading, unit: Unit) -> pa.Table | None:
    """The first good rows of a unit, as they are stored."""
    for batch in read_unit(unit, reading.columns, reading.storage_options):
        head = batch.data.slice(0, 4 * GOLDEN_ROWS)
        with naming_shard(batch):
            encoded = encode_batch(head, reading.schema, reading.hash_bits, reading.statistics, reading.task)
        rows = head.filter(pa.array(encoded.good)).slice(0, GOLDEN_ROWS)
        if rows.num_rows:
            return pa.Table.from_batches([rows])
    return None


def block_bounds(n_features: int, n_factored: int, layout: Layout, n_blocks: int) -> list[int]:
    """Row bounds of blocks of about equal bytes, n_blocks + 1 ascending integers."""
    heavy, light = layout.linear_width + layout.factor_width, layout.linear_width
    total = heavy * n_factored + light * (n_features - n_factored)
    bounds = [0]
    for number in range(1, n_blocks):
        share = total * number // n_blocks
        in_heavy = share // heavy
        row = in_heavy if in_heavy < n_factored else n_factored + (share - heavy * n_factored) // light
        bounds.append(max(bounds[-1], row))
    return [*bounds, n_features]


_EXPLODED = 20.0
"""Mean log loss of an epoch, in nats, that only a model at odds with all of its rows has; never answering 0.7."""


def _check_finite(epoch: int, reports: Sequence[rounds.ReplicaReport], task: str) -> None:
    """DivergenceError where a replica's loss left the finite numbers, or the log loss exploded."""
    for report in reports:
        exploded = task == "classification" and report.tally.mean_loss > _EXPLODED
        if not report.tally.is_finite or exploded:
            loss = f"{report.tally.mean_loss:.3g}" if exploded else "no longer finite"
            raise DivergenceError(
                f"training diverged in epoch {epoch}, replica {report.replica}: the mean loss is {loss}; "
                "try a smaller training.learning_rate (plain sgd wants 0.001), or more L2"
            )


def _initial_bias(task: str, account: RowAccount) -> float:
    """What a model without features would answer: the mean label, as a log-odds for classification."""
    mean = account.label_sum / max(account.accepted, 1)
    if task == "regression":
        return mean
    inside = min(max(mean, 1e-6), 1.0 - 1e-6)
    return math.log(inside / (1.0 - inside))


def _train_metric(task: str, mean_loss: float) -> dict[str, float]:
    if task == "classification":
        return {"train_log_loss": mean_loss}
    return {"train_rmse": (2.0 * mean_loss) ** 0.5}


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
