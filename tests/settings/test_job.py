"""A job is checked at the door: every refusal names the value, what would be legal and the way out."""

from __future__ import annotations

import datetime
import json
import pickle

import pytest

from dfm.errors import ClusterError, DataError, DfmError, DivergenceError, ModelError, SettingsError
from dfm.settings.constraints import (
    AnyOf,
    Constraint,
    Factory,
    Flag,
    Knob,
    ListOf,
    Moment,
    Number,
    Options,
    Size,
    TableOf,
    Text,
    parse_bytes,
)
from dfm.settings.job import Job, describe, load_job
from dfm.settings.pods import Names, Pattern, Structure
from dfm.settings.tables import TABLES, DataSettings, TrainingSettings

ALL_KNOBS = [
    pytest.param(name, key, knob, id=f"{name}.{key}")
    for name, kind in TABLES.items()
    for key, knob in kind.knobs().items()
]
JOB_FILE = """
[data]
train = ["s3://clicks/day=*/*.parquet"]
validation_from = 2026-11-20
storage_options = { profile = "SECRET-PROFILE", anon = false, timeout = 5 }

[schema]
time = "day"
categorical = ["C*"]
numeric = ["I*"]
crosses = [["C1", "C2"]]
[schema.transforms]
I5 = "quantile"

[training]
learning_rate = 1
averages_per_epoch = 16

[output]
directory = "results"
"""


def illegal_values(constraint: Constraint) -> list[object]:
    """Values that the constraint must refuse, derived from the constraint itself."""
    if isinstance(constraint, Number):
        below = constraint.low if constraint.open_low else constraint.low - 1
        above = constraint.high if constraint.open_high else constraint.high + 1
        wrong = [below, above, float("nan"), float("inf"), "three", True, None, [1]]
        return [*wrong, 2.5] if constraint.integer else wrong
    if isinstance(constraint, Options):
        return [constraint.words[0] + "x", "", 1, True, None, [constraint.words[0]]]
    if isinstance(constraint, Flag):
        return ["true", 1, 0, None]
    if isinstance(constraint, Size):
        return ["4XB", "4", "-4GB", "", 4, True]
    if isinstance(constraint, Text):
        return [3, True, None, ["a"]] + ([] if constraint.may_be_empty else [""])
    if isinstance(constraint, Factory):
        return ["module", "module:", "a b:c", 3, None, ["a:b"]]
    if isinstance(constraint, Moment):
        return [True, 1.5, None, ["a"]]
    if isinstance(constraint, AnyOf):
        candidates = [value for choice in constraint.choices for value in illegal_values(choice)]
        refused = [set(map(repr, illegal_values(choice))) for choice in constraint.choices]
        return [value for value in candidates if all(repr(value) in values for values in refused)]
    if isinstance(constraint, ListOf):
        lone = [] if constraint.lone else ["a"]
        short = [["a"] * (constraint.at_least - 1)] if constraint.at_least else []
        is_number = isinstance(constraint.item, Number)
        of_items = [[value] for value in illegal_values(constraint.item)] if is_number else [[3]]
        return [3, {"a": 1}, None, *of_items, *lone, *short]
    if isinstance(constraint, TableOf):
        return ["a", ["a"], 3, True, None, {"a": None}]
    if isinstance(constraint, Pattern):
        return ["two words", "a_b", 3, True, None, ["a"]]
    if isinstance(constraint, Names):
        return ["a", ["a"], 3, {"two words": "x"}, {"a": None}]
    if isinstance(constraint, Structure):
        return ["a", ["a"], 3, {"no key of it": {}}, {constraint.keys[0]: {"a": None}}]
    raise AssertionError(constraint)


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB_FILE, encoding="utf-8")
    return path


@pytest.mark.parametrize(("table", "key", "knob"), ALL_KNOBS)
def test_illegal_values_are_refused_with_value_range_and_default(table: str, key: str, knob: Knob):
    values = illegal_values(knob.constraint)
    assert values
    for value in values:
        with pytest.raises(SettingsError) as refusal:
            TABLES[table].from_dict({key: value})
        message = str(refusal.value)
        assert message.startswith(f"{table}.{key} = ")
        assert knob.legal in message
        assert "Leave it out for the default" in message


@pytest.mark.parametrize(("table", "key", "knob"), ALL_KNOBS)
def test_every_default_is_legal_and_in_stored_form(table: str, key: str, knob: Knob):
    parsed = knob.constraint.parse(knob.default)
    assert parsed == knob.default
    assert type(parsed) is type(knob.default)


def test_the_reference_table_has_every_knob_once():
    rows = describe()
    assert [row.name for row in rows] == [f"{table}.{key}" for table, kind in TABLES.items() for key in kind.knobs()]
    assert all(row.help and row.legal for row in rows)


def test_a_job_file_is_read(job_file):
    job = load_job(job_file)
    assert job.data.train == ("s3://clicks/day=*/*.parquet",)
    assert job.data.validation_from == "2026-11-20"
    assert job.schema.crosses == (("C1", "C2"),)
    assert job.schema.transforms == {"I5": "quantile"}
    assert (job.training.learning_rate, type(job.training.learning_rate)) == (1.0, float)
    assert job.training.averages_per_epoch == 16
    assert job.model == Job().model
    job.require_training()


@pytest.mark.parametrize(
    ("override", "table", "key", "expected"),
    [
        ("training.learning_rate=0.1", "training", "learning_rate", 0.1),
        ("training.learning_rate=.05", "training", "learning_rate", 0.05),
        ("training.learning_rate=1.", "training", "learning_rate", 1.0),
        ("training.n_epochs=05", "training", "n_epochs", 5),
        ("training.l2_groups.C1=.5", "training", "l2_groups", {"C1": 0.5}),
        ("training.optimizer=ftrl", "training", "optimizer", "ftrl"),
        ("data.train=/logs/day=1/*.parquet", "data", "train", ("/logs/day=1/*.parquet",)),
        ('data.train=["a", "b"]', "data", "train", ("a", "b")),
        ("data.train=", "data", "train", ()),
        ("data.train=logs/day=[12]", "data", "train", ("logs/day=[12]",)),
        ("data.train=[ab].parquet", "data", "train", ("[ab].parquet",)),
        ("schema.label_positive=1", "schema", "label_positive", ("1",)),
        ("schema.time=[1]", "schema", "time", "[1]"),
        ("data.validation_from=2026-11-21", "data", "validation_from", "2026-11-21"),
        ("output.directory=2026", "output", "directory", "2026"),
        ("output.directory=.05", "output", "directory", ".05"),
        ("schema.label_positive=05", "schema", "label_positive", ("05",)),
        ("output.directory=a=b", "output", "directory", "a=b"),
        ("cluster.dashboard=true", "cluster", "dashboard", True),
        ("schema.transforms.a.b=raw", "schema", "transforms", {"I5": "quantile", "a.b": "raw"}),
        ("data.storage_options.profile=12", "data", "storage_options", {"profile": 12, "anon": False, "timeout": 5}),
        ('output.directory="x"\nmore = 1', "output", "directory", '"x"\nmore = 1'),
    ],
)
def test_an_override_is_toml_or_else_a_bare_string(job_file, override, table, key, expected):
    job = load_job(job_file, [override])
    assert getattr(getattr(job, table), key) == expected
    assert job.output.overwrite


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('schema.label_positive=["d1", 2]', r'label_positive = \["d1", 2\] is not legal: expected a string'),
        ("schema.label_positive=[1]", r"label_positive = \[1\] is not legal: expected a string"),
        ("schema.categorical=[user]", r"""= "\[user\]" is no list of TOML: .* 'schema.categorical=\["a", "b"\]'"""),
        ("schema.crosses=[[user,item]]", r'crosses = "\[\[user,item\]\]" is no list of TOML'),
        ("data.train= [ab] ", r"is no list of TOML"),
        ('schema.lists=["a"]\nmore = ["b"]', r"is no list of TOML"),
    ],
)  # fmt: skip
def test_a_list_with_a_wrong_item_is_not_taken_for_a_text(override, said):
    with pytest.raises(SettingsError, match=said):
        load_job({}, [override])


def test_a_number_out_of_range_is_not_advised_to_be_a_list():
    with pytest.raises(SettingsError, match=r'l2_groups = \{"u": -1\} is not legal: .* 0 or more\. Leave it out'):
        load_job({"training": {"l2_groups": {"u": -1}}})


def test_the_last_override_wins_and_the_callers_dict_is_left_alone():
    tables = {"training": {"learning_rate": 0.2}}
    job = load_job(tables, ["training.learning_rate=0.3", "training.learning_rate=0.4", "model.seed=3"])
    assert (job.training.learning_rate, job.model.seed) == (0.4, 3)
    assert tables == {"training": {"learning_rate": 0.2}}
    assert load_job(job, ["model.seed=4"]).training.learning_rate == 0.4


@pytest.mark.parametrize(
    ("tables", "overrides", "said"),
    [
        ({"training": {"lerning_rate": 1}}, [], 'Did you mean "learning_rate"'),
        ({"model": {"learning_rate": 1}}, [], "Did you mean training.learning_rate"),
        ({"model": {"zzz": 1}}, [], "[model] has: task, loss"),
        ({"trainin": {}}, [], 'Did you mean "training"'),
        ({"n_factors": 8}, [], "Did you mean model.n_factors"),
        ({"training": 3}, [], "Write its keys below [training]"),
        ({}, ["training.lerning_rate=1"], 'Did you mean "learning_rate"'),
        ({}, ["learning_rate=1"], "Write for example training.learning_rate=VALUE"),
        ({}, ["training.learning_rate"], "Write for example training.learning_rate=VALUE"),
        ({"training": {"optimizer": "adagrd"}}, [], 'Did you mean "adagrad"'),
        ({"training": {"learning_rate": "0.1"}}, [], "without quotes"),
        ({"cluster": {"dashboard": "true"}}, [], "without quotes"),
        ({}, ["training.learning_rate=-.5"], "learning_rate = -0.5 is not legal"),
        ({"schema": {"crosses": ["a", "b"]}}, [], "Put it in [brackets]"),
    ],
)
def test_a_mistake_is_answered_with_the_nearest_legal_thing(tables, overrides, said):
    with pytest.raises(SettingsError) as refusal:
        load_job(tables, overrides)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"training": {"l1_linear": 0.1}}, 'needs training.optimizer = "ftrl"'),
        ({"training": {"ftrl_beta": 2, "optimizer": "sgd"}}, 'needs training.optimizer = "ftrl"'),
        ({"training": {"accumulators": "sum", "optimizer": "sgd"}}, 'needs training.optimizer = "adagrad" or '),
        ({"training": {"initial_accumulator": 3, "optimizer": "sgd"}}, 'needs training.optimizer = "adagrad" or '),
        ({"training": {"initial_accumulator": 3, "optimizer": "adam"}}, 'needs training.optimizer = "adagrad" or '),
        ({"training": {"precision": 7}}, 'needs training.merge = "precision"; only that reads it, and merge is "auto"'),
        ({"training": {"wire_dtype": "bfloat16", "optimizer": "adam"}}, "could become negative"),
        ({"training": {"wire_dtype": "bfloat16", "n_replicas": 1}}, "nothing is averaged"),
        (
            {"data": {"validation": "v", "validation_from": "3"}, "schema": {"time": "t"}},
            "no effect beside data.validation",
        ),
        ({"data": {"validation_from": "3"}}, "needs schema.time"),
        ({"schema": {"label_positive": "yes"}, "model": {"task": "regression"}}, "needs model.task"),
        ({"training": {"stop_on": "log_loss"}, "model": {"task": "regression"}}, "is no metric of task .regression."),
        (
            {"training": {"stop_on": "log_loss"}, "model": {"loss": "hinge"}},
            "is no metric of task .* with loss .hinge.",
        ),
        ({"schema": {"label": "a", "weight": "a"}}, "schema.label names that column too"),
        ({"schema": {"weight": "a", "time": "a"}}, "schema.weight names that column too"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_the_reason(tables, said):
    with pytest.raises(SettingsError, match=said):
        Job.from_dict(tables)


def test_ftrl_options_are_accepted_with_ftrl():
    training = TrainingSettings(optimizer="ftrl", l1_linear=0.1, ftrl_beta=2)
    assert (training.l1_linear, training.ftrl_beta) == (0.1, 2.0)


def test_direct_construction_is_checked_like_a_file(tmp_path):
    with pytest.raises(SettingsError, match=r"training\.n_replicas = 0"):
        TrainingSettings(n_replicas=0)
    assert DataSettings(train=tmp_path).train == (str(tmp_path),)
    assert DataSettings(validation_from=datetime.date(2026, 11, 20)).validation_from == "2026-11-20"


@pytest.mark.parametrize("table", ["data", "output"])
def test_training_needs_data_and_a_place_for_the_model(job_file, table):
    tables = load_job(job_file).to_dict()
    Job.from_dict(tables).require_training()
    del tables[table]
    with pytest.raises(SettingsError, match=r"is empty: .*--set"):
        Job.from_dict(tables).require_training()


def test_a_job_survives_json_and_pickle(job_file):
    job = load_job(job_file)
    assert Job.from_dict(json.loads(json.dumps(job.to_dict(secrets=True)))) == job
    assert pickle.loads(pickle.dumps(job)) == job


def test_secrets_appear_in_no_text_and_in_no_stored_job(job_file):
    job = load_job(job_file)
    assert job.data.storage_options["profile"] == "SECRET-PROFILE"
    assert "SECRET" not in repr(job) + json.dumps(job.to_dict())
    for value in ("SECRET", {"profile": ["SECRET"]}):
        with pytest.raises(SettingsError) as refusal:
            DataSettings.from_dict({"storage_options": value})
        assert "SECRET" not in str(refusal.value)
    with pytest.raises(SettingsError) as refusal:
        load_job({}, ["data.storage_options=SECRET"])
    assert "SECRET" not in str(refusal.value)


def test_the_fingerprint_follows_what_determines_the_parameters_and_nothing_else(job_file):
    job = load_job(job_file)
    same = ["cluster.workers=7", "output.directory=elsewhere", "data.storage_options.profile=other"]
    other = ["data.train=x", "schema.weight=w", "model.seed=1", "training.n_replicas=3"]
    assert load_job(job_file, same).fingerprint() == job.fingerprint()
    assert load_job(job, ["training.learning_rate=1.0"]).fingerprint() == job.fingerprint()
    prints = {load_job(job_file, [override]).fingerprint() for override in other}
    assert len(prints | {job.fingerprint()}) == len(other) + 1


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nothing\.toml.*No such file"):
        load_job(tmp_path / "nothing.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"[data\n", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(SettingsError, match=r"broken\.toml is not TOML"):
            load_job(broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0B", 0),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("4GB", 4 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_decimal_or_binary_as_written(text, expected):
    assert parse_bytes(text) == expected


def test_every_error_has_its_own_exit_code():
    kinds = [DfmError, SettingsError, DataError, ClusterError, DivergenceError, ModelError]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5, 6]
