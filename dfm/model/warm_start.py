"""Training that goes on from an earlier model: its weights, shrunk towards the initial ones, start the new table.

    w = (1 - decay) w_old        V = V_0 + (1 - decay) (V_old - V_0)        bias likewise

with V_0 the initial factors of the job's seed. Features are matched by their hashed id: what the earlier model did not
know starts as in any other run. What it knows counts on, with (1 - decay) of its occurrences (rounded by lot) beside
those of today's rows: a value that did not come today is there tomorrow, fades with the weights, and makes room once it
counts for less than `min_count`.

A model holds no optimizer state, but how fast its accumulators grew (`dfm.model.accumulators`). They begin with

    G = G_0 + 3/4 (1 - decay) κ n

for a feature that the earlier model saw n times: what is known well moves little, what is new as ever. Three quarters,
since a chain of nights adds up what each remembers: it stays below that of four.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.canonical import shortest
from dfm.data.schema import ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import Vocabulary
from dfm.errors import ModelError, SettingsError
from dfm.events import to_json
from dfm.kernels.families.registry import DEFAULT, family_of
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, OPTIMIZERS
from dfm.kernels.tables import Layout, ParameterTable
from dfm.model.accumulators import REMEMBERED, Growth, Known
from dfm.model.fm_model import FMModel
from dfm.model.folder import read_manifest
from dfm.settings.groups import groups_of
from dfm.settings.job import Job
from dfm.storage import files

logger = logging.getLogger(__name__)
_COUNTS_ON = "features of the earlier model count on"
"""The rule by which a vocabulary is made of an earlier one: checkpoints of another rule are none of this job."""


@dataclass(frozen=True)
class Start:
    """The model that training goes on from, as one version of it: tasks that read it later get the same bytes."""

    url: str
    sha256: str
    """Digest of its file of parameters (hex)."""
    decay: float
    statistics: Mapping[str, NumberStatistics] = field(default_factory=dict)
    """Statistics of its numeric columns. They are taken over: the same bucket then means the same numbers."""
    candidates: tuple[str, ...] = ("",)
    """Which settings its pilot had chosen, of a mean of models the pilot of each; they are taken over."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    n_models: int = 1
    """The models whose mean it is."""
    growth: Growth | None = None
    """Growth of its accumulators; None where it does not say, or where the job's optimizer is another."""
    n_features: int = 0
    integers: tuple[str, ...] = ()
    """Categories that are no integers today, and that it knows as such: `00012` is 12 to it."""

    def describe(self) -> dict[str, Any]:
        """The new model's note of its origin."""
        return {"model": self.url, "sha256": self.sha256, "decay": self.decay}

    @property
    def identity(self) -> dict[str, str]:
        """Digests of all that training takes from it."""
        known = {name: dataclasses.asdict(statistics) for name, statistics in sorted(self.statistics.items())}
        more: dict[str, Any] = {"growth": self.growth.to_dict()} if self.growth else {}
        more |= {"integers": self.integers} if self.integers else {}
        told = {"statistics": known, "candidates": self.candidates, "n_models": self.n_models, "vocabulary": _COUNTS_ON}
        taken = to_json({**told, **more})
        return {"parameters": self.sha256, "statistics": hashlib.sha256(taken.encode()).hexdigest()}

    def read_on(self, schema: ResolvedSchema) -> ResolvedSchema:
        """The schema of today's shards, by which values are read as the earlier model knows them."""
        known = {*schema.integers, *self.integers}
        return dataclasses.replace(schema, integers=tuple(each.name for each in schema.fields if each.name in known))

    def vocabulary(self) -> Vocabulary:
        """Its features, how often they came and which values were ever seen, without the counts of its rows."""
        return dataclasses.replace(self.load().vocabulary, sights=None)

    def load(self) -> FMModel:
        """The model. ModelError where it was replaced since this run began."""
        model = FMModel.load(self.url, self.storage_options, check_golden=False)
        found = _parameters_sha256(read_manifest(self.url, self.storage_options))
        if found != self.sha256:
            raise ModelError(
                f"the model at {self.url} was replaced while training.warm_start read it; run the job again, and give "
                "each model a folder of its own"
            )
        return model


def find_start(job: Job, schema: ResolvedSchema, loss: Mapping[str, Any] | None = None) -> Start | None:
    """The job's training.warm_start, after its manifest was found to fit the job; None where there is none.

    schema: the job's, on the columns of its shards. loss: what the job's model will tell of its loss; None for that of
    its task. SettingsError where hashing, factors, loss or schema differ.
    """
    url = job.training.warm_start
    if not url:
        return None
    where = os.path.abspath(files.local_path(url)) if files.is_local(url) else url
    options = job.data.storage_options
    manifest = read_manifest(where, options)
    if "draws" in manifest:
        raise SettingsError(
            f'training.warm_start = "{url}" is a model of draws (training.solver = "mcmc" or "als"), from which '
            "nothing can go on; leave warm_start out and train from the beginning."
        )
    _check_fit(job, schema, manifest, url)
    if (dict(loss) if loss else None) != manifest.get("loss"):
        raise SettingsError(
            f'the loss differs from that of training.warm_start = "{url}", so its scores mean something else; use the '
            "same model.loss, or leave warm_start out and train from the beginning."
        )
    integers = ResolvedSchema.from_dict(manifest["schema"]).integers
    _tell_of_integers([name for name in schema.integers if name not in integers], url)
    statistics = {
        name: NumberStatistics(_boundaries(known["boundaries"]), known["mean"], known["stdev"])
        for name, known in manifest["statistics"].items()
    }
    decay, n_models = job.training.warm_start_decay, _n_models(manifest)
    growth = Growth.from_dict(manifest["metadata"].get("accumulators"))
    if growth is not None and growth.optimizer != job.training.optimizer:
        growth = None
    others = [each.name for each in schema.fields if each.kind == "categorical" and each.name not in schema.integers]
    carried = tuple(name for name in others if name in integers)
    told = statistics, _chosen(manifest), options, n_models, growth, int(manifest["n_features"]), carried
    return Start(where, _parameters_sha256(manifest), decay, *told)


def _tell_of_integers(names: Sequence[str], url: str) -> None:
    if names:
        logger.warning(
            "the model of training.warm_start = %r does not know that values of %s are integers: where it read them as "
            "text, those with zeros in front (06) start afresh",
            url,
            ", ".join(names),
        )


def _boundaries(known: list[float]) -> tuple[float, ...]:
    """Quantile boundaries in the form of today; those of models that widened numbers are brought into it."""
    return tuple(np.unique(shortest(np.array(known, np.float64))).tolist())


def _parameters_sha256(manifest: Mapping[str, Any]) -> str:
    return str(manifest["files"]["parameters"]["sha256"])


def _check_fit(job: Job, schema: ResolvedSchema, manifest: Mapping[str, Any], url: str) -> None:
    optimizer = OPTIMIZERS[job.training.optimizer]
    if optimizer.derives_weights:
        raise SettingsError(
            f'training.warm_start = "{url}" needs another training.optimizer than "{optimizer.name}", which makes its '
            f"weights of sums that a model does not hold. Choose {DEFAULT_OPTIMIZER}, or leave warm_start out."
        )
    pairs = {
        "model.task": (job.model.task, manifest["task"]),
        "model.family": (job.model.family, manifest.get("family", DEFAULT)),
        "model.groups": (_groups(job, schema), manifest.get("groups", [])),
        "model.order": (family_of(job.model.family).order_of(job.model.order), manifest.get("order", 0)),
        "model.n_models": (1 if _is_lone_linear(manifest) else job.model.n_models, _n_models(manifest)),
        "model.n_factors": (job.model.n_factors, manifest["n_factors"] // _n_models(manifest)),
        "model.hash_bits": (job.model.hash_bits, manifest["hashing"]["hash_bits"]),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise SettingsError(
                f'{name} = {ours}, but the model of training.warm_start = "{url}" has {theirs}; use {theirs}, or leave '
                "warm_start out and train from the beginning."
            )
    theirs = ResolvedSchema.from_dict(manifest["schema"])
    if difference := _schema_difference(schema, theirs):
        raise SettingsError(
            f'the schema differs from that of training.warm_start = "{url}": {difference}. Use its [schema], or leave '
            "warm_start out and train from the beginning."
        )


def _n_models(manifest: Mapping[str, Any]) -> int:
    """The models whose mean a model is."""
    return max(1, len(manifest["metadata"].get("models", ())))


def _chosen(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The choice of the pilot of each model that it is the mean of; earlier versions noted that of the first alone."""
    first = manifest["metadata"].get("automatic", {}).get("chosen", "")
    return tuple(str(each.get("chosen", first)) for each in manifest["metadata"].get("models") or [{}])


def _is_lone_linear(manifest: Mapping[str, Any]) -> bool:
    """Whether it is a single model without factors, which any number of models can go on from."""
    return _n_models(manifest) == 1 and not manifest["n_factored"]


def _groups(job: Job, schema: ResolvedSchema) -> list[int]:
    """The group of each field; nothing where the family has none."""
    if not family_of(job.model.family).has_groups:
        return []
    return list(groups_of(job.model.groups, [entry.name for entry in schema.fields]))


def _schema_difference(ours: ResolvedSchema, theirs: ResolvedSchema) -> str:
    """The first difference in words, or nothing."""
    known, wanted = ({each.name: dataclasses.replace(each, index=0) for each in of.fields} for of in (theirs, ours))
    for name in [*wanted, *known]:
        if name not in known:
            return f"it has no field {name!r}"
        if name not in wanted:
            return f"its field {name!r} is missing here"
    for name, their_field in known.items():
        if wanted[name] != their_field:
            return f"the field {name!r} is {their_field.transform or their_field.kind} there"
    return "" if list(known) == list(wanted) else "its fields have another order"


def warm_table(
    table: ParameterTable, ids: NDArray[np.uint32], model: FMModel, decay: float, growth: Growth | None = None
) -> ParameterTable:
    """A copy of freshly initialised rows, moved towards the model's.

    ids uint32[n_features]: hashed ids of the table's rows, of which the first own factors. growth: of the model's
    accumulators; None: they start afresh.
    """
    warm, kept = table.copy(), np.float32(1.0 - decay)
    ours, theirs = _common_rows(ids, model.vocabulary.ids)
    for block in table.layout.blocks:
        mine, earlier = warm.values(block), model.table.values(block)
        if block.is_shared:
            mine += kept * (earlier - mine)
            continue
        in_both = (ours < len(mine)) & (theirs < len(earlier))
        start = mine[ours[in_both]]
        mine[ours[in_both]] = start + kept * (earlier[theirs[in_both]] - start)
    if growth is not None:
        known = Known(ours, model.vocabulary.counts[theirs], model.vocabulary.fields[theirs])
        growth.add(warm, known, REMEMBERED * (1.0 - decay))
    return warm


def begun_growth(layout: Layout, vocabulary: Vocabulary, earlier: Vocabulary, growth: Growth, decay: float) -> Growth:
    """The growth that accumulators of a warm table begin with, by entry of its vocabulary. earlier: that of the model
    whose growth is handed on.
    """
    ours, theirs = _common_rows(vocabulary.ids, earlier.ids)
    known = Known(ours, earlier.counts[theirs], earlier.fields[theirs])
    return growth.handed_on(layout, vocabulary, known, REMEMBERED * (1.0 - decay))


def _common_rows(ours: NDArray[np.uint32], theirs: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of both tables that stand for the same ids; ids uint32[n] are distinct."""
    _, rows, their_rows = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    return rows, their_rows
