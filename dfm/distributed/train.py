"""The whole run of a job on a cluster: rows prepared, rounds trained, the best parameters published."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from distributed import Client

from dfm.data.accounting import RowAccount
from dfm.data.cache import prune_cache
from dfm.data.snapshots import pins_of
from dfm.distributed import backends
from dfm.distributed.admitting import admitted, start_of
from dfm.distributed.beginning import begin, prepare_rows
from dfm.distributed.calibrating import calibrated
from dfm.distributed.checkpointing import Checkpointer
from dfm.distributed.choosing import best_of_both
from dfm.distributed.cluster import connect
from dfm.distributed.exact import solving_event
from dfm.distributed.keeping import PATIENCE_OF_A_USER, Training, kept, tolerated
from dfm.distributed.loops import checkpointer_of, identity_of, loop_of, resume
from dfm.distributed.prepare import Prepared
from dfm.distributed.publish import Trained, diagnosed, done_event, model_url, save_model
from dfm.distributed.reporting import write_page
from dfm.distributed.run import Event as Event
from dfm.distributed.run import OnEvent as OnEvent
from dfm.distributed.run import Run
from dfm.distributed.several import mean_of, member_runs, side_by_side, train_several
from dfm.distributed.tuning import settings_event
from dfm.errors import DataError, DivergenceError, LostParametersError, ModelError, RunCancelled
from dfm.events import history_frame
from dfm.model.figures import notebook_html, plot_history
from dfm.model.fm_model import BRIEF, FMModel
from dfm.model.warm_start import Start
from dfm.pages.numbers import number_text
from dfm.settings.constraints import parse_bytes
from dfm.settings.job import Job
from dfm.storage import files
from dfm.storage.tables import TableUrl
from dfm.training.checkpoint import Checkpoint, CheckpointFolder, prefix_of, prefixes_in
from dfm.training.inputs import Inputs, find_inputs, plan_event
from dfm.training.loop import TrainingLoop
from dfm.training.order import Order

logger = logging.getLogger(__name__)
T = TypeVar("T")
_TIMES_TAKEN_UP = 5
"""Times that a run goes on from its last checkpoint because parameters were lost."""
_LONGEST_WRITE = 3600.0
"""Seconds that the writing of a checkpoint may take which is then gone on from."""


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run: where the model is, one record per epoch, validation metrics, the row account."""

    model_url: str
    parameters_sha256: str
    history: list[Event]
    validation: dict[str, Any]
    rows: RowAccount
    best_epoch: int
    interrupted: bool = False
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    report_url: str = ""
    """The page about the model; empty where there is none."""

    def __repr__(self) -> str:
        """One line: where the model is, what it is worth."""
        told = {name: value for name, value in self.validation.items() if name in BRIEF and value is not None}
        metrics = "".join(f", {name}={number_text(told[name])}" for name in BRIEF if name in told)
        state = ", interrupted" if self.interrupted else ""
        epochs = f"best_epoch={self.best_epoch} of {self.history[-1]['epoch'] if self.history else 0}"
        return f"TrainResult({self.model_url!r}{metrics}, {epochs}, rows={self.rows.accepted:,}{state})"

    def _repr_html_(self) -> str:
        """The view in a notebook: the line, learning and calibration curves, metrics of the rows that validated."""
        return notebook_html(repr(self), {"history": self.history, "validation": self.validation})

    def history_frame(self) -> Any:
        """The history as a flat DataFrame of pandas, an epoch a row."""
        return history_frame(self.history)

    def plot_history(self, axes: Any = None) -> Any:
        """The losses by epoch as a plot of matplotlib (extra `plots`), on these axes or on new ones; returns them."""
        return plot_history(self.history, axes)

    @property
    def model(self) -> FMModel:
        """The published model, loaded. ModelError where a later run has published another one in its place."""
        model = FMModel.load(self.model_url, self.storage_options)
        self.check_own(model)
        return model

    def check_own(self, model: FMModel) -> None:
        """ModelError where a model found at `model_url` is not the one that this run published there."""
        if (found := model.parameters_sha256()) != self.parameters_sha256:
            raise ModelError(
                f"the model at {self.model_url} was replaced by a later run (parameters {found[:12]} in place of "
                f"{self.parameters_sha256[:12]}); give each run its own output.directory, and run this one again"
            )


def train(
    order: Order, client: Client | None = None, on_event: OnEvent | None = None, run_id: str = "", rival: str = ""
) -> TrainResult:
    """Train the model of an admitted job and publish it in output.directory/model.

    client: a Dask client to run on; without one the job's [cluster] is connected to, or started. on_event is called
    with a JSON-ready record as stages and epochs pass. run_id: the name that metrics and the manifest have for it.
    rival: sentences about another run that is at work in output.directory, if one is. Ctrl-C ends training after the
    best epoch so far is published.
    """
    job, tell = order.job, on_event or (lambda event: None)
    inputs = _inputs(job)
    order = admitted(order, inputs)
    warm = start_of(order, inputs)
    inputs = dataclasses.replace(inputs, schema=warm.read_on(inputs.schema)) if warm else inputs
    tell(plan_event(inputs))
    checkpoints = _find_checkpoints(job, inputs, warm, rival)
    result = None
    try:
        cluster = backends.cluster_of(order, inputs, warm.n_features if warm else 0)
        with connect.client_of(cluster, client) as own:
            result = _stages(begin(order, inputs, warm, own, tell, run_id), checkpoints)
    except Exception as error:
        if result is None:
            raise
        logger.warning("the model is published; the cluster did not end well: %s: %s", type(error).__name__, error)
    return result


@dataclass(frozen=True)
class _Saved:
    """The checkpoints of a model: their folder, and those to go on from."""

    folder: CheckpointFolder
    found: list[Checkpoint]


def _inputs(job: Job) -> Inputs:
    """The input of the job; of tables the states that its checkpoints were made of, where there are any."""
    if not job.output.resume or not any(map(TableUrl.of, (*job.data.train, *job.data.validation))):
        return find_inputs(job)
    newest = [found[0] for folder in _folders(job).values() if (found := folder.found())]
    pins = pins_of([record for checkpoint in newest for record in checkpoint.identity.tables_read])
    try:
        return find_inputs(job, pins)
    except DataError as error:
        if not pins:
            raise
        raise DataError(
            f"{error}. The checkpoint at {job.output.checkpoints} began with {', '.join(sorted(set(pins.values())))}; "
            "to start afresh, on the newest version, say --no-resume (output.resume = false), which deletes it"
        ) from error


def _folders(job: Job) -> dict[str, CheckpointFolder]:
    """The folders of the job's checkpoints, by their prefix; and of whatever else lies there."""
    url, options = job.output.checkpoints, job.data.storage_options
    url = os.path.abspath(files.local_path(url)) if files.is_local(url) else url
    writer = f"{platform.node()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
    own = [prefix_of(number, job.model.n_models) for number in range(job.model.n_models)]
    return {prefix: CheckpointFolder(url, writer, options, prefix) for prefix in (*own, *prefixes_in(url, options))}


def _find_checkpoints(job: Job, inputs: Inputs, warm: Start | None, rival: str) -> list[_Saved]:
    """The checkpoints of each model of the job. SettingsError where some there are another job's."""
    folders = _folders(job)
    if not job.output.resume:
        for folder in folders.values():
            folder.clear()
    saved = {prefix: _Saved(folder, folder.found()) for prefix, folder in folders.items()}
    for each in saved.values():
        if each.found:
            identity_of(job, inputs, warm).check(each.found[0].identity, each.folder.url, rival)
    return [saved[prefix_of(number, job.model.n_models)] for number in range(job.model.n_models)]


def _stages(run: Run, checkpoints: Sequence[_Saved]) -> TrainResult:
    """Prepare, train from the newest sound checkpoints that were found, publish."""
    moment, started = time.time(), time.monotonic()
    prepared = prepare_rows(run)
    seconds = {"prepare": time.monotonic() - started}
    try:
        with contextlib.ExitStack() as stack:
            savers = [
                stack.enter_context(contextlib.closing(checkpointer_of(run, each.folder))) for each in checkpoints
            ]
            trainings, train_all = _trainings(run, prepared, savers, checkpoints)
            made = _made(run, prepared, trainings, train_all)
    except DivergenceError:
        _clear(checkpoints)  # they lead to the same end, and another learning rate is another job
        raise
    return _ended(run, made, checkpoints, moment, {**seconds, "publish": made.seconds})


def _ended(
    run: Run, made: _Made, checkpoints: Sequence[_Saved], moment: float, seconds: Mapping[str, float]
) -> TrainResult:
    """The result of a run whose model is published. Until its page is there the checkpoints stay, so that a run which
    is killed over that does not train again; one that is told to stop leaves out what is left to do.
    """
    trained, page = made.trained, ""
    ending = done_event(run, made.prepared, trained, made.result.parameters_sha256)
    run.tell({**ending, "event": "saved"})
    if run.job.output.report:
        with tolerated("its report could not be written"):
            page = write_page(run, made.prepared, seconds, looks_at_rows=not trained.interrupted)
    if not trained.interrupted:
        with tolerated("its checkpoints could not be deleted"):
            _clear(checkpoints)
    with tolerated("old partitions could not be deleted"):
        _prune(run, moment)
    run.tell({**ending, "report": page})
    return dataclasses.replace(made.result, report_url=page)


@dataclass(frozen=True)
class _Made:
    """A published model, what it was made of, and how long publishing took."""

    prepared: Prepared
    trained: Trained
    result: TrainResult
    seconds: float


def _made(run: Run, prepared: Prepared, trainings: Sequence[Training], train_all: Callable[[], Trained]) -> _Made:
    """The model, trained and published; from the last checkpoint on where parameters are lost meanwhile."""
    for _ in range(_TIMES_TAKEN_UP):
        try:
            return _made_at_once(run, prepared, trainings, train_all)
        except LostParametersError:
            if not _stands_again(run, trainings):
                raise
            logger.warning("parameters were lost with all workers that had them: the run goes on from its checkpoint")
    return _made_at_once(run, prepared, trainings, train_all)


def _made_at_once(
    run: Run, prepared: Prepared, trainings: Sequence[Training], train_all: Callable[[], Trained]
) -> _Made:
    with kept(trainings):
        trained = train_all()
    with kept(trainings, publishing=True):
        prepared, trained = _judged(run, prepared, trainings, trained)
        ended = time.monotonic()
        return _Made(prepared, trained, _publish(run, prepared, trained), time.monotonic() - ended)


def _judged(run: Run, prepared: Prepared, trainings: Sequence[Training], trained: Trained) -> tuple[Prepared, Trained]:
    """The model to publish, calibrated and diagnosed, with the rows as it sees them. Ctrl-C ends the judging, and not
    the model, which is published.
    """

    def heeding(judge: Callable[[Trained], T], trained: Trained) -> T:
        """The outcome of the judge or, once it is interrupted, that of a run which was."""
        try:
            return judge(trained)
        except KeyboardInterrupt:
            for training in trainings:
                training.checkpointer.flush(PATIENCE_OF_A_USER)
            return judge(dataclasses.replace(trained, interrupted=True))

    work = trainings[0].loop.work
    prepared, trained = heeding(lambda it: best_of_both(run, prepared, it), trained)
    trained = heeding(lambda it: calibrated(run, prepared, work, it), trained)
    judging = dataclasses.replace(work, calibration=trained.calibration)  # both sides of the comparison
    return prepared, heeding(lambda it: diagnosed(run, prepared, judging, it), trained)


def _stands_again(run: Run, trainings: Sequence[Training]) -> bool:
    """Whether a training whose parameters were lost stands where it was when its last checkpoint was written. Several
    that are told in step do not.
    """
    (first, *others) = trainings
    first.checkpointer.flush(_LONGEST_WRITE)
    committed = first.checkpointer.committed
    return committed is not None and not others and resume(run, first.loop, first.checkpointer, [committed])


def _clear(checkpoints: Sequence[_Saved]) -> None:
    for each in checkpoints:
        each.folder.clear()


def _trainings(
    run: Run, prepared: Prepared, savers: Sequence[Checkpointer], checkpoints: Sequence[_Saved]
) -> tuple[list[Training], Callable[[], Trained]]:
    """The training of each model of the job, at its start or its newest checkpoint; and what trains them all."""
    run.tell(solving_event(run, prepared) if run.job.training.is_exact else settings_event(run, prepared))
    if run.job.model.n_models == 1:
        training = Training(loop_of(run, prepared, savers[0], checkpoints[0].found), savers[0])
        return [training], lambda: _train_rounds(training.loop)
    in_step = side_by_side(run)
    trainings = [
        Training(loop_of(each, prepared, saver, saved.found), saver)
        for each, saver, saved in zip(member_runs(run, in_step), savers, checkpoints, strict=True)
    ]
    loops = [training.loop for training in trainings]
    return trainings, lambda: mean_of(run, prepared, loops, train_several(loops, in_step))


def _train_rounds(loop: TrainingLoop) -> Trained:
    """All rounds; fewer where training is interrupted when there are parameters to publish."""
    interrupted = False
    try:
        loop.run()
    except (KeyboardInterrupt, RunCancelled) as error:
        if loop.checkpointer is not None:
            loop.checkpointer.flush(PATIENCE_OF_A_USER)
        if isinstance(error, RunCancelled) or not loop.has_result:
            raise
        interrupted = True
    assert loop.best is not None
    return Trained(loop.best, loop.at.history, interrupted, pilot=loop.at.pilot, start=loop.at.start)


def _publish(run: Run, prepared: Prepared, trained: Trained) -> TrainResult:
    """Save the model."""
    return TrainResult(
        model_url=model_url(run),
        parameters_sha256=save_model(run, prepared, trained),
        history=trained.history,
        validation=trained.best.metrics,
        rows=prepared.account,
        best_epoch=trained.best.epoch,
        interrupted=trained.interrupted,
        storage_options=dict(run.job.data.storage_options),
    )


def _prune(run: Run, started: float) -> None:
    """Keep the cache of local workers below its limit; what this run, which started at that time, used stays."""
    if run.shares_disk:
        directory = connect.cache_directory(run.job.cluster, run.client)
        freed = prune_cache(directory, parse_bytes(run.job.cluster.cache_limit), started)
        if freed:
            logger.info("deleted %d bytes of old partitions in %s", freed, directory)
