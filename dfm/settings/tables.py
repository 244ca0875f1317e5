"""The tables of a job file: one frozen record each, the constraint of each knob beside its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dfm.averaging.rules import ACCUMULATOR_RULES, RATE_SCALINGS, WEIGHT_RULES
from dfm.data.transforms import DEFAULT_TRANSFORM, QUANTILE, TRANSFORMS, described_transforms
from dfm.errors import SettingsError
from dfm.kernels.families.registry import FAMILIES, check_pairs, family_of
from dfm.kernels.losses import DEFAULT_LOSSES, LOSSES, is_paired, names_for
from dfm.kernels.optimizers import DEFAULT_OPTIMIZER, OPTIMIZERS, STATELESS, owners, parameters, readers
from dfm.kernels.records import Parameter, with_fields_of
from dfm.kernels.schedule import SCHEDULES
from dfm.settings import pods
from dfm.settings.constraints import (
    COLUMNS,
    PATHS,
    SCALARS,
    AnyOf,
    Factory,
    Flag,
    Knob,
    ListOf,
    Moment,
    Number,
    Options,
    OptionsOrOwn,
    Size,
    TableOf,
    Text,
    did_you_mean,
    knob,
    show,
)
from dfm.settings.synonyms import meant_by
from dfm.storage.credentials import check_options, check_url, check_variables

TASKS = ("classification", "regression")
MERGE_RULES = ("auto", *WEIGHT_RULES)
VALIDATION_POINTS = ("epoch", "average")
CHECKPOINT_POINTS = ("average", "epoch", "never")
TUNINGS = ("pilot", "none")
CHOICES = ("given", "best")
STOP_METRICS = ("auto", "log_loss", "auc", "normalized_entropy", "group_auc")
CALIBRATIONS = ("none", "platt", "isotonic")
FACTORS = 16
"""Length of a factor vector where the job does not say, of families that have no length of their own."""
_ORDERED = tuple(each for each in map(family_of, FAMILIES) if each.orders)
EPOCHS_TO_PLATEAU, EPOCHS_ELSE = 20, 10
"""Most epochs where the job does not say: a plateau is left as soon as it is reached."""
SGD = STATELESS
"""The solver that steps down gradients, by whichever optimizer; it is called as the plainest of them."""
ALS, MCMC = "als", "mcmc"
SOLVERS = (SGD, ALS, MCMC)
ITERATIONS = {ALS: 50, MCMC: 100}
"""Most iterations of an exact solver where the job does not say."""
BURN_IN_SHARE = 0.2
"""Share of the iterations whose draws are not kept, where the job does not say."""
READ_BY_EXACT = {
    ALS: ("n_replicas", "n_epochs", "l2_linear", "l2_factors", "l2_groups", "early_stopping", "stop_on", "patience"),
    MCMC: ("n_replicas", "n_epochs", "burn_in", "draws", "early_stopping"),
}
"""The knobs of training that an exact solver reads, beside the solver itself."""
_PENALTIES = 2
"""Penalties that a column may scale: of linear weights, and of factors."""
BACKENDS = ("auto", "numba", "cupy")
FACTOR_DTYPES = ("float32", "bfloat16", "float16")
WIRE_DTYPES = ("float32", "bfloat16")
BAD_ROW_RULES = ("error", "skip")
MISMATCH_RULES = ("error", "warn")
LIST_WEIGHTS = ("sqrt", "one")
NAN_RULES = ("error", "missing")


@dataclass(frozen=True)
class Table:
    """The common part of the TOML tables: values are checked and normalised however the record is made."""

    table: ClassVar[str]

    def __post_init__(self) -> None:
        for key, own in self.knobs().items():
            object.__setattr__(self, key, own.parse(f"{self.table}.{key}", getattr(self, key)))
        self._check()

    def _check(self) -> None:
        """Refuse combinations that no single knob can see."""

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """The knobs by key, in the order of the record."""
        return {entry.name: entry.metadata["knob"] for entry in dataclasses.fields(cls)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record of a parsed TOML table; an unknown key is an error that suggests the nearest one."""
        if not isinstance(values, Mapping):
            raise SettingsError(
                f"{cls.table} = {show(values)} is not legal: expected a table. Write its keys below [{cls.table}]."
            )
        for key in values:
            if key not in cls.knobs():
                raise SettingsError(unknown_key(cls, str(key)))
        return cls(**values)

    def to_dict(self, secrets: bool = False) -> dict[str, Any]:
        """JSON-ready values that `from_dict` takes back; secret knobs only where `secrets` asks for them."""
        return {key: _thaw(getattr(self, key)) for key, own in self.knobs().items() if secrets or not own.secret}


def _thaw(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return {key: _thaw(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class DataSettings(Table):
    """The places of the rows, and what happens to bad ones."""

    table = "data"

    train: tuple[str, ...] = knob(
        (),
        PATHS,
        "Parquet to train on: paths or URLs; globs and hive partitions allowed; or tables: delta://FOLDER@v12, "
        "iceberg://CATALOGUE/namespace.table@SNAPSHOT",
    )
    validation: tuple[str, ...] = knob((), PATHS, "Parquet to validate on; may be empty")
    validation_from: str = knob(
        "", Moment(), "rows of `train` whose schema.time is this or later validate instead; needs schema.time"
    )
    validation_fraction: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, 1, open_high=True))),
        "part of the rows of `train` that validates where nothing else does: the latest by schema.time, without that a "
        "choice by shard and row number; auto: 0.1 of them, at least 1000 (0.2 where that is less) and at most 200000, "
        "where early stopping asks for it and there are 1000; 0: none",
    )
    on_bad_rows: str = knob(
        "error", Options(BAD_ROW_RULES), "stop at a row that breaks the schema, or count and skip it"
    )
    max_bad_fraction: float = knob(
        0.01,
        Number(0, 1),
        'with on_bad_rows = "skip": stop when a larger part of the rows is bad',
    )
    negative_rate: float = knob(
        1.0,
        Number(0, 1, open_low=True),
        "share of the negative rows that was kept when the log was made, of training and validation rows alike: the "
        "model is published for the full stream, its logits lower by -ln(negative_rate)",
        is_late=True,
    )
    sample_negatives: float = knob(
        1.0,
        Number(0, 1, open_low=True),
        "share of the negative rows to train on that are kept, by lot of model.seed, shard and row number; those "
        "to validate on all stay; the model is published for all rows, its logits lower by -ln(sample_negatives)",
        is_late=True,
    )
    storage_options: Mapping[str, Any] = knob(
        {},
        TableOf(AnyOf((*SCALARS, TableOf(AnyOf(SCALARS))))),
        "options of the filesystem (endpoint_url, anon, profile); credentials come from the environment",
        secret=True,
    )

    def _check(self) -> None:
        for key in ("train", "validation"):
            for path in getattr(self, key):
                check_url(path, f"data.{key}")
        check_options(self.storage_options)
        if self.validation and self.validation_from:
            raise SettingsError(
                f"data.validation_from = {show(self.validation_from)} has no effect beside "
                "data.validation, which names the validation rows already. "
                'Leave one of them out (--set data.validation_from="").'
            )
        named = next((key for key in ("validation", "validation_from") if getattr(self, key)), "")
        if named and self.validation_fraction not in ("auto", 0):
            raise SettingsError(
                f"data.validation_fraction = {self.validation_fraction} has no effect beside data.{named}, which names "
                "the validation rows already. Leave one of them out."
            )


@dataclass(frozen=True)
class Schema(Table):
    """Which column plays which role. `dfm.data.schema.resolve` turns it into the fields of a concrete data set.

    `categorical`, `numeric` and `lists` take column names or glob patterns; when `categorical` and `numeric`
    are both empty, `dfm.data.schema.infer` chooses by column type.
    """

    table = "schema"

    label: str = knob("label", Text(may_be_empty=False), "column to predict")
    label_positive: tuple[str, ...] = knob(
        (),
        ListOf(Text(), lone=True),
        "label strings that mean 1, every other string means 0; empty: labels are 0 and 1",
    )
    weight: str = knob("", Text(), "column of sample weights; empty: every row weighs 1")
    time: str = knob("", Text(), "column that orders rows in time; needed by data.validation_from")
    group: str = knob(
        "",
        Text(),
        "column of a user, query or session, within whose rows validation judges the order, too (group_auc, ndcg_10, "
        "mrr), and a loss of pairs makes them",
        is_late=True,
    )
    categorical: tuple[str, ...] = knob((), COLUMNS, "columns (names or globs) whose distinct values are categories")
    numeric: tuple[str, ...] = knob((), COLUMNS, "columns (names or globs) of numbers, see numeric_transform")
    numeric_transform: str = knob(
        DEFAULT_TRANSFORM,
        Options(tuple(TRANSFORMS)),
        f"how a numeric column becomes a feature ({described_transforms()})",
    )
    quantile_buckets: int = knob(32, Number(2, 4096, integer=True), f"buckets of the transform {QUANTILE}")
    transforms: Mapping[str, str] = knob({}, TableOf(Options(tuple(TRANSFORMS))), "numeric_transform of single columns")
    lists: tuple[str, ...] = knob((), COLUMNS, "list-valued columns (names or globs): every element is a category")
    list_separator: str = knob(
        "",
        Text(),
        'what parts the elements of a list that is text ("|" in "a|b|c"); empty: text is no list',
        is_late=True,
    )
    list_weight: str = knob(
        "sqrt",
        Options(LIST_WEIGHTS),
        "value of each of n list elements: 1/sqrt(n), or 1; weighted: w/sqrt(sum of w**2), or w",
    )
    missing: tuple[str, ...] = knob(
        (),
        ListOf(Text()),
        "texts that mean a missing value, in every column of text; empty text always does, a number never",
        is_late=True,
    )
    nan: str = knob(
        "error", Options(NAN_RULES), "what NaN in a numeric column is: a bad row, or a missing number", is_late=True
    )
    derive: Mapping[str, str] = knob(
        {},
        TableOf(Text(may_be_empty=False)),
        "features made from moments, by name: hour(COLUMN), weekday(COLUMN), day(COLUMN), month(COLUMN), "
        "hours(FROM, TO)",
        is_late=True,
    )
    crosses: tuple[tuple[str, ...], ...] = knob(
        (),
        ListOf(ListOf(Text(may_be_empty=False), at_least=2)),
        "columns whose combined values are further categories; categorical, list or bucketed numeric columns only",
    )

    def _check(self) -> None:
        roles = {"label": self.label, "weight": self.weight, "time": self.time, "group": self.group}
        taken: dict[str, str] = {}
        for role, column in roles.items():
            if column and column in taken:
                raise SettingsError(
                    f"schema.{role} = {show(column)} is not legal: schema.{taken[column]} names that "
                    "column too. Give each role its own column."
                )
            taken[column] = role


@dataclass(frozen=True)
class ModelSettings(Table):
    """The model, apart from how it is trained."""

    table = "model"

    task: str = knob("classification", Options(TASKS), "labels 0 and 1, or numbers")
    loss: str = knob(
        "auto",
        OptionsOrOwn(("auto", *LOSSES)),
        "what training minimises; auto: "
        + ", ".join(f"{name} for {task}" for task, name in DEFAULT_LOSSES.items())
        + "; of pairs of a clicked and an unclicked row of a group: "
        + ", ".join(name for name in LOSSES if is_paired(name)),
    )
    loss_parameter: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, open_low=True))),
        ", ".join(
            f"the {loss.parameter.name} of loss {loss.name} (auto: {loss.parameter.default:g})"
            for loss in LOSSES.values()
            if loss.parameter
        ),
    )
    family: str = knob(
        FAMILIES[0],
        Options(FAMILIES),
        "kind of model; " + "; ".join(f"{name}: {family_of(name).summary}" for name in FAMILIES),
        is_late=True,
    )
    groups: str | int | Mapping[str, tuple[str, ...]] = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(1, integer=True), TableOf(COLUMNS))),
        "groups of columns, of families that have factors for each group that a feature meets: a number of groups of "
        "equal size, in the order of the columns, or {name = [columns]} (names or globs); auto: 4",
        is_late=True,
    )
    order: int | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(2, 5, integer=True))),
        "features that meet in a term; auto: " + ", ".join(f"{each.orders[0]} of {each.name}" for each in _ORDERED),
        is_late=True,
    )
    n_factors: int = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, 256, integer=True))),
        f"length of a factor vector; 0 is a linear model; auto: {FACTORS}"
        + "".join(f", {each.n_factors} of {each.name}" for each in map(family_of, FAMILIES) if each.n_factors),
    )
    hash_bits: int = knob(20, Number(10, 30, integer=True), "features are hashed to 2^hash_bits indices")
    min_count: int = knob(
        2,
        Number(1, integer=True),
        "rarer categories share one feature per field",
    )
    min_count_factors: int = knob(
        10,
        Number(1, integer=True),
        "rarer features keep their weight but get no factors",
    )
    init_stdev: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, open_low=True))),
        "standard deviation of the factors at the start; auto: .02 / sqrt(h), where h is the mean of a row's sum of x²"
        + "".join(f", {each.init_stdev} of {each.name}" for each in map(family_of, FAMILIES) if each.init_stdev)
        + "; of vectors whose terms have more than two features: .6 / sqrt(h) at least; of mcmc .1, of als .1 with two "
        "columns, less with more, both divided by the root mean square of x where that is above 1",
    )
    seed: int = knob(0, Number(0, 2**63 - 1, integer=True), "of initial factors, shuffling and row order")
    n_models: int = knob(
        1,
        Number(1, 64, integer=True),
        "models that are trained on the same rows, from seed, seed + 1, …; the one that is published scores their mean",
        is_late=True,
    )
    choose: str = knob(
        CHOICES[0],
        Options(CHOICES),
        "best: also trained without factors, and what validates better is published; given: these settings only",
        is_late=True,
    )
    calibration: str = knob(
        CALIBRATIONS[0],
        Options(CALIBRATIONS),
        "what becomes of logits before they are published: none; platt: a line; isotonic: a rising function; fitted on "
        "a third of the rows to validate on, which then judge no epoch, and kept where it lowers the log loss of the "
        "others",
        is_late=True,
    )
    clip: bool = knob(
        False, Flag(), "regression: predictions stay within the range of the training labels", is_late=True
    )

    def _check(self) -> None:
        family, n_factors = family_of(self.family), vars(self)["n_factors"]
        if n_factors == "auto":
            object.__setattr__(self, "n_factors", family.n_factors or FACTORS)
        family.check_models(self.n_factors, self.n_models)
        check_pairs(self.loss, self.family)
        if self.choose == "best" and not self.n_factors:
            raise SettingsError(
                'model.choose = "best" compares a model with a linear one, and with model.n_factors = 0 it is one. '
                "Leave it out."
            )
        if self.groups != "auto" and not family.has_groups:
            having = " or ".join(name for name in FAMILIES if family_of(name).has_groups)
            raise SettingsError(
                f"model.groups = {show(self.groups)} needs model.family = {having}; only it has groups, and the family "
                f'is "{self.family}". Leave it out, or choose that family.'
            )
        if self.order != "auto" and self.order not in family.orders:
            legal = f"it takes {min(family.orders)} to {max(family.orders)}" if family.orders else "it has no order"
            having = " or ".join(each.name for each in _ORDERED if self.order in each.orders)
            raise SettingsError(
                f'model.order = {self.order} does not go with model.family = "{self.family}": {legal}. Leave it out, '
                f"or choose the family {having}."
            )
        if self.clip and self.task != "regression":
            raise SettingsError(
                f'model.clip = true needs model.task = "regression", and the task is "{self.task}", whose predictions '
                "have a range of their own. Leave it out."
            )
        loss = LOSSES.get(self.loss)
        if loss is not None and loss.task != self.task:
            fitting = " or ".join(f'"{name}"' for name in names_for(self.task))
            raise SettingsError(
                f'model.loss = "{self.loss}" needs model.task = "{loss.task}", and the task is "{self.task}". '
                f"Choose {fitting}, or another task."
            )
        if self.loss_parameter == "auto":
            return
        if loss is None or loss.parameter is None:
            having = " or ".join(name for name, each in LOSSES.items() if each.parameter)
            raise SettingsError(
                f"model.loss_parameter = {self.loss_parameter} needs model.loss = {having}; only these have one, and "
                f'the loss is "{self.loss}". Leave it out.'
            )
        if not loss.parameter.allows(float(self.loss_parameter)):
            raise SettingsError(
                f"model.loss_parameter = {self.loss_parameter} is not legal: expected a number {loss.parameter.legal} "
                f'for model.loss = "{self.loss}".'
            )


def _knob_of(own: Parameter) -> Any:
    """The knob of a parameter that one optimizer alone reads."""
    constraint = Number(own.low, own.high, open_low=own.open_low, open_high=own.open_high)
    return knob(own.default, constraint, f"{own.help}; {owners()[own.name].name} only")


@dataclass(frozen=True)
@with_fields_of(parameters(), after="regularizer", make=_knob_of)
class TrainingSettings(Table):
    """The training and averaging of local models: these knobs decide the bytes of the result.

    Behind regularizer stand the parameters of the optimizers, each read by one of them alone (`own_knobs`).
    """

    table = "training"

    n_replicas: int = knob(8, Number(1, 4096, integer=True), "local models that are averaged, whatever runs them")
    n_epochs: int | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(1, 1000, integer=True))),
        f"most walks over the training rows; auto: {EPOCHS_TO_PLATEAU} with schedule plateau, else {EPOCHS_ELSE}; "
        "1 where training goes on from a model and nothing validates"
        + "".join(f", {number} of {name}" for name, number in ITERATIONS.items()),
    )
    solver: str = knob(
        SGD,
        Options(SOLVERS),
        "sgd: steps down gradients; als: least squares, feature by feature; mcmc: Gibbs sampling, whose model predicts "
        "the mean over draws and needs no rates and no penalties; als and mcmc are of family fm, by processors",
        is_late=True,
    )
    burn_in: int | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, integer=True))),
        f"of mcmc: first iterations whose draws are not kept; auto: {BURN_IN_SHARE:g} of n_epochs",
        is_late=True,
    )
    draws: int = knob(
        32,
        Number(1, 1000, integer=True),
        "of mcmc: draws that the model keeps, evenly spread; all those after burn_in where they are fewer",
        is_late=True,
    )
    averages_per_epoch: int | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(1, integer=True))),
        "rounds in the first epoch, and in the others unless later_averages differs; auto: from rows and replicas",
    )
    later_averages: int | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(1, integer=True))),
        "rounds in an epoch after the first, at most as many as in that; auto: as many, and where those are auto, one "
        "for every two replicas or, where they have many rows, four",
    )
    rows_per_round: int = knob(
        0,
        Number(0, integer=True),
        "rows that each replica walks between two averages, instead of averages_per_epoch; 0: averages_per_epoch",
    )
    optimizer: str = knob(DEFAULT_OPTIMIZER, Options(tuple(OPTIMIZERS)), "update rule of a local model")
    learning_rate: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, open_low=True))),
        "step size, before rate_scaling; auto: 1.6 / h, where h is the mean of a row's sum of x², a quarter of that "
        "for squared errors and counts, an eighth for quantiles",
    )
    factor_rate_scale: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, open_low=True))),
        "the factors' step size is learning_rate times this; auto: 0.4, unless a pilot finds better",
    )
    tune: str = knob(
        "pilot",
        Options(TUNINGS),
        "where learning_rate is auto: begin with three settings beside each other, and go on with the best",
    )
    initial_accumulator: float = knob(1.0, Number(0, open_low=True), "what an optimizer's squares of slopes start from")
    l2_linear: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0))),
        "L2 on linear weights, per touch; auto: 0.005 times the mean of an entry's x², which is 1 of categories; of "
        "als beside the sum of squared errors of all rows (numbers at deviation 1), auto: 1.25 (c - 2), and 5 at "
        "least; c is how many features of a row others do not share, near 39 of 39 categories",
    )
    l2_factors: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0))),
        "L2 on factors, per touch; auto: 0.01, unless a pilot finds better; of als as l2_linear, auto: .4 (c - 1)², "
        "and 10 at least",
    )
    l2_groups: Mapping[str, float | tuple[float, ...]] = knob(
        {},
        TableOf(AnyOf((Number(0), ListOf(Number(0))))),
        "what l2_linear and l2_factors are multiplied with in some columns (names or globs; the first that fits): a "
        "number, or [of l2_linear, of l2_factors]; als begins as l2_factors alone says",
        is_late=True,
    )
    regularizer: str = knob("l2", OptionsOrOwn(("l2",)), "the penalty of a weight that l2_linear and l2_factors scale")
    schedule: str = knob(
        "auto",
        Options(("auto", *SCHEDULES)),
        "how the step size changes over the epochs; plateau: constant until validation gains no more, then from the "
        "best parameters down to a twentieth; auto: plateau where rows validate, else final-decay",
    )
    rate_scaling: str = knob(
        "sqrt", Options(tuple(RATE_SCALINGS)), "multiply learning_rate by 1, sqrt(n_replicas), n_replicas"
    )
    merge: str = knob("auto", Options(MERGE_RULES), "how replicas' parameters become one")
    accumulators: str = knob("mean", Options(tuple(ACCUMULATOR_RULES)), "how replicas' optimizer state becomes one")
    precision: float = knob(
        1.0, Number(0, open_low=True), 'P of merge = "precision": information below which replicas add up'
    )
    wire_dtype: str = knob(
        "float32",
        Options(WIRE_DTYPES),
        "what replicas' changes are sent in; bfloat16 rounds each by at most 1/256 of itself, and halves their bytes "
        "where a worker has one replica",
    )
    outer_rate: float = knob(1.0, Number(0, open_low=True), "step along the averaged change; 1 takes all of it")
    outer_momentum: float = knob(0.0, Number(0, 1, open_high=True), "Nesterov momentum over the averages; 0: off")
    early_stopping: bool = knob(
        True, Flag(), "stop when validation worsens; where rows validate, the best parameters are kept either way"
    )
    stop_on: str = knob(
        STOP_METRICS[0],
        Options(STOP_METRICS),
        "the validation metric that epochs, and whatever is tried, are compared by (a pilot that ends within the first "
        "epoch: by the training loss); auto: the loss, of pairs of rows group_auc, which needs schema.group",
        is_late=True,
    )
    patience: int = knob(1, Number(1, integer=True), "worse validations in a row that stop training")
    rollbacks: int = knob(
        0,
        Number(0, integer=True),
        "how often to go back to the best parameters and halve the step size before stopping for good; 0: just stop",
    )
    validate: str = knob("epoch", Options(VALIDATION_POINTS), "validate after every epoch, or after every average")
    threads_per_replica: int = knob(
        1,
        Number(1, integer=True),
        "more than 1 is faster but no longer gives the same bytes every time",
    )
    warm_start: str = knob("", Text(), "folder or URL of a model to go on from; empty: start from the beginning")
    warm_start_decay: float = knob(
        0.02,
        Number(0, 1),
        "how far warm_start's weights shrink towards the initial ones, its occurrences towards none; 0: not at all, "
        "1: forget them",
    )
    backend: str = knob(
        "auto",
        Options(BACKENDS),
        "what trains: processors (numba) or NVIDIA GPUs (cupy); auto: GPUs where every worker has one",
    )
    deterministic: bool = knob(
        False,
        Flag(),
        "the same bytes every time on GPUs too, by one row after the other: slower than a processor core",
    )
    factor_dtype: str = knob(
        "float32", Options(FACTOR_DTYPES), "what GPUs train factors in; the parameters stay float32 between averages"
    )

    def _check(self) -> None:
        self._check_backend()
        if self.rows_per_round and self.averages_per_epoch != "auto":
            raise SettingsError(
                f"training.rows_per_round = {self.rows_per_round} and training.averages_per_epoch = "
                f"{self.averages_per_epoch} both say how often to average. Leave one of them out."
            )
        if self.wire_dtype != "float32" and OPTIMIZERS[self.optimizer].state == "means":
            raise SettingsError(
                f'training.wire_dtype = "{self.wire_dtype}" does not go with training.optimizer = "{self.optimizer}": '
                "its mean of squares falls too, and rounded it could become negative. Use "
                f'wire_dtype = "float32", or {DEFAULT_OPTIMIZER}.'
            )
        if self.wire_dtype != "float32" and self.n_replicas == 1:
            raise SettingsError(
                f'training.wire_dtype = "{self.wire_dtype}" rounds what replicas send to be averaged, and with '
                "training.n_replicas = 1 nothing is averaged. Leave wire_dtype out."
            )
        both = self.averages_per_epoch, self.later_averages
        if "auto" not in both and int(both[1]) > int(both[0]):
            raise SettingsError(
                f"training.later_averages = {both[1]} is more than training.averages_per_epoch = {both[0]}, and rows "
                "are dealt for the first epoch: later ones can only have fewer averages. Make averages_per_epoch as "
                "large."
            )
        if self.precision != self.knobs()["precision"].default and self.merge != "precision":
            raise SettingsError(
                f'training.precision = {self.precision} needs training.merge = "precision"; only that reads it, and '
                f'merge is "{self.merge}". Leave precision out, or choose that merge.'
            )
        self._check_schedule()
        self._check_optimizer()
        self._check_solver()

    @property
    def is_exact(self) -> bool:
        """Whether parameters are solved for, or drawn."""
        return self.solver != SGD

    @property
    def n_iterations(self) -> int:
        """Iterations of an exact solver."""
        return ITERATIONS[self.solver] if self.n_epochs == "auto" else int(self.n_epochs)

    @property
    def n_burnt(self) -> int:
        """Iterations whose draws are not kept."""
        return int(BURN_IN_SHARE * self.n_iterations) if self.burn_in == "auto" else int(self.burn_in)

    @property
    def n_kept(self) -> int:
        """Draws that a model of them keeps: so many as are asked for, or all that come after those."""
        return min(self.draws, self.n_iterations - self.n_burnt)

    def _check_solver(self) -> None:
        own = {key for keys in READ_BY_EXACT.values() for key in keys if key in ("burn_in", "draws")}
        read = READ_BY_EXACT.get(self.solver, self.knobs().keys() - own)
        for key, known in self.knobs().items():
            value = getattr(self, key)
            if (
                key in (*read, "solver", "deterministic")
                or value == known.default
                or (key, value) == ("backend", "numba")
            ):
                continue
            readers = [name for name in SOLVERS if key in READ_BY_EXACT.get(name, self.knobs().keys() - own)]
            raise SettingsError(
                f"training.{key} = {show(value)} needs training.solver = {' or '.join(map(show, readers))}; only that "
                f"reads it, and the solver is {show(self.solver)}. Leave {key} out, or choose another solver."
            )
        if self.solver == MCMC and self.n_burnt >= self.n_iterations:
            raise SettingsError(
                f"training.burn_in = {self.burn_in} leaves no draw of {self.n_iterations} iterations "
                "(training.n_epochs). Make burn_in smaller, or n_epochs larger."
            )

    @property
    def may_plateau(self) -> bool:
        """Whether early stopping is left to the schedule, which then decides when to stop."""
        own = self.knobs()
        plain = all(getattr(self, key) == own[key].default for key in ("patience", "rollbacks", "validate"))
        return self.early_stopping and plain

    def _check_schedule(self) -> None:
        if self.schedule == "plateau" and not self.may_plateau:
            raise SettingsError(
                'training.schedule = "plateau" decides by itself when to go back and when to stop, after every epoch: '
                "early_stopping = false, patience, rollbacks and validate have no part in it. Leave them out, or "
                'choose schedule = "final-decay".'
            )

    def _check_optimizer(self) -> None:
        for key, names in readers().items():
            value, default = getattr(self, key), self.knobs()[key].default
            if value != default and self.optimizer not in names:
                raise SettingsError(
                    f"training.{key} = {show(value)} needs training.optimizer = {' or '.join(map(show, names))}; only "
                    f'that reads it, and the optimizer is "{self.optimizer}". Leave {key} out, or choose another '
                    "optimizer."
                )
        if OPTIMIZERS[self.optimizer].derives_weights and self.regularizer != "l2":
            raise SettingsError(
                f'training.optimizer = "{self.optimizer}" makes its weights of L1 and L2 in closed form, and takes no '
                f'other regularizer. Leave the regularizer out, or choose "{DEFAULT_OPTIMIZER}".'
            )
        if OPTIMIZERS[self.optimizer].derives_weights and self.l2_groups:
            raise SettingsError(
                f'training.optimizer = "{self.optimizer}" makes its weights of one L2 in closed form, and takes no '
                f'training.l2_groups = {show(self.l2_groups)}. Leave it out, or choose "{DEFAULT_OPTIMIZER}".'
            )
        for columns, scale in self.l2_groups.items():
            if isinstance(scale, tuple) and len(scale) != _PENALTIES:
                raise SettingsError(
                    f"training.l2_groups.{show(columns)} = {show(list(scale))} has {len(scale)} numbers; write one, or "
                    "two: of l2_linear and of l2_factors."
                )

    @property
    def own_knobs(self) -> dict[str, Any]:
        """The parameters of all optimizers by name, as a step takes them."""
        return {own.name: getattr(self, own.name) for own in parameters()}

    def _check_backend(self) -> None:
        if self.deterministic and self.threads_per_replica > 1:
            raise SettingsError(
                f"training.deterministic = true and training.threads_per_replica = {self.threads_per_replica} "
                "contradict each other: threads that share a table do not give the same bytes. Leave one of them out."
            )
        if self.l2_groups and self.backend == "cupy":
            raise SettingsError(
                f'training.l2_groups = {show(self.l2_groups)} needs processors: training.backend = "numba" or "auto".'
            )
        if self.factor_dtype != "float32" and self.backend == "numba":
            raise SettingsError(
                f'training.factor_dtype = "{self.factor_dtype}" needs training.backend = "cupy": processors train in '
                "float32. Leave factor_dtype out, or choose cupy."
            )


@dataclass(frozen=True)
class ClusterSettings(Table):
    """The cluster that does the work. Nothing here changes the resulting parameters."""

    table = "cluster"

    scheduler: str = knob(
        "",
        Text(),
        'address of a running Dask scheduler; empty: DASK_SCHEDULER_ADDRESS if set, else (or with "local") own workers',
    )
    factory: str = knob("", Factory(), "function that gives a Dask cluster (dask-jobqueue, dask-gateway, coiled, …)")
    factory_options: Mapping[str, Any] = knob({}, TableOf(AnyOf(SCALARS)), "arguments of the factory", secret=True)
    min_workers: int = knob(1, Number(1, integer=True), "workers that a remote cluster must have before work begins")
    tls_ca: str = knob("", Text(), "certificate authority (PEM file) of a tls:// scheduler; empty: Dask's own settings")
    tls_cert: str = knob("", Text(), "this client's certificate (PEM file)")
    tls_key: str = knob("", Text(), "this client's private key (PEM file)")
    version_mismatch: str = knob(
        "error", Options(MISMATCH_RULES), "when client, scheduler and workers do not run the same versions"
    )
    install_dfm: bool = knob(False, Flag(), "send this dfm to a scheduler and workers that have none")
    workers: int | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(1, integer=True))),
        "local worker processes; auto: one for each processor (16 at most), as far as each has memory_limit or, "
        "without it, 2 GiB and what the job needs; two at least; for trainings on GPUs two for each of them",
    )
    threads_per_worker: int = knob(1, Number(1, integer=True), "tasks that one local worker runs at a time")
    memory_limit: str = knob("auto", AnyOf((Options(("auto",)), Size())), "memory of one local worker")
    gpu_memory: str = knob(
        "auto",
        AnyOf((Options(("auto",)), Size())),
        "memory of a GPU that rows may stay in; auto: nine tenths of what the parameters leave",
    )
    cache: str = knob(".dfm-cache", Text(may_be_empty=False), "directory of the partition cache on each worker")
    cache_limit: str = knob("50GB", Size(), "the oldest partitions beyond this size are deleted")
    worker_timeout: float = knob(60.0, Number(0, open_low=True), "how long to wait for the first worker", "seconds")
    dashboard: bool = knob(False, Flag(), "serve Dask's dashboard from the local cluster")

    def _check(self) -> None:
        if self.scheduler and self.factory:
            raise SettingsError(
                f"cluster.scheduler = {show(self.scheduler)} and cluster.factory = {show(self.factory)} name two "
                "clusters; leave one of them out"
            )
        if (given := [key for key in ("tls_ca", "tls_cert", "tls_key") if getattr(self, key)]) and len(given) < 3:
            raise SettingsError(
                f"cluster.{given[0]} needs its companions: give cluster.tls_ca, cluster.tls_cert and cluster.tls_key, "
                "or none of them (then Dask's own settings hold: distributed.comm.tls)"
            )


@dataclass(frozen=True)
class OutputSettings(Table):
    """The place of results."""

    table = "output"

    directory: str = knob("", Text(), "directory or URL; the model is published as directory/model")
    overwrite: bool = knob(True, Flag(), "replace a model that is already there")
    report: bool = knob(True, Flag(), "write a page about the model beside it, directory/report.html")
    mlflow: bool = knob(
        False, Flag(), "log the finished run to MLflow; MLFLOW_TRACKING_URI in the driver's environment says where"
    )
    checkpoint_every: str = knob(
        "average",
        Options(CHECKPOINT_POINTS),
        "when the state is saved as directory/checkpoint, as long as that takes less than 5 % of the time",
    )
    resume: bool = knob(True, Flag(), "go on from the checkpoint of the same job, if there is one; false: delete it")

    def _check(self) -> None:
        check_url(self.directory, "output.directory")

    @property
    def checkpoints(self) -> str:
        """Folder or URL in which a training keeps its state."""
        return f"{self.directory.rstrip('/')}/checkpoint"


@dataclass(frozen=True)
class KubernetesSettings(Table):
    """The demands of `dfm submit --kubernetes` on a Kubernetes cluster; nothing else reads them."""

    table = "kubernetes"

    namespace: str = knob("", pods.MAYBE_NAMESPACE, "namespace; empty: that of the kubeconfig's context")
    image: str = knob("dfm:latest", Text(may_be_empty=False), "image of driver, scheduler and workers")
    service_account: str = knob("dfm", pods.OBJECT, "service account of the pods (workload identity)")
    secret: str = knob("", pods.MAYBE_OBJECT, "Secret whose keys become environment variables (AWS_ACCESS_KEY_ID, …)")
    pull_secret: str = knob("", pods.MAYBE_OBJECT, "Secret for pulling the image")
    workers: int | str = knob("auto", AnyOf((Options(("auto",)), Number(1, integer=True))), "worker pods")
    worker_cpus: int = knob(1, Number(1, integer=True), "CPUs, and so tasks at a time, of a worker pod")
    worker_memory: str = knob("auto", AnyOf((Options(("auto",)), Size())), "memory of a worker pod")
    driver_memory: str = knob("auto", AnyOf((Options(("auto",)), Size())), "memory of the driver's pod")
    scheduler_memory: str = knob("1GiB", Size(), "memory of the scheduler's pod")
    scratch: str = knob("auto", AnyOf((Options(("auto",)), Size())), "disk of a worker pod for the partition cache")
    scratch_claim: str = knob(
        "", pods.MAYBE_OBJECT, "storage class of fast local disks for the cache; empty: an emptyDir"
    )
    gpus: int = knob(
        0, Number(0, 1, integer=True), "1: every worker pod has an NVIDIA GPU; for more GPUs, more workers"
    )
    spot: bool = knob(False, Flag(), "let workers run on nodes that may be taken away")
    tls_secret: str = knob("", pods.MAYBE_OBJECT, "Secret with ca.crt, tls.crt and tls.key: all connections are TLS")
    attempts: int = knob(5, Number(1, integer=True), "starts of the driver before the job counts as failed")
    deadline: int = knob(0, Number(0, integer=True), "the driver's pod is ended after so long; 0: never", "seconds")
    start_timeout: int = knob(
        900, Number(0, integer=True), "pods that did not start by then end the job; 0: they are waited for", "seconds"
    )
    ttl_after_finished: int = knob(
        604_800, Number(0, integer=True), "a job that ended so long ago is pruned with all it owns; 0: never", "seconds"
    )
    cpu_limits: bool = knob(False, Flag(), "limit CPUs to what is requested; quotas on limits.cpu need it")
    node_selector: Mapping[str, Any] = knob({}, pods.LABELS, "labels that a node must have to take pods")
    worker_node_selector: Mapping[str, Any] = knob({}, pods.LABELS, "labels that a node must also have to take workers")
    affinity: Mapping[str, Any] = knob({}, pods.AFFINITY, "affinity of all pods, as in a manifest")
    tolerations: tuple[Mapping[str, Any], ...] = knob((), pods.TOLERATIONS, "taints of nodes that all pods bear")
    priority_class: str = knob("", pods.MAYBE_OBJECT, "priority class of all pods")
    labels: Mapping[str, Any] = knob({}, pods.LABELS, "labels of the job and its pods")
    annotations: Mapping[str, Any] = knob({}, pods.ANNOTATIONS, "annotations of the job and its pods")
    environment: Mapping[str, Any] = knob({}, pods.VARIABLES, "environment variables of all pods")
    environment_from: Mapping[str, Any] = knob({}, pods.SOURCES, "variables whose values a Secret or ConfigMap keeps")
    config_map: str = knob("", pods.MAYBE_OBJECT, "ConfigMap whose keys become environment variables")
    volumes: tuple[Mapping[str, Any], ...] = knob(
        (), pods.VOLUMES, "volumes of all pods; file:// below a mount is then legal in data and output"
    )

    def _check(self) -> None:
        check_variables(
            self.environment,
            "kubernetes.environment",
            "let a Secret keep it: kubernetes.environment_from, or kubernetes.secret for all of its keys",
        )
        mounts = [volume["mount"] for volume in self.volumes]
        if twice := [mount for mount in mounts if mounts.count(mount) > 1]:
            raise SettingsError(f"kubernetes.volumes mounts {twice[0]!r} twice; give each volume a path of its own")
        taken = [mount for mount in mounts if f"{mount}/".startswith(tuple(f"{own}/" for own in OWN_MOUNTS))]
        if taken:
            raise SettingsError(
                f"kubernetes.volumes mounts {taken[0]!r}, where dfm mounts its own; choose a path outside "
                f"{', '.join(OWN_MOUNTS)}"
            )


def _bounds(low: float, high: float, help: str) -> Any:
    """The knob of a number that is drawn between two others, evenly in its logarithm."""
    return knob((low, high), ListOf(Number(0, open_low=True), at_least=2), f"{help}: the least and the greatest")


@dataclass(frozen=True)
class SearchSettings(Table):
    """The space of `dfm search`. Two equal bounds, or one word of a list, hold a knob fixed."""

    table = "search"

    n_trials: int = knob(24, Number(1, 10_000, integer=True), "settings that are tried; the first is the default")
    n_seeds: int = knob(3, Number(0, 100, integer=True), "seeds with which the best and the default are trained")
    learning_rate: tuple[float, ...] = _bounds(
        0.6, 6.0, "learning_rate in units of 1 / h (a quarter of that for squared errors, …), as its auto is 1.6"
    )
    factor_rate_scale: tuple[float, ...] = _bounds(0.2, 2.0, "training.factor_rate_scale")
    l2_factors: tuple[float, ...] = _bounds(0.001, 0.05, "training.l2_factors")
    l2_linear: tuple[float, ...] = _bounds(
        0.0005, 0.02, "training.l2_linear, in units of the mean of an entry's x², as its auto is 0.005"
    )
    min_count_factors: tuple[int, ...] = knob(
        (3, 10, 30, 100), ListOf(Number(1, integer=True), at_least=1), "values of model.min_count_factors"
    )
    n_factors: tuple[int, ...] | str = knob(
        "auto",
        AnyOf((Options(("auto",)), ListOf(Number(1, 256, integer=True), at_least=1))),
        "values of model.n_factors; auto: half of what the family has by default, that, and twice that, as far as "
        "model.n_models allows them",
    )
    init_scale: tuple[float, ...] = knob(
        (1 / 3, 1.0, 3.0), ListOf(Number(0, open_low=True), at_least=1), "multiples of the automatic model.init_stdev"
    )

    def _check(self) -> None:
        for key in ("learning_rate", "factor_rate_scale", "l2_factors", "l2_linear"):
            bounds = getattr(self, key)
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise SettingsError(
                    f"search.{key} = {show(bounds)} is not legal: expected two numbers, the lesser first. Write for "
                    f"example {key} = {show(self.knobs()[key].default)}."
                )


OWN_MOUNTS = ("/tmp", "/scratch", "/etc/dfm", "/etc/dfm-tls")
"""Paths at which the pods of dfm have volumes of their own."""


TABLES: dict[str, type[Table]] = {
    kind.table: kind
    for kind in (
        *(DataSettings, Schema, ModelSettings, TrainingSettings),
        *(ClusterSettings, OutputSettings, KubernetesSettings, SearchSettings),
    )
}


def tables_with(key: str) -> list[str]:
    """Full names of the knobs called `key`, or of those that do what other tools call so."""
    own = [f"{name}.{key}" for name, kind in TABLES.items() if key in kind.knobs()]
    return own or list(meant_by(key))


def unknown_key(kind: type[Table], key: str) -> str:
    """The message about a key that a table does not have: other tables with it, the nearest key, or all of them."""
    message = f"{kind.table}.{key} is unknown."
    if homes := tables_with(key):
        return f"{message} Did you mean {' or '.join(homes)}?"
    known = f"[{kind.table}] has: {', '.join(kind.knobs())}."
    return f"{message} {did_you_mean(key, kind.knobs()) or known}"
