"""Events of a run and of the command line: what each is called, what it holds, who emits it.

An event is a dict with "event", its name, and the fields that its record in `RECORDS` lists. The same record describes
a line of `--json`, a line of a run's `events.jsonl` and a message on the Dask topic `dfm`; `sent` is what such a line
holds, `faults_of` what an event has in excess or lacks. Tests hold every emitter, and the table of the site, to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

VERSION = "event_version"
"""The key under which an event carries the version of its record."""
_KINDS: dict[str, tuple[type, ...]] = {
    "flag": (bool,),
    "integer": (int,),
    "number": (int, float),
    "text": (str,),
    "list": (list, tuple),
    "record": (Mapping,),
}
"""The kinds of a field, each with the Python types of its values before they are JSON."""


@dataclass(frozen=True)
class Field:
    """One value of an event. `may_be_absent`: left out where it does not apply; `may_be_null`: undefined."""

    name: str
    kind: str
    meaning: str
    unit: str = ""
    may_be_absent: bool = False
    may_be_null: bool = False

    def admits(self, value: object) -> bool:
        """Whether a value is of the field's kind; NaN and infinity are numbers, which become null on their way out."""
        if value is None:
            return self.may_be_null
        is_flag = isinstance(value, bool)
        return isinstance(value, _KINDS[self.kind]) and is_flag == (self.kind == "flag")


@dataclass(frozen=True)
class EventRecord:
    """A kind of event. `passing`: only the last one matters, so that it is neither kept nor sent on.

    Version 1 is the first; it grows when a field goes or changes its meaning, not when one is added.
    """

    name: str
    emitter: str
    meaning: str
    fields: tuple[Field, ...]
    version: int = 1
    passing: bool = False

    def faults(self, event: Mapping[str, Any]) -> list[str]:
        """Fields that an event of this name has in excess, lacks, or has of another kind."""
        known = {field.name: field for field in self.fields}
        strange = event.keys() - known.keys() - _STAMPS - {"event"}
        missing = {name for name, field in known.items() if not field.may_be_absent} - event.keys()
        wrong = [name for name in known.keys() & event.keys() if not known[name].admits(event[name])]
        return [
            *(f"{self.name}.{name} is in no record of it" for name in sorted(strange)),
            *(f"{self.name}.{name} is missing" for name in sorted(missing)),
            *(f"{self.name}.{name} = {event[name]!r} is no {known[name].kind}" for name in sorted(wrong)),
        ]


def history_frame(history: Iterable[Mapping[str, Any]]) -> Any:
    """Records of epochs as a flat DataFrame of pandas, indexed by epoch: numbers and text, no lists and records."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("a frame of the history needs pandas: pip install pandas") from error
    rows = [
        {name: value for name, value in record.items() if not isinstance(value, Mapping | list | tuple)}
        for record in history
    ]
    frame = pd.DataFrame(rows).drop(columns=["event", VERSION, "time", "run_id"], errors="ignore")
    index = [name for name in ("seed", "epoch") if name in frame.columns]
    return frame.set_index(index) if "epoch" in index else frame


def json_ready(value: Any) -> Any:
    """The value with null in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def to_json(value: Any, indent: int | None = None) -> str:
    """The text of a value; what JSON cannot hold becomes null, or text."""
    return json.dumps(json_ready(value), indent=indent, allow_nan=False)


def sent(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event as it leaves this process: JSON-ready, with the version of its record."""
    version = next((record.version for record in RECORDS if record.name == event["event"]), 1)
    return {"event": event["event"], VERSION: version, **json_ready(event)}


def line_of(event: Mapping[str, Any]) -> str:
    """The event as one line of JSON, without a line break."""
    return json.dumps(sent(event), allow_nan=False)


def is_passing(event: Mapping[str, Any]) -> bool:
    """Whether only the last event of this kind matters."""
    return event["event"] in _PASSING


def faults_of(event: Mapping[str, Any]) -> list[str]:
    """Faults of an event by its record; where several emitters use the name, by the one that fits best."""
    records = [record for record in RECORDS if record.name == event.get("event")]
    if not records:
        return [f"{event.get('event')!r} is the name of no event"]
    return min((record.faults(event) for record in records), key=len)


def described() -> list[tuple[str, str, str, str]]:
    """Every event and below it its fields: name ("epoch.seconds"), emitter, kind with unit (or version), meaning."""
    rows = []
    for record in RECORDS:
        rows.append((record.name, record.emitter, f"version {record.version}", record.meaning))
        rows += [(f"{record.name}.{f.name}", record.emitter, _kind_of(f), f.meaning) for f in record.fields]
    return rows


def markdown_table() -> str:
    """The table of the site: an event a line, `?` where a field may be absent."""
    rows = ["| event | emitted by | when | fields |", "|---|---|---|---|"]
    for record in RECORDS:
        fields = ", ".join(f"`{field.name}`" + "?" * field.may_be_absent for field in _folded(record.fields))
        rows.append(f"| `{record.name}` | {record.emitter} | {record.meaning} | {fields} |")
    return "\n".join(rows)


def _kind_of(field: Field) -> str:
    unit = f" ({field.unit})" if field.unit else ""
    null = " or null" if field.may_be_null else ""
    return f"{field.kind}{unit}{null}{', may be absent' * field.may_be_absent}"


def _folded(fields: Iterable[Field]) -> list[Field]:
    """The fields with those of `METRICS` as one, which would make most of the table."""
    listed, metrics = list(fields), {field.name for field in METRICS}
    kept = [field for field in listed if field.name not in metrics]
    return [*kept, _METRIC] if len(kept) <= len(listed) - len(METRICS) else listed


# --- the records -----------------------------------------------------------------------------------------

_METRIC = Field("(metrics)", "number", "metrics of the labelled rows", may_be_absent=True)
_TRAINING, _RUN = "training", "the record of a run"
_FOLLOWING = "whoever follows a run, or waits for it"
_DASK, _KUBERNETES = "`dfm … --scheduler`, or on a directory", "`dfm … --kubernetes`"


def _number(name: str, meaning: str, unit: str = "") -> Field:
    return Field(name, "number", meaning, unit, may_be_null=True)


def _absent(field: Field) -> Field:
    return replace(field, may_be_absent=True)


METRICS = tuple(
    _absent(field)
    for field in (
        _number("loss", "mean of the chosen loss, where it is neither the log loss nor the squared error"),
        _number("log_loss", "mean log loss", "nats"),
        _number("error_rate", "share of rows on the wrong side of a score of 0"),
        _number("auc", "area under the ROC curve"),
        _number("auc_error", "the most by which `auc` can be off"),
        _number("pr_auc", "average precision"),
        _number("normalized_entropy", "log loss over that of always answering `base_rate`"),
        _number("calibration", "sum of predictions over sum of labels"),
        _number("base_rate", "mean label"),
        _number("rmse", "root of the mean squared error", "label"),
        _number("mae", "mean absolute error", "label"),
        _number("mean_error", "mean of prediction less label", "label"),
        _number("mape", "mean absolute error in parts of the label, of rows whose label is not 0"),
        _number("r2", "share of the labels' variance that is explained"),
        _number("weight", "sum of the rows' weights"),
        Field("rows", "integer", "labelled rows", "rows"),
        Field("calibration_bins", "list", "ten records by rising prediction: predicted, observed, weight"),
        _number("group_auc", "mean AUC within a group, weighed by its rows (`schema.group`, `--group`)"),
        _number("ndcg_5", "mean over groups of the normalized discounted gain of the first 5 rows (with `group_auc`)"),
        _number("ndcg_10", "the same of the first 10 rows"),
        _number("mrr", "mean over groups of 1 over the place of the first clicked row"),
        Field("groups", "integer", "groups with both classes"),
        Field("groups_of_one_class", "integer", "groups that have no AUC"),
    )
)
"""Metrics of the tallies of dfm.model.metrics; task and loss decide which of them there are."""
MORE_IS_BETTER = ("auc", "group_auc")
"""Metrics that may choose, of which the greatest is the best."""


def compared(metric: str, number: float) -> float:
    """The number that stands for a metric where the least is the best: of those of `MORE_IS_BETTER` 1 less it. The same
    of that number is the metric again.
    """
    return 1.0 - number if metric in MORE_IS_BETTER else number


_METRIC_COMPARED = Field("metric", "text", "what losses are on the validation rows; auc and group_auc as 1 less it")
_PLAN = (
    Field("shards", "integer", "Parquet shards to train on", "shards"),
    Field("rows", "integer", "their rows", "rows"),
    Field("validation_shards", "integer", "Parquet shards to validate on", "shards"),
    Field(
        "validation_rows",
        "integer",
        "their rows; null where they are rows of the training shards, which are counted as they are read",
        "rows",
        may_be_null=True,
    ),
    Field("fields", "integer", "columns that are features"),
    Field("replicas", "integer", "local models that are averaged"),
    Field("rounds_per_epoch", "integer", "averages in the first epoch"),
    Field("later_rounds_per_epoch", "integer", "averages in each later epoch"),
    Field("rows_per_replica", "integer", "rows of the largest replica", "rows"),
    Field("held_out", "text", "which rows of the training shards validate; empty where none do"),
    Field("epochs", "integer", "walks over the rows, at most"),
    Field("schedule", "text", "how the step size changes"),
    Field(
        "tables",
        "list",
        "a record of each table of Delta Lake or Iceberg that is read: asked (as the job names it), url (for ever), "
        "kind, table (where it is), version, timestamp",
    ),
)
_ROWS = (
    "rows read, trained, rejected, the rejected ones by reason; sampled_out where negatives were; where the loss is of "
    "pairs, pairs of an epoch and rows in_pairs"
)
_EPOCH = Field("epoch", "integer", "which epoch, from 1")
_ROUND = Field("round", "integer", "averages of this epoch that are done")
_ROUNDS = Field("rounds", "integer", "averages that this epoch has")
_RUN_ID = Field("run_id", "text", "the run's name")
_DIRECTORY = Field("directory", "text", "output directory or URL of the run")
_REASON = Field("reason", "text", "why it stands so; empty where all is well")
_NAME = Field("name", "text", "the DaskJob")
_MODEL = Field("model", "text", "folder or URL of the model")
_DRIFT = Field(
    "drift",
    "list",
    "of each column: shares of missing, rare, unseen values; psi and least_psi (what it is at least) against training",
)
_ALIAS = Field("alias", "text", "folder or URL that names the champion")
_SHA256 = Field("parameters_sha256", "text", "digest of the parameters; empty where there are none yet")
_DASK_JOB = (
    _NAME,
    Field("status", "text", "the operator's word for it; empty before it has one"),
    Field("driver", "text", "phase of the driver's pod, or missing"),
    Field("workers", "integer", "worker pods that run"),
    Field("problems", "list", "what keeps pods from running, a line each"),
)
_DASK_JOB_MORE = (
    _RUN_ID,
    _DIRECTORY,
    Field("wanted", "integer", "worker pods that were asked for"),
    Field("exit_code", "integer", "of the driver's container, once it has ended", may_be_null=True),
)
_JOB_OUTCOME = Field("outcome", "text", "state of the run by its record, or: not readable here")
_RUN_RECORD = (
    _RUN_ID,
    Field("state", "text", "a state of the table in dfm/runs/lifecycle.py, or lost"),
    Field("job_fingerprint", "text", "digest of the job's settings"),
    Field("dfm_version", "text", "version of the driver's dfm"),
    Field("host", "text", "machine of the driver"),
    Field("pid", "integer", "process of the driver"),
    Field("scheduler", "text", "address of the Dask scheduler"),
    Field("submitted", "text", "moment of the submission", "ISO 8601"),
    Field("started", "text", "moment of the driver's start", "ISO 8601"),
    Field("updated", "text", "moment of its last heartbeat", "ISO 8601"),
    Field("ended", "text", "moment of its end", "ISO 8601"),
    Field("progress", "record", "what the last events told"),
    Field("error", "record", "type, message and exit code of what ended it", may_be_null=True),
    Field("model", "text", "folder or URL of the model; empty where there is none yet"),
    _SHA256,
    Field("validation", "record", "metrics of the model on the validation rows"),
    Field("rows", "record", _ROWS),
)
_OUTCOME = (
    _MODEL,
    Field("validation", "record", "its metrics on the validation rows; empty without any"),
    Field("best_epoch", "integer", "the epoch that it is from; 0: none beat `training.warm_start`"),
    Field("rows", "record", _ROWS),
    Field("validation_rows", "record", "the same of the validation rows"),
    Field("interrupted", "flag", "whether Ctrl-C ended training early"),
    _SHA256,
)
_PUBLICATION = (
    _MODEL,
    Field("promoted", "flag", "whether the model is the champion now"),
    Field("older", "flag", "whether its data end before the champion's, or it was the champion before: left alone"),
    Field("refusals", "list", "why it is not, a line each"),
    _ALIAS,
    Field("version", "integer", "version of the alias after it"),
    Field("candidate_metrics", "record", "metrics of the model"),
    Field("champion_metrics", "record", "metrics of the champion on the same rows; empty where there is none"),
)

RECORDS: tuple[EventRecord, ...] = (
    EventRecord(
        "progress",
        "training, `dfm evaluate`, `predict`, `synth`, `convert`",
        "rows of a stage are done; never printed by `--json`, nor kept",
        (
            Field(
                "stage",
                "text",
                "latest, statistics, hash, build, compile, pilot, linear, report, evaluate, predict, synth, convert",
            ),
            Field("done", "integer", "rows that are done; of compile, workers; of convert, bytes", "rows"),
            Field("total", "integer", "rows of the stage; of compile, workers; of convert, bytes", "rows"),
        ),
        passing=True,
    ),
    EventRecord("plan", _TRAINING, "shards are found and given to replicas", _PLAN),
    EventRecord(
        "plan",
        "`dfm train --dry-run`",
        "the job is resolved; nothing is trained",
        (
            *_PLAN,
            Field("job", "record", "every table of the job with every knob"),
            Field("columns", "record", "kind, and transform where it has one, of each feature column"),
            Field("parquet_bytes", "integer", "size of the training shards", "bytes"),
            Field("largest_shard_rows", "integer", "rows of the largest training shard", "rows"),
            Field("round_rows_per_replica", "integer", "rows between two averages, at most", "rows"),
            Field("partition_cache_bytes", "integer", "hashed partitions, at most", "bytes"),
            Field("parameter_bytes_at_most", "integer", "the parameter table", "bytes"),
            Field("round_bytes_per_replica_at_most", "integer", "what a replica receives and sends a round", "bytes"),
        ),
    ),
    EventRecord(
        "placement",
        _TRAINING,
        "replicas have their workers",
        (Field("workers", "list", "per worker: worker (address), replicas, rows, shards, bytes (of Parquet)"),),
    ),
    EventRecord(
        "vocabulary",
        _TRAINING,
        "shards are hashed, features counted",
        (
            Field("distinct_features", "integer", "distinct hash indices seen"),
            Field("features", "integer", "features that are kept"),
            Field("earlier_features", "integer", "those that only the model of training.warm_start has seen"),
            Field("features_with_factors", "integer", "features with factors"),
            Field("table_load", "number", "share of the hash table that is filled"),
            Field("collided_share", "number", "expected share of tokens that share an index"),
            Field("parameter_bytes", "integer", "the parameter table", "bytes"),
            Field("rows", "record", _ROWS),
            Field("validation_rows", "record", "the same of the validation rows"),
        ),
    ),
    EventRecord(
        "prepared",
        _TRAINING,
        "partitions are built and kernels compiled",
        (
            Field("seconds", "number", "since the start", "s"),
            Field("compile_seconds", "number", "the slowest compilation, meanwhile", "s"),
            Field("backend", "text", "name of the backend"),
            Field("backend_text", "text", "what it is and why it was chosen"),
        ),
    ),
    EventRecord(
        "settings",
        _TRAINING,
        "the rows are known, and with them what the job left to dfm",
        (
            Field("mean_squares", "number", "mean of a row's sum of x², at least 1; rows of weight 0 aside"),
            Field("learning_rate", "number", "step size before rate_scaling"),
            Field("factor_rate_scale", "number", "step size of the factors, in parts of that"),
            Field("l2_factors", "number", "L2 on factors"),
            Field("l2_linear", "number", "L2 on linear weights"),
            Field("init_stdev", "number", "standard deviation of the factors at the start"),
            Field("schedule", "text", "how the step size changes"),
            Field("epochs", "integer", "walks over the rows, at most"),
        ),
    ),
    EventRecord(
        "solving",
        _TRAINING,
        "an exact solver begins, in place of `settings` (`training.solver`)",
        (
            Field("solver", "text", "als or mcmc"),
            Field("iterations", "integer", "that it makes, at most"),
            Field("init_stdev", "number", "standard deviation of the factors at the start"),
            Field("burn_in", "integer", "first iterations whose draws are not kept, of mcmc", may_be_absent=True),
            Field("draws", "integer", "that the model keeps, of mcmc", may_be_absent=True),
            Field("l2_linear", "number", "L2 on linear weights, of als", may_be_absent=True),
            Field("l2_factors", "number", "L2 on factors, of als", may_be_absent=True),
            Field("epochs", "integer", "the iterations, which are walks over the rows"),
        ),
    ),
    EventRecord(
        "chosen",
        _TRAINING,
        "a model without factors was trained as well, and the better of the two goes on (`model.choose`)",
        (
            Field("losses", "record", "with factors (`factors`), without (`linear`)"),
            _METRIC_COMPARED,
            Field("chosen", "text", "factors or linear"),
            Field("seconds", "number", "that the model without factors took", "s"),
        ),
    ),
    EventRecord(
        "pilot",
        _TRAINING,
        "settings were tried beside each other, and the best goes on",
        (
            Field(
                "losses",
                "record",
                "by the name of the setting: training losses; after the first epoch, where rows validate, what epochs "
                "are compared by (auc and group_auc as 1 less it)",
            ),
            Field("chosen", "text", "default, cautious or bold"),
            Field("compared", "text", "when"),
            Field("margin", "number", "relative gain that the default is left for"),
            Field("learning_rate", "number", "of the chosen setting, before rate_scaling"),
            Field("factor_rate_scale", "number", "of the chosen setting"),
            Field("l2_factors", "number", "of the chosen setting"),
            Field("l2_linear", "number", "of all settings"),
        ),
    ),
    EventRecord(
        "plateau",
        _TRAINING,
        "the constant step size brings no more: from the best parameters on it falls",
        (
            _EPOCH,
            Field("to_epoch", "integer", "the epoch that gave the best parameters; 0: they are those of the start"),
            Field("epochs", "integer", "epochs that follow, at most"),
        ),
    ),
    EventRecord(
        "trial",
        "`dfm search`",
        "a trial has come to the end of a rung",
        (
            Field("trial", "integer", "its number, 0 is the default"),
            Field("key", "text", "digest of its settings; of the job itself, when it closes the search, default"),
            Field("rung", "integer", "which rung, from 1; 0 for the closing trainings with several seeds"),
            Field("seed", "integer", "of a closing training, else 0"),
            Field("epochs", "integer", "walks over the rows so far"),
            _number("loss", "the best so far; null where it diverged"),
            _METRIC_COMPARED,
            Field("seconds", "number", "that this rung took", "s"),
            Field("settings", "record", "what is tried; empty for a closing training"),
            Field("reason", "text", "why it diverged", may_be_absent=True),
        ),
    ),
    EventRecord(
        "fold",
        "`dfm search --folds`",
        "a part of the rows has validated what was learnt of others",
        (
            Field("fold", "integer", "its number, from 1"),
            Field("epochs", "integer", "walks over the rows"),
            *METRICS,
        ),
    ),
    EventRecord(
        "searched",
        "`dfm search`",
        "the best settings are written as a job file",
        (
            Field("job", "text", "the job file"),
            Field("trial", "integer", "number of the best trial; 0 where none beat the default"),
            Field("losses", "record", "by seed, of the best trial and of the default"),
            _METRIC_COMPARED,
        ),
    ),
    EventRecord(
        "start",
        _TRAINING,
        "the parameters that come of `training.warm_start` are validated, as those of epoch 0",
        METRICS,
    ),
    EventRecord("resumed", _TRAINING, "it goes on from a checkpoint", (_EPOCH, _ROUND, _ROUNDS)),
    EventRecord(
        "round",
        _TRAINING,
        "an average is done; never printed by `--json`, nor kept",
        (_EPOCH, _ROUND, _ROUNDS, Field("rows_per_second", "number", "in this epoch so far", "rows/s")),
        passing=True,
    ),
    EventRecord(
        "average",
        _TRAINING,
        'validated inside an epoch (`training.validate = "average"`)',
        (_EPOCH, Field("average", "integer", "after which average of the epoch"), *METRICS),
    ),
    EventRecord(
        "epoch",
        _TRAINING,
        "an epoch is trained and validated",
        (
            _EPOCH,
            _absent(_number("train_log_loss", "log loss of the training rows, each before it was learnt from", "nats")),
            _absent(_number("train_rmse", "error of the training rows, each before it was learnt from", "label")),
            _absent(_number("train_loss", "another loss of the training rows, each before it was learnt from")),
            Field("rows_per_second", "number", "averaging included", "rows/s"),
            Field("seconds", "number", "of training, averaging included", "s"),
            Field("training_seconds", "number", "in the kernel of the busiest worker", "s"),
            Field("averaging_seconds", "number", "the others", "s"),
            Field(
                "bytes_per_round",
                "integer",
                "parameters pulled and pushed by all replicas (pulled alone where one process averages)",
                "bytes",
            ),
            Field("validation_seconds", "number", "of validation in which no rows were trained, not in `seconds`", "s"),
            *METRICS,
        ),
    ),
    EventRecord(
        "rolled_back",
        _TRAINING,
        "validation worsened: the best parameters are taken up again",
        (
            Field("to_epoch", "integer", "the epoch that they are from"),
            Field("rate_factor", "number", "what learning rates are multiplied by from here"),
        ),
    ),
    EventRecord(
        "stopped",
        _TRAINING,
        "validation worsened too often",
        (_EPOCH, Field("best_epoch", "integer", "the epoch that is kept")),
    ),
    EventRecord(
        "mean",
        _TRAINING,
        "all models of the job are trained, and their mean is judged (`model.n_models`)",
        (
            Field("models", "list", "of each: seed, best_epoch, chosen (by its pilot), its metrics as validation"),
            Field("validation", "record", "metrics of the mean; empty without validation rows"),
        ),
    ),
    EventRecord(
        "calibrated",
        _TRAINING,
        "a calibration is fitted, and kept or refused (`model.calibration`)",
        (
            Field("kind", "text", "platt or isotonic"),
            Field("kept", "flag", "whether predictions are calibrated by it"),
            Field("rows", "integer", "validation rows that it is fitted on", "rows"),
            Field("judged_rows", "integer", "the other ones", "rows"),
            _number("log_loss_before", "of the other ones", "nats"),
            _number("log_loss_after", "the same with it, where it is kept", "nats"),
            _number("gain", "by how much it falls with it, or would; null where there was none to judge", "nats"),
            _number("gain_error", "standard error of that", "nats"),
            _REASON,
        ),
    ),
    EventRecord(
        "diagnosis",
        _TRAINING,
        "training is over; what it could not learn",
        (Field("findings", "list", "records of kind, column, message, knobs; none where all is well"),),
    ),
    EventRecord("saved", _TRAINING, "the model is published; its report is still to be made", _OUTCOME),
    EventRecord(
        "publishing",
        _TRAINING,
        "the model is about to be written; never printed by `--json`, nor kept",
        (),
        passing=True,
    ),
    EventRecord(
        "done",
        _TRAINING,
        "the model is published, and nothing is left to do",
        (*_OUTCOME, _absent(Field("report", "text", "the page about it; empty where there is none"))),
    ),
    EventRecord(
        "log",
        _RUN,
        "the library warned",
        (Field("level", "text", "WARNING or higher"), Field("message", "text", "the warning")),
    ),
    EventRecord(
        "ended",
        _RUN,
        "the driver is over, however it ended; on the topic: a search or a cross-validation has ended well",
        (
            Field("state", "text", "finished, failed, cancelled or interrupted"),
            Field("error", "record", "type, message and exit code of what ended it", may_be_null=True),
        ),
    ),
    EventRecord(
        "retrying",
        _RUN,
        "an attempt failed; its supervisor starts another, which goes on from the checkpoint",
        (
            Field("state", "text", "retrying"),
            Field("error", "record", "type, message and exit code of what ended the attempt", may_be_null=True),
        ),
    ),
    EventRecord(
        "waiting",
        _FOLLOWING,
        "a store or the Kubernetes API does not answer; the wait goes on when it does",
        (Field("reason", "text", "what went wrong"),),
    ),
    EventRecord(
        "driver_lost",
        "`dfm drive`",
        "the driver's process died; another one follows",
        (
            Field("attempt", "integer", "which start it was, from 1"),
            Field("of", "integer", "starts in all"),
            Field("exit_code", "integer", "as a shell gives it"),
            Field("pause", "number", "before the next start", "s"),
        ),
    ),
    EventRecord(
        "submitted",
        _DASK,
        "the job's driver is on its way",
        (_RUN_ID, _DIRECTORY, Field("scheduler", "text", "address of the Dask scheduler")),
    ),
    EventRecord(
        "submitted",
        _KUBERNETES,
        "the DaskJob is created",
        (_NAME, Field("namespace", "text", "where it is"), _RUN_ID, _DIRECTORY),
    ),
    EventRecord("kubernetes", _KUBERNETES, "a followed DaskJob changed", _DASK_JOB),
    EventRecord(
        "status",
        _DASK,
        "`dfm status` was asked; without a record of the run (exit code 2), state, reason and directory alone",
        (*(f if f.name == "state" else _absent(f) for f in _RUN_RECORD), _REASON, _DIRECTORY),
    ),
    EventRecord(
        "status",
        _KUBERNETES,
        "`dfm status` was asked",
        (*_DASK_JOB, *_DASK_JOB_MORE, _JOB_OUTCOME, _REASON),
    ),
    EventRecord(
        "job",
        "`dfm list --kubernetes`",
        "one of the DaskJobs of the namespace",
        (
            *_DASK_JOB,
            *_DASK_JOB_MORE,
            _JOB_OUTCOME,
            Field("created", "text", "when, ISO 8601"),
            Field("ended", "text", "when, ISO 8601; empty: not yet"),
        ),
    ),
    EventRecord(
        "pruned",
        "`dfm prune`",
        "what a job has left is deleted",
        (Field("object", "text", "kind and name"), Field("dry_run", "flag", "it would be, and is not")),
    ),
    EventRecord("run", "`dfm list`", "one of the runs that were found", (*_RUN_RECORD, _DIRECTORY)),
    EventRecord(
        "cancel",
        _DASK,
        "the run was asked to stop",
        (_RUN_ID, Field("state", "text", "state of the run now"), _DIRECTORY),
    ),
    EventRecord("cancel", _KUBERNETES, "the DaskJob is deleted", (_NAME, Field("state", "text", "how its run ended"))),
    EventRecord(
        "evaluated",
        "`dfm evaluate`",
        "labelled rows are scored",
        (
            _MODEL,
            Field("account", "record", "rows read, evaluated, rejected, the rejected ones by reason"),
            _DRIFT,
            _absent(Field("slices", "record", "by columns, the worst slices: slice, rows, metrics (`--by`)")),
            _absent(_number("threshold", "probability from which on a row counts as positive (`--threshold`)")),
            _absent(_number("accuracy", "share of rows on the right side of it")),
            _absent(_number("precision", "share of positives among the rows from it on")),
            _absent(_number("recall", "share of the positives that lie there")),
            _absent(_number("f1", "harmonic mean of precision and recall")),
            *METRICS,
        ),
    ),
    EventRecord(
        "importance",
        "`dfm importance`",
        "the loss is measured without each column",
        (
            _MODEL,
            Field("rows", "integer", "labelled rows", "rows"),
            Field(
                "loss", "number", "their mean loss, of quantile, poisson, … its own; log loss, squared error of others"
            ),
            Field(
                "columns",
                "list",
                "of each column, the most important first: permuted, permuted_error, missing (or null)",
            ),
            Field("pairs", "list", "of each pair of fields, the strongest first: first, second, strength, r of fwfm"),
            _absent(Field("pairs_left_out", "text", "why there are none: fields are too many, or those of a matrix")),
            Field("account", "record", "rows read, good, rejected, the rejected ones by reason"),
        ),
    ),
    EventRecord(
        "reported",
        "`dfm report`",
        "the page about a model is written again",
        (_MODEL, Field("page", "text", "file or URL of it")),
    ),
    EventRecord(
        "predicted",
        "`dfm predict`",
        "rows are scored and written",
        (
            _MODEL,
            Field("output", "text", "folder or URL of the parts"),
            Field("rows", "integer", "rows read", "rows"),
            Field("predicted", "integer", "rows scored", "rows"),
            Field("rejected", "integer", "rows that broke the schema", "rows"),
            Field("reasons", "record", "rejected rows by reason"),
            _DRIFT,
        ),
    ),
    EventRecord(
        "model",
        "`dfm inspect`",
        "a model is described",
        (
            _MODEL,
            Field("summary", "record", "task, loss, sizes, metrics"),
            Field("fields", "list", "a record per field, the most telling first"),
            Field("settings", "record", "tables of the job that trained it"),
            Field("tokens", "list", "a record per `--token`"),
            Field("top", "list", "a record per value of great weight, with `--tokens-from`", may_be_absent=True),
        ),
    ),
    EventRecord(
        "synthesised",
        "`dfm synth`",
        "the click log is written",
        (
            _DIRECTORY,
            Field("rows", "integer", "rows written", "rows"),
            Field("days", "list", "per day: rows, clicks, log losses of the click rate and of the truth, its AUC"),
        ),
    ),
    EventRecord(
        "converted",
        "`dfm convert`",
        "text is written as shards",
        (
            Field("directory", "text", "folder or URL of the shards"),
            Field("format", "text", "criteo, vw, libffm, libsvm, tsv or csv"),
            Field("shards", "integer", "files written"),
            Field("columns", "record", "names and types of the columns"),
            Field("lines", "integer", "lines read, headers aside: rows, rejected and blank ones", "lines"),
            Field("rows", "integer", "rows written", "rows"),
            Field("rejected", "integer", "lines that gave no row", "lines"),
            Field("blank", "integer", "lines without anything, or with a comment alone", "lines"),
            Field("reasons", "record", "rejected lines by reason"),
            Field("job", "text", "job file that was written; empty where it was printed"),
        ),
    ),
    EventRecord(
        "knob",
        "`dfm knobs`",
        "one of the knobs of a job file",
        (
            Field("name", "text", "table.key"),
            Field("default", "text", "as TOML writes it"),
            Field("legal", "text", "the values that it takes"),
            Field("help", "text", "its meaning"),
            Field("matters_first", "flag", "whether a first job sets it, or it changes a model most"),
        ),
    ),
    EventRecord("published", "`dfm publish`", "the gate let the model through", _PUBLICATION),
    EventRecord("refused", "`dfm publish`", "the gate refused the model", _PUBLICATION),
    EventRecord(
        "rolled_back",
        "`dfm rollback`",
        "the champion before this one is champion again",
        (
            _ALIAS,
            Field("number", "integer", "version of the alias after it"),
            _MODEL,
            _SHA256,
            Field("action", "text", "rollback"),
            Field("previous", "integer", "the version that is gone back to"),
            Field("model_sha256", "text", "digest of all that decides its predictions; empty of earlier versions"),
            Field("withdrawn", "text", "digest of the parameters that went out of service"),
            Field("order", "text", "when the model's data ended"),
            Field("reason", "text", "why, as it was given"),
            Field("time", "text", "moment of it", "ISO 8601"),
            Field("candidate", "record", "metrics of the model when it was promoted"),
            Field("champion", "record", "metrics of its rival then"),
        ),
    ),
)

STAMPS = (
    Field(VERSION, "integer", "version of the event's record"),
    Field("time", "text", "in `events.jsonl`: the moment of it", "ISO 8601"),
    Field("run_id", "text", "in `events.jsonl`: the run's name"),
    Field("job", "text", "on the Dask topic, and of metrics: the run's id; of a search, the job's fingerprint"),
    Field("seed", "integer", "where a job trains several models: of the model that it is about"),
    Field("rounds_done", "integer", "on the Dask topic, of an epoch: averages of the run so far"),
)
"""Fields that an event gets on its way out, whatever it is."""
_STAMPS = {field.name for field in STAMPS}
_PASSING = {record.name for record in RECORDS if record.passing}
