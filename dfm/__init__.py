"""dfm: factorization machines for click logs that do not fit one machine.

`train(job)` runs a job file, `FMModel.load(url).predict(table)` scores rows; the command `dfm` does both.
Importing dfm loads neither Dask nor the compiled kernels; the names below fetch them when they are first used.

Glossary
--------
One word per idea, in job files, code, messages and documents alike.
accumulator
    State of an optimizer that grows with squared gradients (AdaGrad's G), beside the parameter that it is for.
alias
    A folder of numbered versions that names the champion, the model in service; a gate decides who becomes it.
average
    One merge of all replicas into one table of parameters; `averages_per_epoch` of them end the rounds of an epoch.
backend
    What carries out kernels and merges: Numba on processors, CuPy on a GPU. A name becomes a record once, at the door.
bias, linear weights, factors
    w0, w and V of a factorization machine; `n_factors` is the length k of a row of V.
block
    Parameters of one kind (bias, linear weights, factors): a row per model, field, pair of fields or feature.
bucket
    A range of numbers that is one category (`log2-bucket`, `quantile`).
candidate
    Settings that a pilot compares: the default, a cautious and a bold one.
checkpoint
    What a training goes on from after its driver died: table, best table, progress, after an average.
contribution
    What a replica's round adds to an average: per touched feature the summands of the merge.
cross
    A field made of several columns: each combination of their values is a category.
draw
    Parameters as an iteration of Gibbs sampling left them; a model of several predicts the mean of theirs.
driver
    The process that schedules a training: it holds futures and decides, and never sees parameters.
entry
    A feature's index and value in one row; a field gives one or, of a list, several.
epoch
    One pass over all training rows.
event
    A record of something that happened in a run or a command; `dfm.events` lists them all.
executor
    What rounds run on: this process, or the workers of a Dask cluster.
family
    A kind of model: its blocks, score and gradient (`fm`, of which a linear model is one without factors; `ffm`;
    `fwfm`; `hofm`; `polynomial`).
feature
    A field's category, hashed to an index below 2^`hash_bits`, or a number column; a row of the parameter table.
field
    What one column, or a cross of several, gives a row: a category, a list of them, or a number.
fold
    A part of the rows that validates what was learnt of others, in a cross-validation.
golden rows
    Raw rows with the predictions that a model must give, inside its folder; loading it scores them again.
group
    Fields that share a vector of factors in each feature that meets them (`ffm`). Of rows: those of a user, query or
    session (`schema.group`), among which the order counts.
iteration
    A solver's walk over all features (`als`, `mcmc`): each is solved or drawn once; it counts as an epoch.
job
    The tables of a TOML file, resolved and checked: all that decides a training; its fingerprint names them.
kernel
    A compiled function that walks rows or merges tables.
knob
    One key of a job's tables, with default, legal range and help; `dfm knobs` lists all.
label
    What a row teaches: 0 or 1, a count, or a number.
link
    The function that makes a prediction of a score.
loss
    What training makes small, of a score and a label; its slope is d loss / d score. Log losses are in nats.
lot
    A number in [0, 1) that a row has by its shard's folders and name and its place there; rows are held out by it.
manifest
    The file that publishes what it names, written last: `model.json`, a checkpoint's.
merge rule
    How an average weighs what replicas changed.
optimizer
    How a gradient becomes a step, and the state that it keeps for that.
order
    How many features meet in a term, at most (`hofm`), or in each product (`polynomial`).
pair
    A clicked and an unclicked row of one group, between which a loss of pairs decides (`bpr`); elsewhere two features.
partition
    Rows of one replica's slice as arrays, with the features that they touch (`SparsePartition`).
pilot
    The first third of the first epoch, walked by a few candidates beside each other; the best goes on.
plan
    Which rows belong to which replica and slice, and how many rounds an epoch has: by row counts alone.
plateau
    Epochs at a constant step size, until validation gains no more; then it falls, from the best parameters on.
prediction
    A probability or an amount: the link of a score.
replica
    A local model, trained on rows of its own between averages. `n_replicas` is fixed by the job, not by workers.
round
    What lies between two averages: each replica walks its slices once.
row
    One example: entries, label, weight. Rows read are rows trained plus rows rejected.
run
    One execution of a job, with an id and a record (`run.json`, `events.jsonl`) in its output directory.
rung
    Epochs that the trials of a search walk before the worse of them are given up.
schema
    Which columns are label, time, weight and fields, and how each becomes features.
score
    What a model computes of a row before the link; of classifications it is a logit.
shard
    One Parquet file of the log; a unit is a run of its row groups that one task reads.
slice
    The part of a replica's rows that one round of the first epoch walks.
solver
    The way to parameters: steps down gradients (`sgd`), least squares (`als`), draws (`mcmc`).
step
    One update of the parameters that a row touches, and the rates and penalties that it obeys.
stretch
    Short rounds in a row that one task trains, all replicas in threads of one worker.
table
    All parameters with their optimizer state, features by falling frequency; only the first ones own factors.
tally
    A sum over rows from which metrics follow; tallies of partitions add up.
touched
    Of a feature: it occurs in the rows of a round, so that these may change its parameters.
transform
    How a number column becomes a category or a value.
trial
    Settings that a search tries on the partitions that all trials share.
visit
    Features of a field of which no row has two; an exact solver solves them together.
vocabulary
    The features that training saw often enough to keep, by falling frequency; rarer ones share one per field.
worker
    A Dask process that holds partitions and computes; it may die at any time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dfm.version import __version__

if TYPE_CHECKING:
    from dfm import export
    from dfm.data.guess import guess
    from dfm.data.text.convert import convert
    from dfm.distributed.search import SearchResult
    from dfm.distributed.train import TrainResult
    from dfm.errors import DfmError
    from dfm.factorization import matrix_factorization
    from dfm.jobs import cross_validate, evaluate, importance, predict, report, search, train, trials
    from dfm.kernels.custom.functions import CustomLoss
    from dfm.model.fm_model import FMModel
    from dfm.settings.job import Job, load_job

__all__ = [
    "CustomLoss",
    "DfmError",
    "FMModel",
    "Job",
    "SearchResult",
    "TrainResult",
    "__version__",
    "convert",
    "cross_validate",
    "evaluate",
    "export",
    "guess",
    "importance",
    "load_job",
    "matrix_factorization",
    "predict",
    "report",
    "search",
    "train",
    "trials",
]

_HOMES = {
    "CustomLoss": "dfm.kernels.custom.functions",
    "DfmError": "dfm.errors",
    "FMModel": "dfm.model",
    "Job": "dfm.settings",
    "SearchResult": "dfm.distributed.search",
    "TrainResult": "dfm.distributed.train",
    "convert": "dfm.data.text.convert",
    "cross_validate": "dfm.jobs",
    "evaluate": "dfm.jobs",
    "guess": "dfm.data.guess",
    "importance": "dfm.jobs",
    "load_job": "dfm.settings",
    "matrix_factorization": "dfm.factorization",
    "predict": "dfm.jobs",
    "report": "dfm.jobs",
    "search": "dfm.jobs",
    "train": "dfm.jobs",
    "trials": "dfm.jobs",
}


def __getattr__(name: str) -> Any:
    if name == "export":
        return importlib.import_module("dfm.export")
    if name not in _HOMES:
        raise AttributeError(f"module 'dfm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
