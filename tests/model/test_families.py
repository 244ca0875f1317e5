"""Models of every family: untrained, each is a factorization machine; saved, loaded and exported, it is what it was."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
from collections import defaultdict
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
from dfm.model.folder import read_manifest
from dfm.model.inspection import describe_model, strengths_of
from dfm.model.report import report_training, write_findings
from dfm.pages import page as pages
from dfm.settings.groups import groups_of
from tests.support.small_models import HASH_BITS, make_model, random_table, turned

OTHERS = [family for family in FAMILIES if family != DEFAULT]


def of_family(model: FMModel, family: str) -> FMModel:
    """The model with the same bias, weights and factors, the latter for each group of fields that the family has, zeros
    for terms of more features, and what it adds as it is before training.
    """
    vocabulary, old = model.vocabulary, model.table
    names = [entry.name for entry in model.schema.fields]
    groups = groups_of(3, names) if family_of(family).has_groups else ()
    layout = Layout("sgd", old.layout.n_factors, family, groups)
    ids, n_factored, n_fields = vocabulary.ids, vocabulary.n_factored, vocabulary.n_fields
    fresh = initialise(layout, ids, n_factored, InitialValues(0), n_fields)
    copies = np.tile(old.factor_weights, len(layout.degrees))
    fresh.factor_weights[...] = np.where(np.repeat(np.array(layout.degrees) == 2, layout.n_factors), copies, 0.0)
    others = {name: array for name, array in old.arrays.items() if name != "factors"}
    return dataclasses.replace(model, table=ParameterTable(layout, {**fresh.arrays, **others}))


def moved(model: FMModel) -> FMModel:
    """The model with random numbers in what its family alone has."""
    table, rng = model.table.copy(), np.random.default_rng(4)
    for block in table.layout.own:
        table.values(block)[...] = rng.normal(1.0, 0.5, len(table[block.name]))
    if table.layout.groups or table.layout.order:
        table.factor_weights[...] += rng.normal(0.0, 0.5, table.factor_weights.shape)
    return dataclasses.replace(model, table=table)


@pytest.fixture(scope="module", params=OTHERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("family", [name for name in OTHERS if family_of(name).sides])
def test_untrained_it_scores_as_a_factorization_machine_does(family: str) -> None:
    model, rows = make_model(), random_table(200)
    np.testing.assert_allclose(
        of_family(model, family).decision_function(rows), model.decision_function(rows), atol=2e-6
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
    assert (manifest["format"], manifest["family"]) == (7 if "groups" in manifest else 4, family)
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
    for kind in {"xlearn", "libfm"} - {*family_of(family).texts}:
        with pytest.raises(SettingsError, match=f'family "{family}" has more; export to onnx'):
            export(of_family(make_model(), family), kind, str(tmp_path))


@pytest.mark.parametrize("hash_bits", [HASH_BITS, 6])
def test_field_aware_text_scores_as_the_model_by_the_rules_of_xlearn(hash_bits: int, tmp_path: Path) -> None:
    """w0 + Σ w_i x_i + Σ_{i<j} <v_{i,f(j)}, v_{j,f(i)}> x_i x_j of libffm lines field:index:value, also where values of
    several columns share an index."""
    model, rows = moved(of_family(make_model(hash_bits=hash_bits), "ffm")), random_table(40)
    text, listed = export(model, "xlearn", str(tmp_path))
    read = dict(line.split(": ") for line in Path(text).read_text().splitlines())
    numbers = {name: np.array(values.split(), float) for name, values in read.items()}
    group_of = [int(line) for line in Path(listed).read_text().splitlines()]
    scores = []
    for ids, fields, values in zip(*hashed_inputs(model, rows), strict=True):
        line: dict[tuple[int, int], float] = defaultdict(float)
        for index, field, x in zip(ids, fields, values, strict=True):
            line[group_of[field], index] += x if f"i_{index}" in numbers else 0.0
        entries = [(f, i, x) for (f, i), x in line.items() if x]
        total = numbers["bias"][0] + sum(numbers[f"i_{index}"][0] * x for _, index, x in entries)
        for (f, i, x_i), (g, j, x_j) in itertools.combinations(entries, 2):
            total += numbers[f"v_{i}_{g}"] @ numbers[f"v_{j}_{f}"] * x_i * x_j
        scores.append(total)
    np.testing.assert_allclose(scores, model.decision_function(rows), rtol=1e-5, atol=1e-5)


def test_the_graph_of_a_crowded_field_aware_model_predicts_what_it_does(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import onnx
    from onnx.reference import ReferenceEvaluator

    model, rows = moved(of_family(make_model(hash_bits=6), "ffm")), random_table(40)
    (url,) = export(model, "onnx", str(tmp_path))
    feeds = dict(zip(("ids", "fields", "values"), hashed_inputs(model, rows), strict=True))
    (prediction,) = ReferenceEvaluator(onnx.load(url)).run(None, feeds)
    np.testing.assert_allclose(prediction, model.predict(rows), atol=1e-6)


def test_a_manifest_whose_groups_are_none_is_damaged(tmp_path: Path) -> None:
    of_family(make_model(), "ffm").save(str(tmp_path))
    manifest = json.loads((tmp_path / "model.json").read_text())
    n_fields = len(manifest["schema"]["fields"])
    assert manifest["groups"] == [0, 0, 0, 1, 1, 1, 2, 2]
    for groups in ([0, 1], [0] * (n_fields - 1) + [2], [0.5] * n_fields, "0"):
        (tmp_path / "model.json").write_text(json.dumps({**manifest, "groups": groups}))
        with pytest.raises(ModelError, match="damaged"):
            FMModel.load(str(tmp_path))


@pytest.mark.parametrize("family", [name for name in OTHERS if family_of(name).orders])
def test_a_manifest_whose_order_is_none_is_damaged(family: str, tmp_path: Path) -> None:
    of_family(make_model(), family).save(str(tmp_path))
    manifest = json.loads((tmp_path / "model.json").read_text())
    assert manifest["order"] == family_of(family).orders[0]
    assert describe_model(of_family(make_model(), family))["summary"]["order"] == manifest["order"]
    assert "order" not in describe_model(make_model())["summary"]
    for order in (9, -1, "many"):
        (tmp_path / "model.json").write_text(json.dumps({**manifest, "order": order}))
        with pytest.raises(ModelError, match="damaged"):
            FMModel.load(str(tmp_path))


@pytest.mark.parametrize("order", [4, 5])
def test_the_graph_of_any_order_predicts_what_the_model_does(order: int, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import onnx
    from onnx.reference import ReferenceEvaluator

    plain, rows = make_model(), random_table(40)
    layout = Layout("sgd", plain.table.layout.n_factors, "hofm", order=order)
    ids, n_factored = plain.vocabulary.ids, plain.vocabulary.n_factored
    model = dataclasses.replace(plain, table=initialise(layout, ids, n_factored, InitialValues(3, 0.3)))
    (url,) = export(model, "onnx", str(tmp_path))
    ids, fields, values = hashed_inputs(model, rows)
    (prediction,) = ReferenceEvaluator(onnx.load(url)).run(None, {"ids": ids, "fields": fields, "values": values})
    np.testing.assert_allclose(prediction, model.predict(rows), atol=1e-6)


def test_inspection_tells_the_fields_of_each_group() -> None:
    model = of_family(make_model(), "ffm")
    names = [entry.name for entry in model.schema.fields]
    told = f"0: {', '.join(names[:3])}; 1: {', '.join(names[3:6])}; 2: {', '.join(names[6:])}"
    assert describe_model(model)["summary"]["groups"] == told
    named = {"settings": {"model": {"groups": {"a": [], "b": [], "c": []}}}}
    assert describe_model(dataclasses.replace(model, metadata=named))["summary"]["groups"].startswith("a: ")
    assert "groups" not in describe_model(make_model())["summary"]


def test_inspection_names_the_pairs_of_fields_by_their_strength() -> None:
    model = moved(of_family(make_model(), "fwfm"))
    names, strengths = strengths_of(model) or ([], np.zeros((0, 0)))
    assert (strengths == strengths.T).all()
    rows = model.table.layout.block("strengths").row_names(names)
    by_name = dict(zip(rows, model.table.values(model.table.layout.block("strengths")), strict=True))
    told = describe_model(model)["pairs"]
    assert [pair["strength"] for pair in told] == [by_name[pair["fields"]] for pair in told]
    sizes = [abs(pair["strength"]) for pair in told]
    assert sizes == sorted(sizes, reverse=True)
    assert (told[0]["rank"], told[-1]["rank"]) == (1, len(names) * (len(names) - 1) // 2)
    assert "pairs" not in describe_model(make_model())
    assert strengths_of(make_model()) is None


def test_the_report_of_a_field_weighted_model_has_a_map_of_its_strengths(tmp_path: Path) -> None:
    model = moved(of_family(make_model(), "fwfm"))
    metadata = {"history": [], "validation": {}, "rows": {}, "settings": {}}
    dataclasses.replace(model, metadata=metadata).save(str(tmp_path / "model"))
    page = Path(report_training(str(tmp_path), "night")).read_text()
    names, strengths = strengths_of(model) or ([], np.zeros((0, 0)))
    assert page.count("<td class=h style=background:rgb(") == len(names) ** 2
    assert f">{strengths[0, 1]:.{2 if np.abs(strengths).max() >= 1 else 3}f}" in page
    cells = pages.HeatMap(["<a>", "b"], np.array([[0.0, -2.0], [-2.0, 1.0]]))
    text = Path(pages.write_report(str(tmp_path / "r.html"), "t", {"map": cells})).read_text()
    assert "&lt;a&gt;" in text
    assert "<a>" not in text
    assert "background:rgb(178,24,43);color:#fff" in text
    dataclasses.replace(make_model(), metadata=metadata).save(str(tmp_path / "plain" / "model"))
    assert "rgb(" not in Path(report_training(str(tmp_path / "plain"), "night")).read_text()


def test_a_report_is_of_one_model_where_another_is_published_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, model = str(tmp_path / "model"), moved(of_family(make_model(), "fwfm"))
    model.save(place)
    before = Path(report_training(str(tmp_path), "night")).read_text()

    read = iter([read_manifest(place)])
    turned(model, 2.0).save(place)
    write_findings(place, {"collisions": {"of the later one": 1.0}})
    monkeypatch.setattr("dfm.model.report.read_manifest", lambda *at: next(read, None) or read_manifest(*at))
    assert Path(report_training(str(tmp_path), "night")).read_text() == before


def test_a_report_of_many_fields_names_the_ends_of_their_strengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell for each pair of a thousand fields would be 50 MB."""
    monkeypatch.setattr("dfm.model.report._MOST_COLUMNS", 3)
    model = moved(of_family(make_model(), "fwfm"))
    model.save(str(tmp_path / "model"))
    page = Path(report_training(str(tmp_path), "night")).read_text()
    assert "<td class=h" not in page
    assert all(f"<td>{html.escape(pair['fields'])}" in page for pair in describe_model(model)["pairs"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_without_text_for_gpus_is_refused_there_with_the_reason(name: str) -> None:
    spec = KernelSpec("logistic", "adagrad", 8, family=name)
    if family_of(name).cuda is not None:
        assert "factor_gradient" in source_of(spec)
        return
    with pytest.raises(SettingsError, match=f'no code for family = "{name}", only for fm; .*backend = "numba"'):
        source_of(spec)


@pytest.mark.parametrize("family", [name for name in OTHERS if family_of(name).knows_fields])
def test_fields_are_counted_at_the_door(family: str) -> None:
    record = family_of(family)
    record.check_fields(2)
    with pytest.raises(SettingsError, match=r"needs two fields or more.*matrix counts as one"):
        record.check_fields(1)
    with pytest.raises(SettingsError, match=f"takes up to {record.most_fields} fields"):
        record.check_fields(record.most_fields + 1)
    family_of(DEFAULT).check_fields(1)
