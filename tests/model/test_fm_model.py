"""A model scores as its definition says, comes back from its folder unchanged, and refuses a folder that was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfm.data.arrow_types import flat
from dfm.data.schema import Schema, resolve
from dfm.errors import DataError, ModelError, SettingsError
from dfm.model import golden
from dfm.model.fm_model import FMModel
from dfm.model.folder import FORMAT
from dfm.storage import files
from dfm.storage.arrays import array_bytes, parse_arrays
from tests import reference
from tests.support.small_models import EVERY_KIND, HASH_BITS, PLAIN, make_model, model_of_schema, random_table


@pytest.fixture(scope="module")
def model() -> FMModel:
    """A model with every kind of field."""
    return make_model()


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """Rows that the model did not see, some categories among them."""
    return random_table(60, seed=4)


@pytest.fixture(scope="module")
def published(model: FMModel, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("published")
    model.save(str(folder), golden=rows.slice(0, 20))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def scores_by_definition(model: FMModel, rows: pa.Table) -> np.ndarray:
    """float64 scores of the hashed rows: every entry looked up on its own, entries of one row and feature summed."""
    hashed = model.encode(rows.combine_chunks().to_batches()[0]).rows
    vocabulary, table = model.vocabulary, model.table
    row_of = {int(index): row for row, index in enumerate(vocabulary.ids)}
    machine = reference.Machine(
        float(table.bias_value), table.linear_weights.astype(float), table.factor_weights.astype(float)
    )
    n_fields, scores = len(model.schema.fields), []
    for row in range(hashed.n_rows):
        entries: dict[int, float] = {}
        for at in range(hashed.indptr[row], hashed.indptr[row + 1]):
            field = int(hashed.fields[at]) if len(hashed.fields) else at % n_fields
            feature = row_of.get(int(hashed.indices[at]), int(vocabulary.rare[field]))
            if feature >= 0:
                value = float(hashed.values[at]) if len(hashed.values) else 1.0
                entries[feature] = entries.get(feature, 0.0) + value
        scores.append(machine.score(list(entries.items())))
    return np.array(scores)


# --- scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_count", [1, 2])
@pytest.mark.parametrize("fields", [PLAIN, EVERY_KIND], ids=["plain", "every-kind"])
def test_scores_are_those_of_the_definition(fields: dict[str, Any], min_count: int, rows: pa.Table) -> None:
    model = make_model(fields, min_count=min_count)
    expected = scores_by_definition(model, rows)
    np.testing.assert_allclose(model.decision_function(rows), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict(rows), 1 / (1 + np.exp(-expected)), rtol=1e-5)


def test_regression_predicts_the_score_itself(rows: pa.Table) -> None:
    model = make_model(task="regression")
    np.testing.assert_array_equal(model.predict(rows), model.decision_function(rows))
    np.testing.assert_allclose(model.predict(rows), scores_by_definition(model, rows), rtol=1e-5, atol=1e-5)


def test_a_linear_model_is_legal(rows: pa.Table) -> None:
    model = make_model(n_factors=0)
    np.testing.assert_allclose(model.decision_function(rows), scores_by_definition(model, rows), rtol=1e-5, atol=1e-5)


def test_unseen_categories_score_like_the_rare_ones(rows: pa.Table) -> None:
    model = make_model(PLAIN)
    n_rows = rows.num_rows
    one_new = rows.set_column(1, "site", pa.array(["never seen"] * n_rows))
    other_new = rows.set_column(1, "site", pa.array([f"new {i}" for i in range(n_rows)]))
    np.testing.assert_array_equal(model.predict(one_new), model.predict(other_new))
    rare = int(model.vocabulary.rare[[entry.name for entry in model.schema.fields].index("site")])
    table = model.table.copy()
    table.linear[rare, 0] += 1.0
    shifted = dataclasses.replace(model, table=table)
    np.testing.assert_allclose(
        shifted.decision_function(one_new), model.decision_function(one_new) + 1.0, rtol=1e-5, atol=1e-5
    )


def test_unseen_categories_add_nothing_where_there_is_no_rare_bucket(rows: pa.Table) -> None:
    model = make_model({"categorical": ("site",)}, min_count=1)
    new = rows.set_column(1, "site", pa.array(["never seen"] * rows.num_rows))
    np.testing.assert_array_equal(model.decision_function(new), np.full(rows.num_rows, model.table.bias_value))


def as_lists(rows: pa.Table) -> dict[str, list[Any]]:
    return {name: rows[name].to_pylist() for name in rows.column_names}


FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "record batch": lambda rows: rows.combine_chunks().to_batches()[0],
    "pandas": lambda rows: rows.to_pandas(),
    "dict of lists": as_lists,
    "dict of Arrow arrays": lambda rows: {name: rows[name].combine_chunks() for name in rows.column_names},
    "several chunks": lambda rows: pa.concat_tables([rows.slice(0, 7), rows.slice(7, 1), rows.slice(8)]),
    "dictionaries": lambda rows: rows.set_column(1, "site", rows["site"].dictionary_encode()),
    "other order, more columns": lambda rows: rows.select(rows.column_names[::-1]).append_column("x", rows["age"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_rows_gives_the_same_predictions(model: FMModel, rows: pa.Table, form: str) -> None:
    np.testing.assert_array_equal(model.predict(FORMS[form](rows)), model.predict(rows))


def test_rows_score_alone_as_they_score_together(model: FMModel, rows: pa.Table) -> None:
    plain = make_model(PLAIN)
    for one in (model, plain):
        alone = [one.predict(as_lists(rows.slice(row, 1)))[0] for row in range(rows.num_rows)]
        np.testing.assert_array_equal(np.array(alone), one.predict(rows))


def test_batches_do_not_show(model: FMModel, rows: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.predict(rows)
    monkeypatch.setattr("dfm.model.rows._BATCH_ROWS", 7)
    np.testing.assert_array_equal(model.predict(rows), expected)


def test_no_rows_give_no_predictions(model: FMModel, rows: pa.Table) -> None:
    assert model.predict(rows.slice(0, 0)).shape == (0,)
    assert model.predict({name: [] for name in rows.column_names}).shape == (0,)


@pytest.mark.parametrize("form", ["dict of lists", "pandas", "record batch"])
def test_a_missing_column_is_named(model: FMModel, rows: pa.Table, form: str) -> None:
    with pytest.raises(DataError, match="the rows lack column 'zone', which the model needs; it needs site, zone"):
        model.predict(FORMS[form](rows.drop_columns("zone")))


@pytest.mark.parametrize("value", ["many", float("nan"), float("inf"), "1e999", "1_000"])
def test_a_number_that_is_none_is_named(rows: pa.Table, value: Any) -> None:
    one = {**as_lists(rows.slice(0, 1)), "visits": [value]}
    with pytest.raises(DataError, match=r"row 0: column 'visits': not .*; pass a finite number, or None"):
        make_model(PLAIN).predict(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visits": 3}, "column 'visits' holds one value, 3, and column 'site' a list; pass lists"),
        ({"visits": [10**400]}, "column 'visits': not finite"),
        ({"site": [object()]}, "column 'site' cannot be read"),
        ({"site": ["a", "b"]}, "column 'site' has 2 values, column 'zone' has 1"),
        ({"site": [["a"]]}, r"column 'site' holds lists .*schema\] lists"),
    ],
)
def test_values_that_are_no_column_are_named(rows: pa.Table, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_model(PLAIN).predict({**as_lists(rows.slice(0, 1)), **change})


def test_what_is_no_table_is_refused(model: FMModel) -> None:
    with pytest.raises(DataError, match="cannot score a list: pass a pyarrow Table"):
        model.predict([1, 2])


def test_a_pickled_model_is_the_same_model(model: FMModel, rows: pa.Table) -> None:
    model.predict(rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(rows), model.predict(rows))


# --- the folder -----------------------------------------------------------------------------------------


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    edit(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))


def replace_file(folder: Path, kind: str, data: bytes) -> None:
    """Put other bytes in a file's place, with a manifest that vouches for them."""

    def edit(manifest: dict[str, Any]) -> None:
        entry = manifest["files"][kind]
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        (folder / entry["name"]).write_bytes(data)

    edit_manifest(folder, edit)


def file_of(folder: Path, kind: str) -> Path:
    name: str = json.loads((folder / "model.json").read_text())["files"][kind]["name"]
    return folder / name


def edit_arrays(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    arrays, _ = parse_arrays(np.fromfile(file_of(folder, "parameters"), np.uint8))
    edit(arrays)
    replace_file(folder, "parameters", array_bytes(arrays))


def test_a_loaded_model_is_the_saved_one(model: FMModel, rows: pa.Table, published: Path) -> None:
    loaded = FMModel.load(str(published))
    np.testing.assert_array_equal(loaded.predict(rows), model.predict(rows))
    assert loaded.schema == model.schema
    assert loaded.statistics == model.statistics
    assert loaded.metadata == model.metadata
    assert loaded.parameters_sha256() == model.parameters_sha256()


def test_saving_tells_the_fingerprint_of_the_parameters(model: FMModel, tmp_path: Path) -> None:
    assert model.save(str(tmp_path)) == model.parameters_sha256()
    table = model.table.copy()
    table.factors[0, 0] += 1e-3
    assert dataclasses.replace(model, table=table).parameters_sha256() != model.parameters_sha256()


def test_a_file_url_is_a_folder_too(model: FMModel, rows: pa.Table, tmp_path: Path) -> None:
    model.save(f"file://{tmp_path}/deep/down", golden=rows)
    assert (tmp_path / "deep" / "down" / "model.json").exists()
    assert FMModel.load(f"file://{tmp_path}/deep/down").parameters_sha256() == model.parameters_sha256()


def test_an_object_store_holds_a_model_too(model: FMModel, rows: pa.Table) -> None:
    url = "memory://models/today"
    for _ in range(2):
        model.save(url, golden=rows)
    np.testing.assert_array_equal(FMModel.load(url).predict(rows), model.predict(rows))


def test_the_folder_holds_no_pickle(published: Path) -> None:
    assert sorted(path.suffix for path in published.iterdir()) == [".json", ".parquet", ".safetensors"]
    header_size = int.from_bytes(file_of(published, "parameters").read_bytes()[:8], "little")
    header = json.loads(file_of(published, "parameters").read_bytes()[8 : 8 + header_size])
    assert header.keys() >= {"ids", "bias", "linear", "factors"}
    assert file_of(published, "golden").read_bytes()[:4] == b"PAR1"


def test_loading_and_scoring_import_no_dask(published: Path) -> None:
    script = (
        "import sys, dfm.model\n"
        f"model = dfm.model.FMModel.load({str(published)!r})\n"
        "print(len(model.predict({c: [None] for c in model.schema.columns})))\n"
        "print([name for name in ('dask', 'distributed') if name in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n")[:2] == ["1", "[]"]


def test_a_folder_without_a_model_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model\.json; name the folder that `dfm train` published"):
        FMModel.load(str(tmp_path))
    with pytest.raises(ModelError, match="no model at"):
        FMModel.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [
        ("results/model/model.json", "results", "that is the output of a run; its model is {0}/results/model"),
        ("champion/v000009.json champion/v000010.json", "champion", "v000010.json in it names the model"),
        ("clicks/day=1/part-0", "clicks", "that is data; `dfm train JOB.toml --dry-run` shows its rows"),
        ("clicks/a.PARQUET", "clicks", "that is data"),
        ("clicks/a.parquet", "clicks/a.parquet", "that is data"),
        ("model/notes.txt", "model/notes.txt", "name the folder that `dfm train` published"),
    ],
)
def test_a_place_of_something_else_is_told_by_its_name(tmp_path: Path, there: str, asked: str, told: str) -> None:
    for name in there.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=re.escape(told.format(tmp_path))):
        FMModel.load(str(tmp_path / asked))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "new"}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"is no model manifest .*publish the model again"):
        FMModel.load(str(folder))


def test_a_newer_format_asks_for_a_newer_dfm(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(format=FORMAT + 1))
    with pytest.raises(ModelError, match=r"has format \d+; this dfm reads up to \d+: install a newer dfm"):
        FMModel.load(str(folder))


@pytest.mark.parametrize("kind", ["parameters", "golden"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_refused(folder: Path, kind: str, damage: str) -> None:
    path = file_of(folder, kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": path.read_bytes()[:-1], "empty": b""}[damage])
    with pytest.raises(ModelError, match="is damaged: its checksum differs; publish the model again"):
        FMModel.load(str(folder))


@pytest.mark.parametrize("kind", ["parameters", "golden"])
def test_a_missing_file_is_named(folder: Path, kind: str) -> None:
    path = file_of(folder, kind)
    path.unlink()
    with pytest.raises(ModelError, match=f"lacks {path.name}; publish it again"):
        FMModel.load(str(folder))


@pytest.mark.parametrize("name", ["../x", "/x", "..\\x", "sub/x", ".x", ".."])
def test_a_manifest_that_names_a_file_outside_is_not_followed(folder: Path, name: str) -> None:
    (folder.parent / "x").write_bytes(file_of(folder, "parameters").read_bytes())
    edit_manifest(folder, lambda manifest: manifest["files"]["parameters"].update(name=name))
    with pytest.raises(ModelError, match=r"names a file outside the model.*do not trust this model"):
        FMModel.load(str(folder))


ARRAY_EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    **{
        f"short {name}": lambda arrays, name=name: arrays.update({name: arrays[name][:-1]})
        for name in ("ids", "counts", "fields", "rare", "bias", "linear", "factors")
    },
    **{
        f"no {name}": lambda arrays, name=name: arrays.pop(name)
        for name in ("ids", "counts", "rare", "bias", "linear", "factors")
    },
    "ids of another type": lambda arrays: arrays.update(ids=arrays["ids"].astype(np.float64)),
    "ids beyond hash_bits": lambda arrays: arrays.update(ids=arrays["ids"] + np.uint32(1 << HASH_BITS)),
    "rare rows beyond the table": lambda arrays: arrays.update(rare=arrays["rare"] + 10_000),
    "ids twice": lambda arrays: arrays.update(ids=np.repeat(arrays["ids"][:1], len(arrays["ids"]))),
    "fields that are none": lambda arrays: arrays.update(fields=arrays["fields"] + np.uint16(500)),
    "rare rows below the table": lambda arrays: arrays.update(rare=arrays["rare"] - 10_000),
    "a parameter that is not finite": lambda arrays: arrays.update(bias=arrays["bias"] * np.float32(np.nan)),
    "factors of another length": lambda arrays: arrays.update(factors=arrays["factors"][:, :-1].copy()),
}


@pytest.mark.parametrize("edit", ARRAY_EDITS)
def test_arrays_that_do_not_fit_are_refused(folder: Path, edit: str) -> None:
    edit_arrays(folder, ARRAY_EDITS[edit])
    with pytest.raises(ModelError, match=r"is damaged \(.*publish it again"):
        FMModel.load(str(folder))


SQUARED = {"name": "squared", "link": "identity", "parameter": None, "sha256": ""}


def calibration(scores: list[float], logits: list[float], slope: float = 1.0) -> dict[str, Any]:
    return {"kind": "platt", "scores": scores, "logits": logits, "slope": slope}


MANIFEST_EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a range of predictions that is none": lambda manifest: manifest.update(clip=[2.0, 1.0]),
    "a calibration that falls": lambda manifest: manifest.update(calibration=calibration([0.0, 1.0], [1.0, 0.0])),
    "a calibration without knots": lambda manifest: manifest.update(calibration=calibration([], [])),
    "a calibration whose knots are no pairs": lambda manifest: manifest.update(
        calibration=calibration([0.0], [0.0, 1.0])
    ),
    "a calibration of a slope that is none": lambda manifest: manifest.update(
        calibration=calibration([0.0], [0.0], -1)
    ),
    "a calibration of numbers": lambda manifest: manifest.update(
        calibration=calibration([0.0], [0.0]), task="regression", loss=SQUARED
    ),
    "no files": lambda manifest: manifest.pop("files"),
    "no schema": lambda manifest: manifest.pop("schema"),
    "no statistics": lambda manifest: manifest.pop("statistics"),
    "more factored features than features": lambda manifest: manifest.update(n_factored=10**6),
    "negative factored features": lambda manifest: manifest.update(n_factored=-1),
    "another number of factors": lambda manifest: manifest.update(n_factors=4),
    "fewer hash bits": lambda manifest: manifest["hashing"].update(hash_bits=3),
    "as many factors as memory holds": lambda manifest: manifest.update(n_factors=2**40),
    "a file larger than its arrays": lambda manifest: manifest["files"]["parameters"].update(bytes=2**40),
    "an unknown task": lambda manifest: manifest.update(task="eval"),
    "a transform that is none": lambda manifest: manifest["schema"]["fields"][2].update(transform="x"),
    "a field twice": lambda manifest: manifest["schema"]["fields"].append(manifest["schema"]["fields"][0]),
    "boundaries that fall": lambda manifest: manifest["statistics"]["price"]["boundaries"].reverse(),
    "one field less": lambda manifest: manifest["schema"]["fields"].pop(),
    "parameters that are no arrays": lambda manifest: manifest["files"].update(parameters=manifest["files"]["golden"]),
}


@pytest.mark.parametrize("edit", MANIFEST_EDITS)
def test_a_manifest_that_does_not_fit_its_files_is_refused(folder: Path, edit: str) -> None:
    edit_manifest(folder, MANIFEST_EDITS[edit])
    with pytest.raises(ModelError, match=r"is damaged \(.*publish it again"):
        FMModel.load(str(folder))


def test_another_hash_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["hashing"].update(hash="md5"))
    with pytest.raises(ModelError, match="hashes with 'md5'; this dfm knows"):
        FMModel.load(str(folder))


GOLDEN_EDITS: dict[str, Callable[[Path], None]] = {
    "bias": lambda folder: edit_arrays(folder, lambda a: a.update(bias=a["bias"] + np.float32(0.01))),
    "linear": lambda folder: edit_arrays(folder, lambda a: a.update(linear=a["linear"][::-1].copy())),
    "factors": lambda folder: edit_arrays(folder, lambda a: a.update(factors=a["factors"] * np.float32(1.5))),
    "task": lambda folder: edit_manifest(folder, lambda m: m.update(task="regression")),
    "statistics": lambda folder: edit_manifest(folder, lambda m: m["statistics"]["age"].update(stdev=6.0)),
    "list weights": lambda folder: edit_manifest(folder, set_list_weights),
}


def set_list_weights(manifest: dict[str, Any]) -> None:
    for entry in manifest["schema"]["fields"]:
        if entry["kind"] == "list":
            entry["transform"] = "one"


@pytest.mark.parametrize("edit", GOLDEN_EDITS)
def test_golden_rows_find_a_changed_model(folder: Path, edit: str) -> None:
    FMModel.load(str(folder))
    GOLDEN_EDITS[edit](folder)
    with pytest.raises(ModelError, match="scores its golden rows differently than when it was trained"):
        FMModel.load(str(folder))
    FMModel.load(str(folder), check_golden=False)


def test_of_many_golden_rows_the_first_are_kept(model: FMModel, rows: pa.Table, tmp_path: Path) -> None:
    many = pa.concat_tables([rows] * (2 + 4_096 // len(rows)))
    model.save(str(tmp_path), golden=many)
    assert len(pq.read_table(file_of(tmp_path, "golden"))) == 4_096
    assert FMModel.load(str(tmp_path)).parameters_sha256() == model.parameters_sha256()


def test_golden_rows_that_lack_a_column_are_refused_as_other_rows_are(
    model: FMModel, rows: pa.Table, tmp_path: Path
) -> None:
    lacking = rows.drop(["zone"])
    for use in (lambda: model.save(str(tmp_path / "model"), golden=lacking), lambda: model.check_golden(lacking)):
        with pytest.raises(DataError, match="the rows lack column 'zone', which the model needs; it needs site, zone"):
            use()
    assert not (tmp_path / "model").exists()


def test_golden_rows_may_hold_structs_as_other_rows_do(tmp_path: Path) -> None:
    rows = pa.table({"user": [{"geo": {"cc": "de"}}, {"geo": {"cc": "fr"}}, None], "label": [0, 1, 1]})
    schema = resolve(Schema(categorical=("user.geo.cc",)), flat(rows).column_names)
    model = model_of_schema(schema, flat(rows))
    model.check_golden(rows)
    model.save(str(tmp_path), golden=rows)
    assert FMModel.load(str(tmp_path)).predict(rows).tolist() == model.predict(rows).tolist()


@pytest.mark.parametrize("missing", ["-1", "0.5", "3"])
def test_golden_rows_may_hold_numbers_whose_text_means_a_missing_value(missing: str, tmp_path: Path) -> None:
    rows = pa.table({"visits": [-1, 3, -1, 3], "zone": [3, -1, 3, 4], "price": [0.5, 1.5, -1.0, 3.0]})
    settings = Schema(numeric=("visits", "price"), categorical=("zone",), missing=(missing,))
    model = model_of_schema(resolve(settings, [*rows.column_names, "label"]), rows)
    model.save(str(tmp_path), golden=rows)
    assert FMModel.load(str(tmp_path)).predict(rows).tolist() == model.predict(rows).tolist()


def test_rows_that_no_load_would_take_do_not_become_golden(
    model: FMModel, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "texts_of_numbers", lambda column: pa.nulls(len(column), pa.string()))
    with pytest.raises(ModelError, match=r"scores these golden rows differently \(by up to 0\.\d+\) .*; save it with"):
        model.save(str(tmp_path / "model"), golden=rows)
    assert not (tmp_path / "model").exists()


def test_golden_rows_that_no_python_can_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = pa.table({"site": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())})
    model = model_of_schema(resolve(Schema(categorical=("site",)), ["label", "site"]), pa.table({"site": ["a", "b"]}))
    with pytest.raises(ModelError, match=r"do not come back from Parquet \(.*\); save the model with others, or none"):
        model.save(str(tmp_path / "model"), golden=rows)
    assert not (tmp_path / "model").exists()


def test_golden_rows_that_are_no_table_are_refused_before_anything_is_written(
    model: FMModel, rows: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"golden rows are a DataFrame; pass a pyarrow.Table"):
        model.save(str(tmp_path / "model"), golden=rows.to_pandas())
    assert not (tmp_path / "model").exists()


# --- publication ----------------------------------------------------------------------------------------


def changed(model: FMModel, shift: float) -> FMModel:
    table = model.table.copy()
    table.bias[0] += np.float32(shift)
    return dataclasses.replace(model, table=table)


def test_a_reader_of_the_old_manifest_still_finds_its_files(model: FMModel, rows: pa.Table, tmp_path: Path) -> None:
    generations = [changed(model, shift) for shift in (0.0, 1.0, 2.0)]
    manifests = []
    for generation in generations[:2]:
        generation.save(str(tmp_path), golden=rows)
        manifests.append((tmp_path / "model.json").read_text())
    for text, generation in zip(manifests, generations, strict=False):
        (tmp_path / "model.json").write_text(text)
        assert FMModel.load(str(tmp_path)).parameters_sha256() == generation.parameters_sha256()
    generations[2].save(str(tmp_path), golden=rows)
    names = {entry["name"] for text in manifests[1:] for entry in json.loads(text)["files"].values()}
    names |= {entry["name"] for entry in json.loads((tmp_path / "model.json").read_text())["files"].values()}
    assert {path.name for path in tmp_path.iterdir()} == names | {"model.json"}
    assert len(names) == 4


def test_publishing_the_same_model_again_keeps_its_files(model: FMModel, rows: pa.Table, tmp_path: Path) -> None:
    for _ in range(3):
        model.save(str(tmp_path), golden=rows)
    assert len(list(tmp_path.iterdir())) == 3
    assert FMModel.load(str(tmp_path)).parameters_sha256() == model.parameters_sha256()


def test_a_publication_that_breaks_off_leaves_the_old_model(
    model: FMModel, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(str(tmp_path), golden=rows)
    write_bytes = files.write_bytes

    def break_off_at_the_manifest(url: str, data: bytes, options: files.Options = None) -> None:
        if url.endswith("model.json"):
            raise OSError("disk full")
        write_bytes(url, data, options)

    monkeypatch.setattr(files, "write_bytes", break_off_at_the_manifest)
    with pytest.raises(OSError, match="disk full"):
        changed(model, 1.0).save(str(tmp_path), golden=rows)
    assert FMModel.load(str(tmp_path)).parameters_sha256() == model.parameters_sha256()


def test_files_that_are_not_the_models_stay(model: FMModel, tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("mine")
    for shift in (0.0, 1.0, 2.0):
        changed(model, shift).save(str(tmp_path))
    assert (tmp_path / "README.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("parameters-*"))) == 2
