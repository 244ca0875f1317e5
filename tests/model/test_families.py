"""Models of every family: untrained, each is a factorization machine; saved, loaded and exported, it is what it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfm.errors import ModelError, SettingsError
from dfm.kernels.contract import KernelSpec
from dfm.kernels.families.registry import DEFAULT, FAMILIES, family_of
from dfm.kernels.gpu.backend import source_of
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.model.export import export, hashed_inputs
from dfm.model.fm_model import FMModel
from tests.support.small_models import make_model, random_table

OTHERS = [family for family in FAMILIES if family != DEFAULT]


def of_family(model: FMModel, family: str) -> FMModel:
    """The model with the same bias, weights and factors, and what the family adds as it is before training."""
    vocabulary, old = model.vocabulary, model.table
    layout = Layout("sgd", old.layout.n_factors, family)
    ids, n_factored, n_fields = vocabulary.ids, vocabulary.n_factored, vocabulary.n_fields
    fresh = initialise(layout, ids, n_factored, InitialValues(0), n_fields)
    return dataclasses.replace(model, table=ParameterTable(layout, {**fresh.arrays, **old.arrays}))


def moved(model: FMModel) -> FMModel:
    """The model with random numbers in what its family alone has."""
    table, rng = model.table.copy(), np.random.default_rng(4)
    for block in table.layout.own:
        table.values(block)[...] = rng.normal(1.0, 0.5, len(table[block.name]))
    return dataclasses.replace(model, table=table)


@pytest.fixture(scope="module", params=OTHERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_untrained_it_scores_as_a_factorization_machine_does(family: str) -> None:
    model, rows = make_model(), random_table(200)
    np.testing.assert_allclose(
        of_family(model, family).decision_function(rows), model.decision_function(rows), atol=1e-6
    )


def test_a_model_comes_back_as_it_was_saved(family: str, tmp_path: Path) -> None:
    model, rows = moved(of_family(make_model(), family)), random_table(100)
    assert not np.allclose(model.predict(rows), make_model().predict(rows), atol=1e-3)
    model.save(str(tmp_path / "m"), rows)
    loaded = FMModel.load(str(tmp_path / "m"))
    assert loaded.table.layout == model.table.layout
    assert loaded.parameters_sha256() == model.parameters_sha256()
    assert loaded.predict(rows).tobytes() == model.predict(rows).tobytes()


def test_an_older_dfm_is_told_that_it_is_too_old(family: str, tmp_path: Path) -> None:
    of_family(make_model(), family).save(str(tmp_path / "m"))
    manifest = json.loads((tmp_path / "m" / "model.json").read_text())
    assert (manifest["format"], manifest["family"]) == (4, family)
    make_model().save(str(tmp_path / "plain"))
    assert "family" not in json.loads((tmp_path / "plain" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**manifest, "family": "of tomorrow"}))
    with pytest.raises(ModelError, match=r"family 'of tomorrow'; dfm knows fm, .* install a newer one"):
        FMModel.load(str(tmp_path / "m"))


def test_the_graph_predicts_what_the_model_does(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, rows = moved(of_family(make_model(), family)), random_table(60)
    (url,) = export(model, "onnx", str(tmp_path))
    ids, fields, values = hashed_inputs(model, rows)
    (prediction,) = ReferenceEvaluator(onnx.load(url)).run(None, {"ids": ids, "fields": fields, "values": values})
    np.testing.assert_allclose(prediction, model.predict(rows), atol=1e-6)


def test_the_parquet_table_has_what_the_family_adds(family: str, tmp_path: Path) -> None:
    model = moved(of_family(make_model(), family))
    (url,) = export(model, "parquet", str(tmp_path))
    rows = pq.read_table(url).to_pylist()
    for block in model.table.layout.own:
        found = {row["field"]: row[block.column] for row in rows if row[block.column] is not None}
        names = [entry.name for entry in model.schema.fields]
        expected = dict(zip(block.row_names(names), model.table.values(block).tolist(), strict=True))
        assert found == expected
        assert all(row["id"] == -1 for row in rows if row[block.column] is not None)


def test_text_formats_that_cannot_say_it_refuse(family: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f'family "{family}" has more; export to onnx'):
        export(of_family(make_model(), family), "xlearn", str(tmp_path))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_without_text_for_gpus_is_refused_there_with_the_reason(name: str) -> None:
    spec = KernelSpec("logistic", "adagrad", 8, family=name)
    if family_of(name).cuda is not None:
        assert "factor_gradient" in source_of(spec)
        return
    with pytest.raises(SettingsError, match=f'no code for family = "{name}", only for fm; .*backend = "numba"'):
        source_of(spec)


def test_fields_are_counted_at_the_door(family: str) -> None:
    record = family_of(family)
    record.check_fields(2)
    with pytest.raises(SettingsError, match=r"needs two fields or more.*matrix counts as one"):
        record.check_fields(1)
    with pytest.raises(SettingsError, match=f"takes up to {record.most_fields} fields"):
        record.check_fields(record.most_fields + 1)
    family_of(DEFAULT).check_fields(1)
