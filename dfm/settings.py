"""Every knob of a job: one frozen record per TOML table, the constraint of each knob beside its default.

Constraints are data on the fields: the error messages, the tests of illegal values and the reference table
(`describe`) are all made from them, so none of the three can drift from what is enforced.

A job comes in through `load_job`: a TOML file (or a dict of tables) plus overrides `table.key=value`.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import difflib
import hashlib
import json
import math
import numbers
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from dfm.credentials import check_options, check_url
from dfm.errors import SettingsError

TASKS = ("classification", "regression")
LOSS_TASKS = {
    **{"logistic": "classification", "hinge": "classification"},
    **{"squared": "regression", "poisson": "regression", "quantile": "regression", "huber": "regression"},
}
"""The task of each built-in loss."""
LOSS_PARAMETERS = {"quantile": (0.5, 1.0), "huber": (1.0, math.inf)}
"""Of losses with a parameter: its default and the bound that it stays below; all are above 0."""
OPTIMIZERS = ("sgd", "adagrad", "adagrad-row", "ftrl", "adam")
MERGE_RULES = ("auto", "mean", "weighted", "touched", "count", "precision")
ACCUMULATOR_RULES = ("mean", "vw", "touched", "sum")
SCHEDULES = ("constant", "inverse-sqrt", "final-decay")
RATE_SCALINGS = ("none", "sqrt", "linear")
VALIDATION_POINTS = ("epoch", "average")
CHECKPOINT_POINTS = ("average", "epoch", "never")
BACKENDS = ("auto", "numba", "cupy")
FACTOR_DTYPES = ("float32", "bfloat16", "float16")
WIRE_DTYPES = ("float32", "bfloat16")
BAD_ROW_RULES = ("error", "skip")
MISMATCH_RULES = ("error", "warn")
TRANSFORMS = ("log2-bucket", "quantile", "standardize", "raw")
LIST_WEIGHTS = ("sqrt", "one")


# --- constraints -----------------------------------------------------------------------------------------


class Illegal(ValueError):
    """A value that a constraint refuses; the text is a hint towards a legal one, or empty."""


class Constraint(Protocol):
    """What a knob accepts: `legal` says it in words, `parse` gives the stored form or raises `Illegal`."""

    @property
    def legal(self) -> str: ...

    def parse(self, value: object) -> Any: ...


@dataclass(frozen=True)
class Number:
    """A finite number in a range; `open_low` and `open_high` exclude the end points."""

    low: float
    high: float = math.inf
    integer: bool = False
    open_low: bool = False
    open_high: bool = False

    @property
    def legal(self) -> str:
        noun = "an integer" if self.integer else "a number"
        if self.low == -math.inf:
            return noun
        if self.high == math.inf:
            return f"{noun} above {self.low}" if self.open_low else f"{noun}, {self.low} or more"
        start = f"above {self.low}" if self.open_low else f"from {self.low}"
        return f"{noun} {start} to {'below ' if self.open_high else ''}{self.high}"

    def parse(self, value: object) -> int | float:
        if isinstance(value, str) and _is_number(value):
            raise Illegal("Write the number without quotes.")
        kind = numbers.Integral if self.integer else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            raise Illegal
        try:
            number = int(value) if isinstance(value, numbers.Integral) and self.integer else float(value)
        except OverflowError:
            raise Illegal from None
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        if not (math.isfinite(number) and above and below):
            raise Illegal
        return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Flag:
    """true or false."""

    legal: ClassVar[str] = "true or false"

    def parse(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise Illegal("Write true or false without quotes." if value in ("true", "false") else "")


@dataclass(frozen=True)
class Options:
    """One word of a fixed set."""

    words: tuple[str, ...]

    @property
    def legal(self) -> str:
        return " or ".join(f'"{word}"' for word in self.words)

    def parse(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        raise Illegal(_did_you_mean(str(value), self.words))


OWN = "custom:"
"""How the mark of a function begins that Python passed: custom:NAME:SHA256. It says which it was, and runs nothing."""


@dataclass(frozen=True)
class OptionsOrOwn(Options):
    """One word of a fixed set, or the mark of a user's function."""

    def parse(self, value: object) -> str:
        if isinstance(value, str) and re.fullmatch(rf"{OWN}.+:[0-9a-f]{{64}}", value):
            return value
        return super().parse(value)


@dataclass(frozen=True)
class Text:
    """A string; a path object counts as one."""

    may_be_empty: bool = True

    @property
    def legal(self) -> str:
        return "a string" if self.may_be_empty else "a non-empty string"

    def parse(self, value: object) -> str:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(text, str):
            raise Illegal("Put it in quotes.")
        if not text and not self.may_be_empty:
            raise Illegal
        return text


@dataclass(frozen=True)
class Moment:
    """A point on the axis of the time column, kept as text: a TOML date is stored in ISO 8601."""

    legal: ClassVar[str] = "a string, an integer or a date"

    def parse(self, value: object) -> str:
        if isinstance(value, bool):
            raise Illegal
        if isinstance(value, datetime.datetime):
            return value.isoformat(sep=" ")
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, numbers.Integral):
            return str(int(value))
        if isinstance(value, str):
            return value
        raise Illegal


@dataclass(frozen=True)
class Size:
    """An amount of bytes with its unit, kept as text; `parse_bytes` counts it."""

    legal: ClassVar[str] = 'a size such as "500MB", "4GB" or "8GiB"'

    def parse(self, value: object) -> str:
        if not isinstance(value, str):
            raise Illegal("Write a string with a unit.")
        parse_bytes(value)
        return value


@dataclass(frozen=True)
class Factory:
    """The name of a function, `module:function`, or nothing."""

    legal: ClassVar[str] = "a name of the form module:function"

    def parse(self, value: object) -> str:
        if value == "":
            return ""
        if not isinstance(value, str) or not re.fullmatch(r"[\w.]+:[\w.]+", value):
            raise Illegal
        return value


@dataclass(frozen=True)
class AnyOf:
    """What any one of several constraints accepts, tried in their order."""

    choices: tuple[Constraint, ...]

    @property
    def legal(self) -> str:
        return " or ".join(choice.legal for choice in self.choices)

    def parse(self, value: object) -> Any:
        for choice in self.choices:
            try:
                return choice.parse(value)
            except Illegal as illegal:
                last = illegal
        raise Illegal(*last.args)


@dataclass(frozen=True)
class ListOf:
    """A list stored as a tuple; with `lone`, a bare item stands for a list of one and "" for none."""

    item: Constraint
    at_least: int = 0
    lone: bool = False

    @property
    def legal(self) -> str:
        size = f" of {self.at_least} or more" if self.at_least else ""
        many = f"a list{size}, each {self.item.legal}"
        return f"{self.item.legal} or a list of these" if self.lone else many

    def parse(self, value: object) -> tuple[Any, ...]:
        if self.lone and isinstance(value, str | os.PathLike):
            value = [value] if value != "" else []
        if not isinstance(value, list | tuple):
            raise Illegal("Put it in [brackets].")
        if len(value) < self.at_least:
            raise Illegal
        return tuple(self.item.parse(item) for item in value)


@dataclass(frozen=True)
class TableOf:
    """A TOML table whose keys are free and whose values share one constraint."""

    value: Constraint

    @property
    def legal(self) -> str:
        return f"a table, each value {self.value.legal}"

    def parse(self, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Illegal("Write it as key = value pairs below its own [table.key] heading.")
        return {str(key): self.value.parse(inner) for key, inner in value.items()}


_SCALARS = (Text(), Flag(), Number(-math.inf, integer=True), Number(-math.inf))
COLUMNS = ListOf(Text(may_be_empty=False), lone=True)
PATHS = ListOf(Text(may_be_empty=False), lone=True)

_BYTE_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{prefix}i": 2 ** (10 * power) for power, prefix in enumerate("KMGT", start=1)
}


def parse_bytes(text: str) -> int:
    """Bytes in a size such as "4GB" (decimal) or "4GiB" (binary)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?|[KMGT]i)B", text.strip().replace("KB", "kB"))
    if match is None:
        raise Illegal("Write digits and a unit out of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB.")
    return int(float(match[1]) * _BYTE_UNITS[match[2]])


# --- knobs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knob:
    """One key of a TOML table: what it accepts and what it means. A secret value is never shown or stored."""

    default: Any
    constraint: Constraint
    help: str
    unit: str = ""
    secret: bool = False

    @property
    def legal(self) -> str:
        return f"{self.constraint.legal}, in {self.unit}" if self.unit else self.constraint.legal

    def parse(self, name: str, value: object) -> Any:
        """The value in its stored form; `name` is `table.key`, for the message."""
        try:
            return self.constraint.parse(value)
        except Illegal as illegal:
            shown = "(hidden)" if self.secret else _show(value)
            hint = " ".join(str(part) for part in illegal.args if part and not self.secret)
            message = f"{name} = {shown} is not legal: expected {self.legal}."
            remedy = f"Leave it out for the default, {_show(self.default)}."
            raise SettingsError(" ".join(filter(None, (message, hint, remedy)))) from None


def knob(default: Any, constraint: Constraint, help: str, unit: str = "", secret: bool = False) -> Any:
    """A dataclass field that carries its `Knob`."""
    metadata = {"knob": Knob(default, constraint, help, unit, secret)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def _show(value: object) -> str:
    """The value as TOML would write it, shortened to one line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _did_you_mean(word: str, candidates: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f'Did you mean "{nearest[0]}"?' if nearest else ""


@dataclass(frozen=True)
class Table:
    """What every TOML table shares: values are checked and normalised however the record is made."""

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
                f"{cls.table} = {_show(values)} is not legal: expected a table. Write its keys below [{cls.table}]."
            )
        for key in values:
            if key not in cls.knobs():
                raise SettingsError(_unknown_key(cls, str(key)))
        return cls(**values)

    def to_dict(self, secrets: bool = False) -> dict[str, Any]:
        """JSON-ready values that `from_dict` takes back; secret knobs only where `secrets` asks for them."""
        return {key: _thaw(getattr(self, key)) for key, own in self.knobs().items() if secrets or not own.secret}


def _thaw(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


# --- the tables of a job file ----------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSettings(Table):
    """Where the rows are and what happens to bad ones."""

    table = "data"

    train: tuple[str, ...] = knob((), PATHS, "Parquet to train on: paths or URLs; globs and hive partitions allowed")
    validation: tuple[str, ...] = knob((), PATHS, "Parquet to validate on; may be empty")
    validation_from: str = knob(
        "", Moment(), "rows of `train` whose schema.time is this or later validate instead; needs schema.time"
    )
    on_bad_rows: str = knob(
        "error", Options(BAD_ROW_RULES), "stop at a row that breaks the schema, or count and skip it"
    )
    max_bad_fraction: float = knob(
        0.01,
        Number(0, 1),
        'with on_bad_rows = "skip": stop when a larger part of the rows is bad',
    )
    storage_options: Mapping[str, Any] = knob(
        {},
        TableOf(AnyOf((*_SCALARS, TableOf(AnyOf(_SCALARS))))),
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
                f"data.validation_from = {_show(self.validation_from)} has no effect beside "
                "data.validation, which names the validation rows already. "
                'Leave one of them out (--set data.validation_from="").'
            )


@dataclass(frozen=True)
class Schema(Table):
    """Which column plays which role. `dfm.schema.resolve` turns it into the fields of a concrete data set.

    `categorical`, `numeric` and `lists` take column names or glob patterns; when `categorical` and `numeric`
    are both empty, `dfm.schema.infer` chooses by column type.
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
    categorical: tuple[str, ...] = knob((), COLUMNS, "columns (names or globs) whose distinct values are categories")
    numeric: tuple[str, ...] = knob((), COLUMNS, "columns (names or globs) of numbers, see numeric_transform")
    numeric_transform: str = knob("log2-bucket", Options(TRANSFORMS), "how a numeric column becomes a feature")
    quantile_buckets: int = knob(32, Number(2, 4096, integer=True), "buckets of the quantile transform")
    transforms: Mapping[str, str] = knob({}, TableOf(Options(TRANSFORMS)), "numeric_transform of single columns")
    lists: tuple[str, ...] = knob((), COLUMNS, "list-valued columns (names or globs): every element is a category")
    list_weight: str = knob("sqrt", Options(LIST_WEIGHTS), "value of each of n list elements: 1/sqrt(n), or 1")
    crosses: tuple[tuple[str, ...], ...] = knob(
        (),
        ListOf(ListOf(Text(may_be_empty=False), at_least=2)),
        "columns whose combined values are further categories; categorical or bucketed numeric columns only",
    )

    def _check(self) -> None:
        roles = {"label": self.label, "weight": self.weight, "time": self.time}
        taken: dict[str, str] = {}
        for role, column in roles.items():
            if column and column in taken:
                raise SettingsError(
                    f"schema.{role} = {_show(column)} is not legal: schema.{taken[column]} names that "
                    "column too. Give each role its own column."
                )
            taken[column] = role


@dataclass(frozen=True)
class ModelSettings(Table):
    """What the model is, apart from how it is trained."""

    table = "model"

    task: str = knob("classification", Options(TASKS), "labels 0 and 1, or numbers")
    loss: str = knob(
        "auto",
        OptionsOrOwn(("auto", *LOSS_TASKS)),
        "what training minimises; auto: logistic for classification, squared for regression",
    )
    loss_parameter: float | str = knob(
        "auto",
        AnyOf((Options(("auto",)), Number(0, open_low=True))),
        "the level of loss quantile (auto: 0.5), the width of huber (auto: 1)",
    )
    n_factors: int = knob(8, Number(0, 256, integer=True), "length of a factor vector; 0 is a linear model")
    hash_bits: int = knob(20, Number(10, 30, integer=True), "features are hashed to 2^hash_bits indices")
    min_count: int = knob(
        2,
        Number(1, integer=True),
        "rarer categories share one feature per field",
    )
    min_count_factors: int = knob(
        100,
        Number(1, integer=True),
        "rarer features keep their weight but get no factors",
    )
    init_stdev: float = knob(0.01, Number(0, open_low=True), "standard deviation of the factors at the start")
    seed: int = knob(0, Number(0, 2**63 - 1, integer=True), "of initial factors, shuffling and row order")

    def _check(self) -> None:
        task = LOSS_TASKS.get(self.loss, self.task)
        if task != self.task:
            fitting = " or ".join(f'"{name}"' for name, own in LOSS_TASKS.items() if own == self.task)
            raise SettingsError(
                f'model.loss = "{self.loss}" needs model.task = "{task}", and the task is "{self.task}". '
                f"Choose {fitting}, or another task."
            )
        if self.loss_parameter == "auto":
            return
        if self.loss not in LOSS_PARAMETERS:
            raise SettingsError(
                f"model.loss_parameter = {self.loss_parameter} needs model.loss = "
                f'{" or ".join(LOSS_PARAMETERS)}; only these have one, and the loss is "{self.loss}". Leave it out.'
            )
        below = LOSS_PARAMETERS[self.loss][1]
        if float(self.loss_parameter) >= below:
            raise SettingsError(
                f"model.loss_parameter = {self.loss_parameter} is not legal: expected a number above 0 and below "
                f'{below:g} for model.loss = "{self.loss}".'
            )


@dataclass(frozen=True)
class TrainingSettings(Table):
    """How local models are trained and averaged: these knobs decide the bytes of the result."""

    table = "training"

    n_replicas: int = knob(8, Number(1, 4096, integer=True), "local models that are averaged, whatever runs them")
    n_epochs: int = knob(5, Number(1, 1000, integer=True), "most walks over the training rows")
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
    optimizer: str = knob("adagrad", Options(OPTIMIZERS), "update rule of a local model")
    learning_rate: float = knob(0.045, Number(0, open_low=True), "step size, before rate_scaling")
    factor_rate_scale: float = knob(
        0.45, Number(0, open_low=True), "the factors' step size is learning_rate times this"
    )
    initial_accumulator: float = knob(1.0, Number(0, open_low=True), "AdaGrad's sum of squared slopes at the start")
    l2_linear: float = knob(0.005, Number(0), "L2 on linear weights, per touch")
    l2_factors: float = knob(0.005, Number(0), "L2 on factors, per touch")
    l1_linear: float = knob(0.0, Number(0), "L1 on linear weights; ftrl only")
    regularizer: str = knob("l2", OptionsOrOwn(("l2",)), "the penalty of a weight that l2_linear and l2_factors scale")
    ftrl_beta: float = knob(1.0, Number(0), "beta of FTRL-proximal: larger starts slower; ftrl only")
    adam_beta1: float = knob(0.9, Number(0, 1, open_high=True), "decay of Adam's mean of gradients; adam only")
    adam_beta2: float = knob(0.999, Number(0, 1, open_high=True), "decay of Adam's mean of their squares; adam only")
    adam_epsilon: float = knob(1e-8, Number(0), "added to the root that Adam divides by; adam only")
    schedule: str = knob("final-decay", Options(SCHEDULES), "how the step size changes over the epochs")
    rate_scaling: str = knob(
        "sqrt", Options(RATE_SCALINGS), "multiply learning_rate by 1, sqrt(n_replicas), n_replicas"
    )
    merge: str = knob("auto", Options(MERGE_RULES), "how replicas' parameters become one")
    accumulators: str = knob("mean", Options(ACCUMULATOR_RULES), "how replicas' optimizer state becomes one")
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
    early_stopping: bool = knob(True, Flag(), "stop when validation worsens and keep the best parameters")
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
        0.1, Number(0, 1), "how far warm_start's weights shrink towards the initial ones; 0: not at all, 1: forget them"
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
        if self.wire_dtype != "float32" and self.optimizer == "adam":
            raise SettingsError(
                f'training.wire_dtype = "{self.wire_dtype}" does not go with training.optimizer = "adam": its mean of '
                'squares falls too, and rounded it could become negative. Use wire_dtype = "float32", or adagrad.'
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
        for key, optimizer in _ONLY_FOR.items():
            value, default = getattr(self, key), self.knobs()[key].default
            if value != default and self.optimizer != optimizer:
                raise SettingsError(
                    f'training.{key} = {value} needs training.optimizer = "{optimizer}"; only that reads it, and '
                    f'the optimizer is "{self.optimizer}". Leave {key} out, or choose {optimizer}.'
                )
        if self.optimizer == "ftrl" and self.regularizer != "l2":
            raise SettingsError(
                'training.optimizer = "ftrl" makes its weights of L1 and L2 in closed form, and takes no other '
                'regularizer. Leave the regularizer out, or choose "adagrad".'
            )

    def _check_backend(self) -> None:
        if self.deterministic and self.threads_per_replica > 1:
            raise SettingsError(
                f"training.deterministic = true and training.threads_per_replica = {self.threads_per_replica} "
                "contradict each other: threads that share a table do not give the same bytes. Leave one of them out."
            )
        if self.factor_dtype != "float32" and self.backend == "numba":
            raise SettingsError(
                f'training.factor_dtype = "{self.factor_dtype}" needs training.backend = "cupy": processors train in '
                "float32. Leave factor_dtype out, or choose cupy."
            )


_ONLY_FOR = {
    **{"l1_linear": "ftrl", "ftrl_beta": "ftrl"},
    **{"adam_beta1": "adam", "adam_beta2": "adam", "adam_epsilon": "adam"},
}
"""Knobs of training that one optimizer alone reads."""


@dataclass(frozen=True)
class ClusterSettings(Table):
    """Where the work runs. Nothing here changes the resulting parameters."""

    table = "cluster"

    scheduler: str = knob(
        "",
        Text(),
        'address of a running Dask scheduler; empty: DASK_SCHEDULER_ADDRESS if set, else (or with "local") own workers',
    )
    factory: str = knob("", Factory(), "function that gives a Dask cluster (dask-jobqueue, dask-gateway, coiled, …)")
    factory_options: Mapping[str, Any] = knob({}, TableOf(AnyOf(_SCALARS)), "arguments of the factory", secret=True)
    min_workers: int = knob(1, Number(1, integer=True), "workers that a remote cluster must have before work begins")
    tls_ca: str = knob("", Text(), "certificate authority (PEM file) of a tls:// scheduler; empty: Dask's own settings")
    tls_cert: str = knob("", Text(), "this client's certificate (PEM file)")
    tls_key: str = knob("", Text(), "this client's private key (PEM file)")
    version_mismatch: str = knob(
        "error", Options(MISMATCH_RULES), "when client, scheduler and workers do not run the same versions"
    )
    install_dfm: bool = knob(False, Flag(), "send this dfm to a scheduler and workers that have none")
    workers: int = knob(2, Number(1, integer=True), "local worker processes")
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
                f"cluster.scheduler = {_show(self.scheduler)} and cluster.factory = {_show(self.factory)} name two "
                "clusters; leave one of them out"
            )
        if (given := [key for key in ("tls_ca", "tls_cert", "tls_key") if getattr(self, key)]) and len(given) < 3:
            raise SettingsError(
                f"cluster.{given[0]} needs its companions: give cluster.tls_ca, cluster.tls_cert and cluster.tls_key, "
                "or none of them (then Dask's own settings hold: distributed.comm.tls)"
            )


@dataclass(frozen=True)
class OutputSettings(Table):
    """Where results go."""

    table = "output"

    directory: str = knob("", Text(), "directory or URL; the model is published as directory/model")
    overwrite: bool = knob(True, Flag(), "replace a model that is already there")
    checkpoint_every: str = knob(
        "average",
        Options(CHECKPOINT_POINTS),
        "when the state is saved as directory/checkpoint, as long as that takes less than 5 % of the time",
    )
    resume: bool = knob(True, Flag(), "go on from the checkpoint of the same job, if there is one; false: delete it")

    def _check(self) -> None:
        check_url(self.directory, "output.directory")


@dataclass(frozen=True)
class KubernetesSettings(Table):
    """What `dfm submit --kubernetes` asks a Kubernetes cluster for; nothing else reads it."""

    table = "kubernetes"

    namespace: str = knob("", Text(), "namespace; empty: that of the kubeconfig's context")
    image: str = knob("dfm:latest", Text(may_be_empty=False), "image of driver, scheduler and workers")
    service_account: str = knob("dfm", Text(may_be_empty=False), "service account of the pods (workload identity)")
    secret: str = knob("", Text(), "Secret whose keys become environment variables (AWS_ACCESS_KEY_ID, …)")
    pull_secret: str = knob("", Text(), "Secret for pulling the image")
    workers: int | str = knob("auto", AnyOf((Options(("auto",)), Number(1, integer=True))), "worker pods")
    worker_cpus: int = knob(1, Number(1, integer=True), "CPUs, and so tasks at a time, of a worker pod")
    worker_memory: str = knob("auto", AnyOf((Options(("auto",)), Size())), "memory of a worker pod")
    driver_memory: str = knob("auto", AnyOf((Options(("auto",)), Size())), "memory of the driver's pod")
    scheduler_memory: str = knob("1GiB", Size(), "memory of the scheduler's pod")
    scratch: str = knob("auto", AnyOf((Options(("auto",)), Size())), "disk of a worker pod for the partition cache")
    scratch_claim: str = knob("", Text(), "storage class of fast local disks for the cache; empty: an emptyDir")
    gpus: int = knob(
        0, Number(0, 1, integer=True), "1: every worker pod has an NVIDIA GPU; for more GPUs, more workers"
    )
    spot: bool = knob(False, Flag(), "let workers run on nodes that may be taken away")
    tls_secret: str = knob("", Text(), "Secret with ca.crt, tls.crt and tls.key: all connections are TLS")
    attempts: int = knob(5, Number(1, integer=True), "starts of the driver before the job counts as failed")
    deadline: int = knob(0, Number(0, integer=True), "the driver's pod is ended after so long; 0: never", "seconds")


TABLES: dict[str, type[Table]] = {
    kind.table: kind
    for kind in (
        *(DataSettings, Schema, ModelSettings, TrainingSettings),
        *(ClusterSettings, OutputSettings, KubernetesSettings),
    )
}
_DETERMINES_PARAMETERS = ("data", "schema", "model", "training")


@dataclass(frozen=True)
class Job:
    """A whole job file, checked."""

    data: DataSettings = field(default_factory=DataSettings)
    schema: Schema = field(default_factory=Schema)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)

    def __post_init__(self) -> None:
        if self.data.validation_from and not self.schema.time:
            raise SettingsError(
                f"data.validation_from = {_show(self.data.validation_from)} needs "
                "schema.time: rows are split by that column. "
                "Name it in schema.time, or give data.validation its own files."
            )
        if self.schema.label_positive and self.model.task != "classification":
            raise SettingsError(
                f"schema.label_positive = {_show(self.schema.label_positive)} needs "
                f'model.task = "classification": labels of "{self.model.task}" are numbers. '
                "Leave label_positive out."
            )

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> Job:
        """The job of parsed TOML tables; tables and keys left out take their defaults."""
        for name in tables:
            if name not in TABLES:
                raise SettingsError(_unknown_table(str(name)))
        records: dict[str, Any] = {name: kind.from_dict(tables.get(name, {})) for name, kind in TABLES.items()}
        return cls(**records)

    def to_dict(self, secrets: bool = False) -> dict[str, dict[str, Any]]:
        """JSON-ready tables that `from_dict` takes back; without data.storage_options unless `secrets`."""
        return {name: getattr(self, name).to_dict(secrets) for name in TABLES}

    def determining_tables(self) -> dict[str, dict[str, Any]]:
        """The tables that determine the parameters (data, schema, model, training), JSON-ready, without secrets."""
        tables = self.to_dict()
        return {name: tables[name] for name in _DETERMINES_PARAMETERS}

    def fingerprint(self) -> str:
        """sha256 (hex) of what determines the parameters: data, schema, model, training; no secrets."""
        canonical = json.dumps(self.determining_tables(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def require_training(self) -> None:
        """Refuse a job that names nothing to train on, or nowhere to put the model."""
        if not self.data.train:
            raise SettingsError(
                "data.train is empty: expected at least one path or URL of Parquet files. "
                "Write it in the job file or add --set data.train='clicks/*.parquet'."
            )
        if not self.output.directory:
            raise SettingsError(
                "output.directory is empty: expected a directory or URL for the model. "
                "Write it in the job file or add --set output.directory=results."
            )


# --- from file and command line --------------------------------------------------------------------------


def load_job(source: str | os.PathLike[str] | Mapping[str, Any] | Job, overrides: Sequence[str] = ()) -> Job:
    """The checked job of a TOML file, a dict of tables or another job, after `table.key=value` overrides.

    A value is read as TOML; where that is no TOML, or not what the knob takes, its text is taken as a string.
    Relative paths stay as they are written.
    """
    return Job.from_dict(read_tables(source, overrides))


def read_tables(
    source: str | os.PathLike[str] | Mapping[str, Any] | Job, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The tables that `load_job` makes a job of, as they are written and not yet checked."""
    tables = _read_tables(source)
    for override in overrides:
        _apply_override(tables, override)
    return tables


def _read_tables(source: str | os.PathLike[str] | Mapping[str, Any] | Job) -> dict[str, Any]:
    if isinstance(source, Job):
        return source.to_dict(secrets=True)
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    try:
        return tomllib.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the job file {source}: {error.strerror}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"the job file {source} is not TOML: {error}.") from None


def _apply_override(tables: dict[str, Any], override: str) -> None:
    """Write one `table.key=value` into `tables`, in place."""
    name, equals, text = override.partition("=")
    path = name.strip().split(".", 2)  # the third part is a key of a table knob and may hold dots of its own
    if not equals or len(path) < 2:
        raise SettingsError(_bad_override(name.strip()))
    target = tables
    for step in path[:-1]:
        inner = target.get(step)
        if not isinstance(inner, dict):
            inner = target[step] = {}
        target = inner
    target[path[-1]] = read_override(path, text)


def read_override(path: Sequence[str], text: str) -> Any:
    """The value that a text stands for, at table and key (and key of a table knob): TOML, or the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    kind = TABLES.get(path[0])
    own = kind.knobs().get(path[1]) if kind else None
    if own is None or set(parsed) != {"value"}:
        return text
    constraint = own.constraint.value if len(path) == 3 and isinstance(own.constraint, TableOf) else own.constraint
    value = parsed["value"]
    return text if not _accepts(constraint, value) and _accepts(constraint, text) else value


def _accepts(constraint: Constraint, value: object) -> bool:
    try:
        constraint.parse(value)
    except Illegal:
        return False
    return True


def _homes(key: str) -> list[str]:
    """Full names of the knobs called `key`."""
    return [f"{name}.{key}" for name, kind in TABLES.items() if key in kind.knobs()]


def _unknown_key(kind: type[Table], key: str) -> str:
    message = f"{kind.table}.{key} is unknown."
    if homes := _homes(key):
        return f"{message} Did you mean {' or '.join(homes)}?"
    known = f"[{kind.table}] has: {', '.join(kind.knobs())}."
    return f"{message} {_did_you_mean(key, kind.knobs()) or known}"


def _unknown_table(name: str) -> str:
    message = f"[{name}] is unknown."
    if homes := _homes(name):
        return f"{message} Did you mean {' or '.join(homes)}?"
    return f"{message} {_did_you_mean(name, TABLES)} The tables of a job are: {', '.join(TABLES)}."


def _bad_override(name: str) -> str:
    example = name if "." in name else (_homes(name) or ["training.learning_rate"])[0]
    return f"the override {_show(name)} is not legal: expected table.key=value. Write for example {example}=VALUE."


# --- the reference table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnobDescription:
    """One line of the reference of all knobs; `default` is written as in TOML."""

    name: str
    default: str
    legal: str
    help: str


def describe() -> tuple[KnobDescription, ...]:
    """Every knob of a job file in the order of the tables, made from the constraints themselves."""
    return tuple(
        KnobDescription(f"{name}.{key}", _show(own.default), own.legal, own.help)
        for name, kind in TABLES.items()
        for key, own in kind.knobs().items()
    )
