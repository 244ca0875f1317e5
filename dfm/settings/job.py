"""Every knob of a job: one frozen record per TOML table, the constraint of each knob beside its default.

Constraints are data on the fields: the error messages, the tests of illegal values and the reference table
(`describe`) are all made from them, so none of the three can drift from what is enforced.

A job comes in through `load_job`: a TOML file (or a dict of tables) plus overrides `table.key=value`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm.errors import SettingsError
from dfm.kernels.blocks import MAX_ROW_FACTORS
from dfm.kernels.families.registry import DEFAULT as DEFAULT_FAMILY
from dfm.kernels.losses import DEFAULT_LOSSES, LOSSES, is_paired
from dfm.settings.arguments import texts
from dfm.settings.constraints import Constraint, Illegal, ListOf, TableOf, did_you_mean, show
from dfm.settings.tables import (
    MCMC,
    SGD,
    TABLES,
    ClusterSettings,
    DataSettings,
    KubernetesSettings,
    ModelSettings,
    OutputSettings,
    Schema,
    SearchSettings,
    TrainingSettings,
    tables_with,
)

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
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        if self.data.validation_from and not self.schema.time:
            raise SettingsError(
                f"data.validation_from = {show(self.data.validation_from)} needs "
                "schema.time: rows are split by that column. "
                "Name it in schema.time, or give data.validation its own files."
            )
        self._check_negative_rate()
        self._check_group()
        self._check_stop_on()
        if self.training.is_exact:
            self._check_exact()
        if self.model.calibration != "none" and not self._predicts_probabilities:
            raise SettingsError(
                f"model.calibration = {show(self.model.calibration)} needs a model of probabilities: task "
                f"{show(self.model.task)} with loss {show(self.model.loss)} has none. Leave it out."
            )
        if self.schema.label_positive and self.model.task != "classification":
            raise SettingsError(
                f"schema.label_positive = {show(self.schema.label_positive)} needs "
                f'model.task = "classification": labels of "{self.model.task}" are numbers. '
                "Leave label_positive out."
            )

    def _check_exact(self) -> None:
        """SettingsError where the model, or its rows, are not for an exact solver."""
        model, own = self.model, self.model.knobs()
        for table, key, legal in (
            ("model", "family", (DEFAULT_FAMILY,)),
            ("model", "loss", ("auto", DEFAULT_LOSSES[model.task])),
            *(("model", key, (own[key].default,)) for key in ("n_models", "choose", "calibration")),
            *(("data", key, (1.0,)) for key in ("negative_rate", "sample_negatives")),
        ):
            value = getattr(getattr(self, table), key)
            if value not in legal:
                raise SettingsError(
                    f"{table}.{key} = {show(value)} does not go with training.solver = {show(self.training.solver)}, "
                    f"which takes {' or '.join(map(show, legal))}. Leave it out, or choose solver = {show(SGD)}."
                )
        if self.training.solver == MCMC and self.training.draws * model.n_factors > MAX_ROW_FACTORS:
            raise SettingsError(
                f"training.draws = {self.training.draws} of model.n_factors = {model.n_factors} make "
                f"{self.training.draws * model.n_factors} numbers of a feature, and {MAX_ROW_FACTORS} is the most. "
                "Lower one of them."
            )

    def _check_group(self) -> None:
        if self.schema.group and self.model.task != "classification":
            raise SettingsError(
                f"schema.group = {show(self.schema.group)} is for the order of clicked rows before others within a "
                f"group; model.task = {show(self.model.task)} has none. Leave it out."
            )
        if is_paired(self.model.loss) and not self.schema.group:
            raise SettingsError(
                f"model.loss = {show(self.model.loss)} is of pairs of rows and needs schema.group: the column of a "
                "user, query or session within whose rows a clicked one is to come before the others. Name it."
            )
        if is_paired(self.model.loss) and self.training.backend not in ("auto", "numba"):
            raise SettingsError(
                f"model.loss = {show(self.model.loss)} does not go with training.backend = "
                f"{show(self.training.backend)}: GPUs have no code for pairs of rows. Leave backend out."
            )
        if self.training.stop_on == "group_auc" and not self.schema.group:
            raise SettingsError(
                'training.stop_on = "group_auc" needs schema.group: the column of a user, query or session within '
                "whose rows the order counts. Name it."
            )

    def _check_stop_on(self) -> None:
        metric = self.training.stop_on
        if metric == "auto" or (metric in ("auc", "group_auc") and self.model.task == "classification"):
            return
        if not self._predicts_probabilities:
            raise SettingsError(
                f"training.stop_on = {show(metric)} is no metric of task {show(self.model.task)} with loss "
                f'{show(self.model.loss)}. Leave it out, which compares by the loss, or use "auc" or "group_auc" of a '
                "classification."
            )

    @property
    def _predicts_probabilities(self) -> bool:
        """Whether predictions are probabilities for sure; of a user's function nothing is known."""
        loss = LOSSES.get(self.model.loss)
        is_sigmoid = self.model.loss == "auto" or (loss is not None and loss.link == "sigmoid")
        return self.model.task == "classification" and is_sigmoid

    def _check_negative_rate(self) -> None:
        rates = {key: getattr(self.data, key) for key in ("negative_rate", "sample_negatives")}
        given = [key for key, rate in rates.items() if rate != 1.0]
        for key in given:
            if not self._predicts_probabilities:
                raise SettingsError(
                    f"data.{key} = {rates[key]:g} needs a model of probabilities, whose logits it lowers: task "
                    f"{show(self.model.task)} with loss {show(self.model.loss)} has none. Leave it out."
                )
            if self.schema.weight:
                raise SettingsError(
                    f"data.{key} = {rates[key]:g} says what a negative row stands for, and schema.weight = "
                    f"{show(self.schema.weight)} may do so already. Leave one of them out."
                )
        if len(given) > 1:
            raise SettingsError(
                f"data.negative_rate = {rates['negative_rate']:g} says that negative rows were left out, and "
                f"data.sample_negatives = {rates['sample_negatives']:g} leaves out more, of which rows to validate on "
                "would know nothing. Leave one of them out."
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
        """The tables that determine the parameters (data, schema, model, training), JSON-ready, without secrets.

        Knobs that came later are there only where they are not at their defaults.
        """
        tables = self.to_dict()
        if not self.training.warm_start:  # nothing reads it; jobs stay what they were before its default was another
            tables["training"]["warm_start_decay"] = 0.1
        return {
            name: {
                key: value
                for key, value in tables[name].items()
                if not (own := TABLES[name].knobs()[key]).is_late or value != _as_json(own.default)
            }
            for name in _DETERMINES_PARAMETERS
        }

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


def differing(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The knobs that are not at their defaults, of the tables of a job as `Job.to_dict` gives them."""
    found: dict[str, dict[str, Any]] = {}
    for name, defaults in Job.from_dict({}).to_dict().items():
        others = {key: value for key, value in tables.get(name, {}).items() if value != defaults.get(key)}
        if others:
            found[name] = others
    return found


def _as_json(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


# --- from file and command line --------------------------------------------------------------------------


def load_job(source: str | os.PathLike[str] | Mapping[str, Any] | Job, overrides: str | Sequence[str] = ()) -> Job:
    """The checked job of a TOML file, a dict of tables or another job, after a `table.key=value` override, or several.

    A value is read as TOML; where that is no TOML, or not what the knob takes, its text is taken as a string, unless a
    list was meant, or a number (.05). Relative paths stay as they are written.
    """
    if isinstance(source, Job) and not overrides:  # checked when it was made
        return source
    return Job.from_dict(read_tables(source, overrides))


def read_tables(
    source: str | os.PathLike[str] | Mapping[str, Any] | Job, overrides: str | Sequence[str] = ()
) -> dict[str, Any]:
    """The tables that `load_job` makes a job of, as they are written and not yet checked."""
    tables = _read_tables(source)
    for override in texts("overrides", overrides):
        _apply_override(tables, override)
    return tables


def _read_tables(source: str | os.PathLike[str] | Mapping[str, Any] | Job) -> dict[str, Any]:
    if isinstance(source, Job):
        return source.to_dict(secrets=True)
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    try:
        return tomllib.loads(Path(source).read_text(encoding="utf-8-sig"))
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
    """The value that a text stands for, at table and key (and key of a table knob): TOML, a number as Python writes it
    where no text is wanted, or the text itself. A list stays one where the knob takes lists, whatever is in it.
    SettingsError where it is no TOML.
    """
    constraint = _constraint_at(path)
    takes_lists = isinstance(constraint, ListOf)
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = {}
    if set(parsed) != {"value"}:
        if takes_lists and (text.strip()[:1], text.strip()[-1:]) == ("[", "]"):
            raise SettingsError(_no_list(".".join(path), text))
        number = _number(text)  # .05, 1. and 05 are none of TOML
        return text if number is None or constraint is None or _accepts(constraint, text) else number
    value = parsed["value"]
    if takes_lists and isinstance(value, list):
        return value
    is_meant = constraint is not None and (_accepts(constraint, value) or not _accepts(constraint, text))
    return value if is_meant else text


def _number(text: str) -> int | float | None:
    """The finite number that Python reads; None where it reads none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            return number if math.isfinite(number) else None
    return None


def _constraint_at(path: Sequence[str]) -> Constraint | None:
    """The constraint of a knob, or of the values of a table knob; None where there is no such knob."""
    kind = TABLES.get(path[0])
    own = kind.knobs().get(path[1]) if kind else None
    if own is None:
        return None
    return own.constraint.value if len(path) == 3 and isinstance(own.constraint, TableOf) else own.constraint


def _accepts(constraint: Constraint, value: object) -> bool:
    try:
        constraint.parse(value)
    except Illegal:
        return False
    return True


def _unknown_table(name: str) -> str:
    message = f"[{name}] is unknown."
    if homes := tables_with(name):
        return f"{message} Did you mean {' or '.join(homes)}?"
    return f"{message} {did_you_mean(name, TABLES)} The tables of a job are: {', '.join(TABLES)}."


def _bad_override(name: str) -> str:
    example = name if "." in name else (tables_with(name) or ["training.learning_rate"])[0]
    return f"the override {show(name)} is not legal: expected table.key=value. Write for example {example}=VALUE."


def _no_list(name: str, text: str) -> str:
    example = f'{name}=["a", "b"]'
    return f"{name} = {show(text)} is no list of TOML: texts in it stand in quotes. In a shell write '{example}'."


# --- the reference table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnobDescription:
    """One line of the reference of all knobs; `default` is written as in TOML."""

    name: str
    default: str
    legal: str
    help: str


MATTER_FIRST = (
    "data.train",
    "data.validation_from",
    "schema.label",
    "schema.categorical",
    "schema.numeric",
    "model.n_factors",
    "model.hash_bits",
    "training.learning_rate",
    "training.n_epochs",
    "training.l2_factors",
    "training.n_replicas",
    "cluster.workers",
    "output.directory",
)
"""Names of the knobs that a first job sets, or that change a model most."""


def describe() -> tuple[KnobDescription, ...]:
    """Every knob of a job file in the order of the tables, made from the constraints themselves."""
    return tuple(
        KnobDescription(f"{name}.{key}", show(own.default), own.legal, own.help)
        for name, kind in TABLES.items()
        for key, own in kind.knobs().items()
    )
