"""The work of Python users and of the command line: train a job, plan it, evaluate and predict with a model."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distributed import Client

from dfm import mlflow
from dfm.data.accounting import RowAccount
from dfm.data.arrow_types import root_of
from dfm.data.discovery import NothingFound, find_files
from dfm.data.duplicates import check_named_once
from dfm.data.parquet import Shard, feature_schema, find_shards
from dfm.distributed import folds as folding
from dfm.distributed import frames
from dfm.distributed import search as searching
from dfm.distributed import train as training
from dfm.distributed.admitting import admitted, start_of
from dfm.distributed.cluster import connect, remote
from dfm.distributed.cluster.size import sized
from dfm.distributed.cluster.watch import Watch
from dfm.distributed.evaluate import Evaluation, evaluate_shards, order_in_slices, weighing
from dfm.distributed.folds import Folds
from dfm.distributed.importance import check_importance, damage_in_batches, damage_in_shards, described
from dfm.distributed.predict import Overwrite, predict_shards
from dfm.distributed.scoring import Edition, Scoring
from dfm.distributed.search import SearchResult
from dfm.distributed.slicing import Again, check_columns, check_slicing, check_threshold, sliced_metrics
from dfm.distributed.train import Event, OnEvent, TrainResult
from dfm.distributed.trials import Trials, open_trials
from dfm.errors import DataError, OutOfMemoryError, SettingsError
from dfm.kernels.custom.functions import CustomLoss, CustomRegularizer
from dfm.model.drift import Sights
from dfm.model.entries import names_of
from dfm.model.fm_model import FMModel
from dfm.model.importance import MOST_ROWS, Damage, Effort
from dfm.model.inspection import strengths_of
from dfm.model.objective import classified, with_functions
from dfm.model.report import report_model
from dfm.model.rows import arrived
from dfm.model.slices import Slicing
from dfm.pages.page import REPORT
from dfm.runs.display import watched
from dfm.runs.log import PUBLISHED, AttemptsLeft, RunLog
from dfm.settings.arguments import COUNT, check_bad_rows, checked, texts
from dfm.settings.constraints import Number
from dfm.settings.job import Job, load_job
from dfm.settings.tables import ClusterSettings
from dfm.storage import files, ownership
from dfm.storage.credentials import check_options, check_url
from dfm.training.inputs import find_inputs
from dfm.training.memory import GIB, plan_of, worker_memory
from dfm.training.order import Order, admit
from dfm.training.publish import check_replaceable

ModelLike = str | os.PathLike[str] | FMModel
logger = logging.getLogger(__name__)
_OF_TEXT = ".csv", ".tsv", ".txt", ".json", ".jsonl"
"""Endings of files that predictions are not."""
JobLike = str | os.PathLike[str] | Mapping[str, Any] | Job


def train(
    job: JobLike,
    client: Client | None = None,
    *,
    overrides: str | Sequence[str] = (),
    on_event: OnEvent | None = None,
    progress: bool | None = None,
    run_id: str = "",
    attempts_left: AttemptsLeft = 0,
    loss: str | Callable[..., Any] | CustomLoss | None = None,
    regularizer: Callable[..., Any] | None = None,
) -> TrainResult:
    """Train a job (path of a TOML file, dict of its tables, or Job) and publish its model.

    client: the Dask client to run on; without one the job's [cluster] decides. overrides: "table.key=value".
    on_event: called as stages and epochs pass, with a record: a dict that `dfm events` and the site describe ("plan",
    "progress", "epoch", "done", …); what it raises ends the training. One call at a time, in this thread; while several
    models are trained (model.n_models), in threads of theirs. progress: whether to print what the command line prints;
    None: in a terminal or a notebook, unless there is an on_event. Where nobody is told, the diagnosis of what could
    not be learnt is logged as warnings. DfmError where the job cannot go on.
    run_id: of a run that was submitted before, whose record this driver takes over; empty: a new one. The record lies
    in output.directory beside the model (dfm.runs.record). attempts_left: how often a supervisor would start this
    again, or a function that tells it once an error has ended the training; while it would, the record of a run whose
    cluster is lost says "retrying" and not "failed". loss: a name, or a function loss(score, y) of numbers, whose slope
    dfm derives. regularizer: a function of one weight, in place of w² / 2; training.l2_linear and l2_factors scale it.
    """
    resolved, own_loss, own_regularizer = _resolved(job, client, overrides, loss, regularizer)
    may_begin = functools.partial(_may_begin, resolved, own_loss, own_regularizer)
    # What may not begin leaves the record of the run before it alone; a run that has one is refused there.
    order = None if run_id and resolved.output.directory else may_begin()
    scheduler = client.scheduler.address if client is not None else ""
    with (
        RunLog(resolved, run_id, scheduler, attempts_left) as log,
        _naming_folders(job),
        watched(on_event, progress) as told,
    ):
        try:
            order = order or may_begin()
            on_both = _both(log.on_event, told or _log_diagnosis)
            result = training.train(order, client, on_both, log.record.run_id, log.rival)
        except OutOfMemoryError as error:
            planned = plan_of(order or Order.of(resolved), find_inputs(resolved))
            needed = worker_memory(planned, resolved.cluster.threads_per_worker) / GIB
            raise OutOfMemoryError(f"{error}. A worker of this job needs at most about {needed:.2g} GiB") from error
        if resolved.output.mlflow:
            mlflow.log_after(result)
    return result


def _may_begin(job: Job, loss: CustomLoss | None, regularizer: CustomRegularizer | None) -> Order:
    """The order of a training. DfmError where it is refused before its run begins."""
    job.require_training()
    if job.output.mlflow:
        mlflow.check_installed()
    return admit(job, loss, regularizer)


def _resolved(
    job: JobLike,
    client: Any,
    overrides: str | Sequence[str],
    loss: str | Callable[..., Any] | CustomLoss | None,
    regularizer: Callable[..., Any] | None,
) -> tuple[Job, CustomLoss | None, CustomRegularizer | None]:
    """A job with its overrides and its user's functions. SettingsError or ClusterError as `_check` says."""
    _check(client)
    return with_functions(load_job(job, overrides), loss, regularizer)


def _check(client: Any) -> None:
    """SettingsError or ClusterError where the client that was given, if any, cannot be used."""
    if client is not None:
        remote.check_client(client)


def _check_scoring(client: Any, settings: Any, on_bad_rows: str) -> None:
    """The same, and SettingsError where the settings are none of a cluster, or there is no such rule for bad rows."""
    _check(client)
    check_bad_rows(on_bad_rows)
    if not isinstance(settings, ClusterSettings | None):
        raise SettingsError(
            f"settings is a {type(settings).__name__}: expected the ClusterSettings of a job (dfm.load_job(…).cluster)"
        )


def search(
    job: JobLike,
    client: Client | None = None,
    *,
    overrides: str | Sequence[str] = (),
    on_event: OnEvent | None = None,
    progress: bool | None = None,
    resume: bool | None = None,
    loss: str | Callable[..., Any] | CustomLoss | None = None,
    regularizer: Callable[..., Any] | None = None,
) -> SearchResult:
    """Try settings of a job, its [search] table says which, and write the best as output.directory/best.toml.

    Arguments as in `train`. Rows are hashed once; what was tried stands in output.directory/search.jsonl, from where
    the same call goes on after it was interrupted, unless resume is False (None: as output.resume says).
    DivergenceError where no setting that was tried has a finite loss.
    """
    order = admit(*_resolved(job, client, overrides, loss, regularizer))
    with watched(on_event, progress) as told:
        return searching.search(order, client, told, resume)


@contextlib.contextmanager
def trials(
    job: JobLike,
    client: Client | None = None,
    *,
    overrides: str | Sequence[str] = (),
    on_event: OnEvent | None = None,
    progress: bool | None = None,
    loss: str | Callable[..., Any] | CustomLoss | None = None,
    regularizer: Callable[..., Any] | None = None,
) -> Iterator[Trials]:
    """A block in which settings of a job can be tried by whatever searches them; rows are hashed once, at its start.

    Arguments as in `train`; nothing is published. `Trials.loss(learning_rate=2.0, n_factors=8)` is the best that a
    training with these settings comes to on the validation rows, as the log loss (with training.stop_on = "auc" 1 less
    the AUC), so that Optuna needs no more than

        with dfm.trials("job.toml") as trials:
            study.optimize(lambda trial: trials.loss(learning_rate=trial.suggest_float("rate", 0.3, 4, log=True)))
    """
    order = Order.of(*_resolved(job, client, overrides, loss, regularizer))
    with watched(on_event, progress) as told, open_trials(order, client, told) as found:
        yield found


def cross_validate(
    job: JobLike,
    n_folds: int = 5,
    *,
    by: str = "lot",
    client: Client | None = None,
    overrides: str | Sequence[str] = (),
    on_event: OnEvent | None = None,
    progress: bool | None = None,
    loss: str | Callable[..., Any] | CustomLoss | None = None,
    regularizer: Callable[..., Any] | None = None,
) -> Folds:
    """Metrics of a job on each of n_folds parts of its rows, trained on the others; nothing is published.

    by: "lot", or "time": then each part is judged by what was learnt of the parts before it. Other arguments as in
    `train`.
    """
    order = Order.of(*_resolved(job, client, overrides, loss, regularizer))
    with watched(on_event, progress) as told:
        return folding.cross_validate(order, n_folds, by, client, told)


def _log_diagnosis(event: Event) -> None:
    for finding in event["findings"] if event["event"] == "diagnosis" else ():
        logger.warning("%s (%s)", finding["message"], ", ".join(finding["knobs"]))


def _both(first: OnEvent, second: OnEvent) -> OnEvent:
    """The caller hears of an event before the first may end the run with it; of a published model after it is on
    record.
    """

    def on_event(event: Event) -> None:
        is_published = event["event"] in PUBLISHED
        if is_published:
            first(event)
        second(event)
        if not is_published:
            first(event)

    return on_event


def plan(job: JobLike, overrides: str | Sequence[str] = ()) -> dict[str, Any]:
    """The plan of `train`, from the footers of the shards alone: rows, replicas, and bounds on memory and wire.

    Features are not counted yet, so the sizes are upper bounds: no more features than entries, and those of
    `training.warm_start`, nor than 2^hash_bits. DfmError where `train` would refuse the job before it starts workers;
    only that the output can be written is not tried.
    """
    order = Order.of(load_job(job, overrides))
    check_replaceable(order.job)
    with _naming_folders(job):
        inputs = find_inputs(order.job)
    order = admitted(order, inputs)
    start = start_of(order, inputs)
    return plan_of(order, inputs, start.n_features if start else 0)


def _checked(options: Mapping[str, Any] | None, **urls: str | Sequence[str]) -> dict[str, list[str]]:
    """The URLs as lists. SettingsError where one of them, or an option, holds a secret: both travel in tasks."""
    check_options(options, "storage_options")
    listed = {name: [found] if isinstance(found, str) else list(found) for name, found in urls.items()}
    for name, found in listed.items():
        for url in found:
            check_url(url, name)
    return listed


def evaluate(
    model: ModelLike,
    data: Any,
    *,
    settings: ClusterSettings | None = None,
    client: Client | None = None,
    by: str | Sequence[str | Sequence[str]] = (),
    group: str = "",
    threshold: float | None = None,
    top: int = 50,
    min_rows: int = 1000,
    on_bad_rows: str = "error",
    storage_options: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Metrics of a model on labelled rows, with the row account under "account", and under "drift" a record of each
    column: shares of missing, rare and never seen values, and the population stability index (`psi`) against training.

    model: a published one (path or URL), or an FMModel. data: shards (paths, folders, globs, URLs, or a list of them),
    which a cluster scores; a frame of Dask, whose partitions are scored where they lie; or rows as `FMModel.predict`
    takes them, scored here. All have the columns of the schema's label and weight; where none has that of weights, rows
    count alike, and a warning says so. on_bad_rows: "error" or "skip", however many they are. on_event, progress:
    as in `train`.

    by: columns, or "a,b" of several, by whose values rows are sliced: under "slices", by these names ("a,b", without
    blanks), stand the `top` worst of those with `min_rows` rows, by normalized entropy (regression: rmse), the first
    200 with their AUC. group: a column (a user, a query) within whose values rows are ranked: group_auc, ndcg_5,
    ndcg_10, mrr, groups and groups_of_one_class, where rows with one score count as in the mean over their orders.
    threshold: a probability, with accuracy, precision, recall and f1 where rows from it on count as positive.
    SettingsError where an argument has none of these values.
    """
    _check_scoring(client, settings, on_bad_rows)
    top = checked("top", top, 50, COUNT)
    min_rows = checked("min_rows", min_rows, 1000, Number(0, integer=True))
    slicing = Slicing.of(by, group)
    loaded, place = _model(model, storage_options)
    check_threshold(loaded, threshold)
    check_slicing(loaded, slicing)
    paths = _paths_of(data := arrived(data))
    if paths is not None:
        shards = _shards_at(paths, storage_options)
        check_columns(loaded, slicing, (feature_schema(shard, storage_options).names for shard in shards))
        scored, chosen = _weighing_shards(loaded, shards, storage_options), _to_score(loaded, settings)
        scoring = Scoring(
            place, on_bad_rows, (), "", storage_options, is_weighted=bool(scored.schema.weight), slicing=slicing
        )
        with watched(on_event, progress) as told, connect.client_of(chosen, client) as own:
            watch, report = Watch(own, chosen.worker_timeout), _progress(told)
            found = evaluate_shards(watch, scoring, shards, report)
            again: Again = functools.partial(order_in_slices, watch, scoring, shards, progress=report)
            sliced = sliced_metrics(loaded, slicing, found, again, top, min_rows)
    else:
        check_columns(loaded, slicing, map(names_of, _parts(data)))
        scored = _weighing_rows(loaded, data)
        found, again = _evaluated(scored, data, on_bad_rows, client, slicing)
        sliced = sliced_metrics(loaded, slicing, found, again, top, min_rows)
    account = found.account
    account.check_any("evaluate on", scored.schema.weight)
    decided = {} if threshold is None else classified(found.tally).at_threshold(threshold)
    drift = drift_of(loaded, found.sights)
    return {**found.tally.metrics(), **decided, **sliced, "account": _told(account, "evaluated"), "drift": drift}


def _told(account: RowAccount, done: str) -> dict[str, Any]:
    """The account of rows that were scored; done: the name of the good ones."""
    counts = {"read": account.read, done: account.accepted, "rejected": account.rejected}
    return {**counts, "reasons": account.by_reason()}


def _evaluated(
    model: FMModel, data: Any, on_bad_rows: str, client: Client | None, slicing: Slicing
) -> tuple[Evaluation, Again]:
    """The evaluation of rows in memory, or of a frame of Dask, and another walk over them."""
    if frames.is_collection(data):
        found = frames.evaluate_collection(model, data, on_bad_rows, client, slicing)
        return found, functools.partial(frames.tally_collection, model, data, client, slicing)
    found = frames.evaluate_rows(model, data, on_bad_rows, slicing=slicing)
    return found, functools.partial(frames.tally_rows, model, data, slicing)


def drift_of(model: FMModel, sights: Sights | None) -> list[dict[str, Any]]:
    """A record of each column, the one that drifted most first."""
    return [] if sights is None else model.watcher.records(sights, model.schema)


def importance(
    model: ModelLike,
    data: Any,
    *,
    repeats: int = 3,
    rows: int = MOST_ROWS,
    settings: ClusterSettings | None = None,
    client: Client | None = None,
    on_bad_rows: str = "error",
    storage_options: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """The rise of a model's loss without each of its columns: the `loss` of `evaluate` where the model has one (that of
    `quantile`, `poisson`, …), else the log loss; of regressions the squared error.

    Under "columns" a record of each, the most important first: `permuted`, the mean rise where its values change places
    among all rows, whatever files they lie in, `permuted_error`, half the width of an interval of 95 % over the
    repeats, and `missing`, the rise where it has no value (None of a matrix, which has no gaps); then "rows" and
    "loss". Under "pairs" a record of each pair of fields, the strongest first: `first`, `second`, `strength`, the mean
    absolute term that both make together, in the unit of scores, over up to a thousand of the rows; of family "fwfm"
    the learnt `r`, too. Beyond 500 fields, and of a matrix, there is none of pairs, and "pairs_left_out" says so. Under
    "account" rows read, good and rejected, the rejected ones by reason. Nothing is trained.

    model, data, on_bad_rows, on_event, progress: as in `evaluate`; frames of Dask are taken as shards or computed ones.
    rows: of so many, spread over the data, it is measured. The same on any cluster.
    """
    _check_scoring(client, settings, on_bad_rows)
    repeats, rows = checked("repeats", repeats, 3, COUNT), checked("rows", rows, MOST_ROWS, COUNT)
    loaded, place = _model(model, storage_options)
    check_importance(loaded)
    data = arrived(data)
    paths = _paths_of(data)
    if paths is None:
        name, scored = f"the {type(data).__name__} given", _weighing_rows(loaded, data)
        total = sum(batch.data.num_rows for batch in frames.row_batches(scored, data, name))
        effort = Effort.of(total, rows, repeats)
        damage = damage_in_batches(scored, frames.row_batches(scored, data, name), on_bad_rows, effort)
        return _findings(damage, loaded)
    shards = _shards_at(paths, storage_options)
    is_weighted = bool(_weighing_shards(loaded, shards, storage_options).schema.weight)
    chosen = _to_score(loaded, settings)
    scoring = Scoring(place, on_bad_rows, storage_options=storage_options, is_weighted=is_weighted)
    effort = Effort.of(sum(shard.n_rows for shard in shards), rows, repeats)
    with watched(on_event, progress) as told, connect.client_of(chosen, client) as own:
        damage = damage_in_shards(Watch(own, chosen.worker_timeout), scoring, shards, effort, _progress(told))
    return _findings(damage, loaded)


def _findings(damage: Damage, model: FMModel) -> dict[str, Any]:
    """The findings and the account; each pair of fields with the strength r that a model of family "fwfm" learnt."""
    found = {**described(damage, model.schema), "account": _told(damage.account, "good")}
    if (learnt := strengths_of(model)) is None:
        return found
    places = {name: at for at, name in enumerate(learnt[0])}
    pairs = [{**each, "r": float(learnt[1][places[each["first"]], places[each["second"]]])} for each in found["pairs"]]
    return {**found, "pairs": pairs}


def _model(model: ModelLike, options: Mapping[str, Any] | None) -> tuple[FMModel, Edition | FMModel]:
    """The model, its golden rows checked before any worker starts; and what workers load: an edition, or itself."""
    if isinstance(model, FMModel):
        return model, model
    url = os.fspath(model)
    _checked(options, model=[url])
    edition = Edition.of(url, options)
    return edition.load(options, check_golden=True), edition


def _to_score(model: FMModel, settings: ClusterSettings | None) -> ClusterSettings:
    """The cluster that scores shards: each worker loads the model."""
    return sized(settings or ClusterSettings(), lambda n_workers: GIB + 2 * model.table.nbytes)


def _paths_of(data: Any) -> list[str] | None:
    """Paths of shards, one or a list of them; None where the data are rows."""
    if isinstance(data, str | os.PathLike):
        return [os.fspath(data)]
    listed = list(data) if isinstance(data, list | tuple | set | Iterator) else []
    are_paths = bool(listed) and all(isinstance(path, str | os.PathLike) for path in listed)
    return [os.fspath(path) for path in listed] if are_paths else None


def _shards_at(paths: Sequence[str], options: Mapping[str, Any] | None) -> list[Shard]:
    """The shards that paths name. DataError where one of them has two names: each of its rows would count twice."""
    shards = find_shards(_checked(options, data=paths)["data"], options)
    check_named_once(shards, options)
    return shards


def _weighing_shards(model: FMModel, shards: Sequence[Shard], options: Mapping[str, Any] | None) -> FMModel:
    """The model, for which rows count alike where no shard has its column of weights."""
    weight = model.schema.weight
    is_there = not weight or any(weight in feature_schema(shard, options).names for shard in shards)
    return _weighing(model, is_there, "no shard has")


def _weighing_rows(model: FMModel, data: Any) -> FMModel:
    """The same of rows in memory, or of a frame of Dask."""
    weight = model.schema.weight
    is_there = not weight or any(root_of(weight, names_of(each)) is not None for each in _parts(data))
    return _weighing(model, is_there, "the rows lack")


def _parts(data: Any) -> Sequence[Any]:
    """Each row of a list, the whole of other data: where only some rows have a column, they are refused as they are put
    together.
    """
    return data if isinstance(data, list | tuple) else [data]


def _weighing(model: FMModel, is_there: bool, lacking: str) -> FMModel:
    if not is_there:
        logger.warning(
            "%s the column %r, which weighed the rows in training: all rows count alike here",
            lacking, model.schema.weight,
        )  # fmt: skip
    return weighing(model, is_there)


@contextlib.contextmanager
def _naming_folders(source: JobLike) -> Iterator[None]:
    """Messages that name the folder of the job file, where a path names nothing but does so from there."""
    try:
        yield
    except NothingFound as error:
        folder = os.path.dirname(os.path.abspath(source)) if isinstance(source, str | os.PathLike) else ""
        other = os.path.join(folder, error.path)
        if folder and _is_there(other):
            raise DataError(
                f"{error}. There is {os.path.normpath(other)}: paths of a job file are relative to the folder that dfm "
                f"runs in, not to that of the file. Run dfm in {folder}, or write the path from here"
            ) from None
        raise


def _is_there(path: str) -> bool:
    try:
        return files.is_local(path) and bool(find_files(path, {}))
    except DataError:
        return False


def predict(
    model: ModelLike,
    data: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str,
    *,
    keep: str | Sequence[str] = (),
    overwrite: bool | Overwrite = False,
    settings: ClusterSettings | None = None,
    client: Client | None = None,
    on_bad_rows: str = "error",
    storage_options: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Score shards and write `output`/part-*.parquet: the kept columns (all, unless named) and "prediction".

    Shards may differ in their columns; all parts have one schema. Where workers run on other machines, `output` is a
    URL: of an object store, or `file://…` for a folder that they share with this machine.

    on_event, progress: as in `train`. overwrite: False: `output` must be empty; "own": an earlier prediction is
    replaced; True, or "beside": files that dfm did not make may lie there too, and stay. SettingsError where `output`
    is empty, is, contains or lies inside the data or the model, whatever `overwrite` says, or is named like a file of
    text.
    """
    _check_scoring(client, settings, on_bad_rows)
    files.check_named(output, "output")
    name, ending = os.path.splitext(output)
    if ending.lower() in _OF_TEXT:
        raise SettingsError(
            f"output = {output!r} is named like a file of text, and predictions are Parquet parts in a folder; name a "
            f"folder ({name!r}). Rows in memory are scored by FMModel.predict"
        )
    replaced: Overwrite = overwrite if isinstance(overwrite, str) else "beside" if overwrite else "nothing"
    loaded, place = _model(model, storage_options)
    chosen = _to_score(loaded, settings)
    paths = _paths_of(data)
    if paths is None:
        raise SettingsError(
            f"{type(data).__name__} names no shards: pass paths, folders, globs or URLs; rows in memory are scored by "
            "FMModel.predict"
        )
    _checked(storage_options, output=[output])
    where = files.absolute(output)
    scoring = Scoring(place, on_bad_rows, texts("keep", keep), where, storage_options)
    shards = _shards_at(paths, storage_options)
    inputs = [*paths, *([place.url] if isinstance(place, Edition) else [])]
    ownership.check_apart(where, inputs, "output", storage_options, shards=[shard.url for shard in shards])
    with watched(on_event, progress) as told, connect.client_of(chosen, client) as own:
        found = predict_shards(Watch(own, chosen.worker_timeout), scoring, shards, _progress(told), replaced)
    account = found.account
    return {
        "output": where,
        "rows": account.read,
        "predicted": account.accepted,
        "rejected": account.rejected,
        "reasons": account.by_reason(),
        "drift": drift_of(loaded, found.sights),
    }


def report(model: str | os.PathLike[str], output: str = "", *, storage_options: Mapping[str, Any] | None = None) -> str:
    """Write the page about a published model (path or URL of its folder) again, and return its path or URL.

    output: the page; without one report.html beside the model's folder, where training has written it. No data are
    read: what it tells of rows was found when the model was published. ModelError where there is no model;
    SettingsError where a file that dfm did not make is in the place.
    """
    place = os.fspath(model).rstrip("/")
    page = output or files.join(place.rpartition("/")[0] or ".", REPORT)
    _checked(storage_options, model=[place], output=[page])
    return report_model(place, page, f"model in {place}", storage_options)


def _progress(on_event: OnEvent | None) -> Any:
    def report(stage: str, done: int, total: int) -> None:
        if on_event is not None:
            event: Event = {"event": "progress", "stage": stage, "done": done, "total": total}
            on_event(event)

    return report
