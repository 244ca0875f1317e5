"""Guessed jobs: roles by types, names and values, and jobs that run as they stand."""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dfm
from dfm import jobs
from dfm.data import facts, synthetic
from dfm.data.guess import guess, hash_bits
from dfm.data.parquet import find_shards
from dfm.data.time_split import at_or_after
from dfm.errors import DataError
from dfm.training import diagnosis

N = 3000
RNG = np.random.default_rng(0)
CLICKS = RNG.integers(0, 2, N)


def written(folder: Path, columns: Mapping[str, Any], name: str = "data.parquet") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / name)
    return str(folder / name)


def checked(path: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The tables of the guessed job, its text, and the plan of it."""
    text = guess(path)
    tables = tomllib.loads(text)
    return tables, text, jobs.plan(tables)


def validated(path: str, tables: dict[str, Any]) -> float:
    """The share of rows that the job validates on, by the column of time."""
    moments = pq.read_table(path)[tables["schema"]["time"]].combine_chunks()
    later = at_or_after(moments, tables["data"]["validation_from"], "time").to_numpy(zero_copy_only=False)
    return float(later.mean())


def test_a_synthetic_log_gets_the_job_that_people_write_for_it(tmp_path: Path) -> None:
    synthetic.generate(tmp_path / "clicks", rows=20_000, days=4, shards_per_day=1)
    tables, text, planned = checked(str(tmp_path / "clicks"))
    schema = tables["schema"]
    assert (schema["label"], schema["time"], tables["data"]["validation_from"]) == ("label", "day", "2026-11-17")
    assert {f"C{i}" for i in range(1, 27)} <= {*schema["categorical"]}
    assert {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I13"} <= {*schema["numeric"]}
    assert planned["validation_rows"] == 5000
    assert "25 % are 1" in text
    assert guess(str(tmp_path / "clicks")) == text


def test_folders_of_dates_give_the_last_day_to_validation(tmp_path: Path) -> None:
    for day in (18, 19, 20):
        columns = {"clicked": CLICKS[:100].astype(bool), "site": ["a", "b"] * 50}
        written(tmp_path, columns, f"log/dt=2026-11-{day}/hour=06/a.parquet")
    tables, _, planned = checked(str(tmp_path / "log"))
    assert tables["data"]["validation_from"] == "2026-11-20"
    assert (tables["schema"]["label"], tables["schema"]["time"]) == ("clicked", "dt")
    assert planned["validation_rows"] == 100


@pytest.mark.parametrize("as_folders", [True, False])
def test_days_as_whole_numbers_order_the_rows(tmp_path: Path, as_folders: bool) -> None:
    days = [20261129, 20261130, 20261201]
    for day in days:
        columns = {"clicked": CLICKS[:100], "site": ["a", "b"] * 50, **({} if as_folders else {"date": [day] * 100})}
        written(tmp_path, columns, f"log/dt={day}/a.parquet" if as_folders else f"log/{day}.parquet")
    tables, text, planned = checked(str(tmp_path / "log"))
    assert tables["schema"] == {"label": "clicked", "time": "dt" if as_folders else "date", "categorical": ["site"]}
    assert tables["data"]["validation_from"] == "20261201"
    assert "# from 20261129 to 20261201" in text
    if as_folders:
        assert planned["validation_rows"] == 100


def test_whole_numbers_that_are_no_days_order_nothing(tmp_path: Path) -> None:
    columns = {"clicked": CLICKS, "dt": [20261129 + 3 * (row % 30) for row in range(N)]}
    assert "time" not in checked(written(tmp_path, columns))[0]["schema"]


def test_moments_of_several_forms_are_left_out_with_one_that_does_not_fit(tmp_path: Path) -> None:
    days = [f"2026-11-{row % 30 + 1}" for row in range(N)]
    _, text, _ = checked(written(tmp_path, {"clicked": CLICKS, "site": ["a", "b"] * (N // 2), "day": sorted(days)}))
    assert re.search(r'left out: day: it looks like moments in a form of its own \("2026-11-\d"\)', text)
    gaps = [day if len(day) == 10 else "NA" for day in days]
    _, text, _ = checked(written(tmp_path, {"clicked": CLICKS, "site": ["a", "b"] * (N // 2), "day": gaps}))
    assert "left out: day: it holds moments" in text


SIGNS = st.sampled_from("a1;|-\n\r\t\x00\x07\x1b\x7f\x85\u00a0\u2028\u202e\"\\#=[]'")
TEXTS = st.text(SIGNS | st.characters(exclude_categories=["Cs"]), min_size=1) | st.just("\n[data]\ntrain = 'x'\n")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=2, max_size=4, unique=True), TEXTS.filter(lambda name: "\0" not in name))
def test_texts_of_the_data_are_no_lines_of_the_job(tmp_path: Path, values: list[str], name: str) -> None:
    columns = {
        "clicked": [0, 1] * 20,
        "site": ["a", "b", "c", "d"] * 10,
        f"{name}_": [values[row % len(values)] for row in range(40)],
        f"{name}_constant": [values[0]] * 40,
        f"{name}_dates": [f"11/20/2026 {values[0]}"] * 39 + ["11/21/2026"],
        f"{name}_lists": [f"{values[row % 2]};|x" for row in range(40)],
    }
    tables = tomllib.loads(guess(written(tmp_path, columns)))
    assert {*tables} == {"data", "schema", "model", "training", "output"}
    assert (tables["data"], tables["schema"]["label"]) == ({"train": f"{tmp_path}/data.parquet"}, "clicked")
    named = {each for role in ("categorical", "numeric", "lists") for each in tables["schema"].get(role, [])}
    assert named <= {*columns}
    del columns["clicked"]
    columns["label"] = [values[row % 2] for row in range(40)]
    assert tomllib.loads(guess(written(tmp_path, columns)))["schema"].get("label") == "label"


def test_strings_alone_are_read_as_what_they_say(tmp_path: Path) -> None:
    columns = {
        "click": CLICKS.astype(str),
        "price": [f"{x:.2f}" if x > 0.1 else "" for x in RNG.random(N)],
        "site": [("a", "b", "", "NA")[i % 4] for i in range(N)],
        "row": [f"r{i}" for i in range(N)],
        "constant": ["x"] * N,
        "empty": [""] * N,
    }
    tables, text, _ = checked(written(tmp_path, columns))
    schema = tables["schema"]
    assert (schema["label"], schema["categorical"], schema["numeric"]) == ("click", ["site"], ["price"])
    assert schema["missing"] == ["NA"]
    for reason in ("row: each row has a value of its own", "constant: it has one value, x", "empty: it has no value"):
        assert f"# left out: {reason}" in text
    assert '"site",  # 3 distinct, 25 % missing' in text


def test_a_target_of_numbers_is_a_regression_and_nan_is_said(tmp_path: Path) -> None:
    x = RNG.normal(size=N)
    columns = {
        "x": np.where(x > 2, np.nan, x),
        "target": x * 2,
        "sample_weight": RNG.random(N),
        "kind": ["u", "v"] * (N // 2),
    }
    tables, _, _ = checked(written(tmp_path, columns))
    assert tables["model"]["task"] == "regression"
    assert tables["schema"] == {
        "label": "target",
        "weight": "sample_weight",
        "categorical": ["kind"],
        "numeric": ["x"],
        "nan": "missing",
    }


def test_ratings_of_films_are_taken_by_time(tmp_path: Path) -> None:
    columns = {
        "user_id": RNG.integers(1, 300, N),
        "movie_id": RNG.integers(1, 500, N),
        "rating": RNG.integers(1, 6, N),
        "timestamp": 881250949 + RNG.integers(0, 10**7, N),
        "genres": ["Action|Crime", "Comedy", "Drama|War"] * (N // 3),
    }
    path = written(tmp_path, columns)
    tables, text, _ = checked(path)
    schema = tables["schema"]
    assert schema["categorical"] == ["user_id", "movie_id"]
    assert (schema["lists"], schema["list_separator"], schema["time"]) == (["genres"], "|", "timestamp")
    assert 0.09 < validated(path, tables) < 0.11
    assert "# group" not in text, "there is no order of clicked rows"


def test_lists_maps_and_structs_have_the_roles_of_the_type_table(tmp_path: Path) -> None:
    columns = {
        "y": CLICKS,
        "tags": pa.array([["a", "b"], [], ["c"]] * (N // 3)),
        "weights": pa.array([[("k", 0.5)], [("l", 1.0)], []] * (N // 3), pa.map_(pa.string(), pa.float32())),
        "user": pa.array([{"age": 30.5 + i % 7, "city": "x" if i % 2 else "y"} for i in range(N)]),
    }
    tables, _, _ = checked(written(tmp_path, columns))
    schema = tables["schema"]
    assert schema["lists"] == ["tags", "weights"]
    assert (schema["categorical"], schema["numeric"]) == (["user.city"], ["user.age"])


@pytest.mark.parametrize(
    ("labels", "positive"),
    [(["no", "yes"], ["yes"]), ([-1, 1], ["1"]), ([1.0, 2.0], ["2"]), (["neg", "pos"], ["pos"]), ([0, 1], None)],
)
def test_two_labels_say_which_is_positive(tmp_path: Path, labels: list[Any], positive: list[str] | None) -> None:
    columns = {"label": [labels[i] for i in CLICKS], "site": ["a", "b"] * (N // 2)}
    path = written(tmp_path, columns)
    tables, _, _ = checked(path)
    assert tables["schema"].get("label_positive") == positive


def test_integers_with_missing_values_that_a_frame_made_floats_of_stay_codes(tmp_path: Path) -> None:
    codes = np.where(CLICKS == 1, RNG.integers(0, 50, N), np.nan)
    columns = {"label": CLICKS, "user_id": codes, "visits": np.where(RNG.random(N) < 0.1, np.nan, 3.0)}
    tables, text, _ = checked(written(tmp_path, columns))
    assert (tables["schema"]["categorical"], tables["schema"]["numeric"]) == (["user_id"], ["visits"])
    assert f"{100 * float(np.isnan(codes).mean()):.3g} % missing" in text
    assert "3 to 3; whole numbers" in text


def test_lists_alone_and_nothing_at_all_are_said(tmp_path: Path) -> None:
    tags = pa.array([["a", "b"], ["c"]] * (N // 2))
    tables, text, _ = checked(written(tmp_path, {"label": CLICKS, "tags": tags, "row": np.arange(N)}))
    assert tables["schema"]["lists"] == ["tags"]
    assert "[schema] names lists alone" in text
    assert "No column is left as a feature" in guess(written(tmp_path, {"label": CLICKS, "row": np.arange(N)}))


def test_moments_validate_by_their_last_tenth(tmp_path: Path) -> None:
    begin = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
    moments = [begin + datetime.timedelta(minutes=17 * i) for i in range(N)]
    columns = {"label": CLICKS, "seen": moments, "site": ["a", "b"] * (N // 2)}
    path = written(tmp_path, columns)
    tables, text, _ = checked(path)
    assert tables["schema"]["time"] == "seen"
    assert 0.09 < validated(path, tables) < 0.11
    assert '# hour = "hour(seen)"' in text


def test_a_last_day_of_few_rows_does_not_validate_alone(tmp_path: Path) -> None:
    days = ["2026-11-20"] * 1500 + ["2026-11-21"] * 1498 + ["2026-11-22"] * 2
    for name, day in (("text", days), ("numbers", [int(day.replace("-", "")) for day in days])):
        path = written(tmp_path, {"label": CLICKS, "day": day, "site": ["a", "b"] * (N // 2)}, f"{name}.parquet")
        tables, _, _ = checked(path)
        assert tables["data"]["validation_from"] == str(day[2000])
    one = ["2026-11-21"] * (N - 2) + ["2026-11-22"] * 2
    tables, _, _ = checked(written(tmp_path, {"label": CLICKS, "day": one, "site": ["a", "b"] * (N // 2)}))
    assert "validation_from" not in tables["data"]


def test_features_that_the_time_could_give_are_no_columns_already(tmp_path: Path) -> None:
    begin = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
    moments = [begin + datetime.timedelta(minutes=17 * i) for i in range(N)]
    columns = {"label": CLICKS, "seen": moments, "hour": [moment.hour for moment in moments], "site": ["a", "b"] * 1500}
    text = guess(written(tmp_path, columns))
    assert "# hour" not in text
    jobs.plan(tomllib.loads(text.replace("# [schema.derive]", "[schema.derive]").replace("# weekday", "weekday")))
    text = guess(written(tmp_path, {**columns, "weekday": [moment.weekday() for moment in moments]}))
    assert "schema.derive" not in text


def test_infinities_are_told_with_what_a_training_makes_of_them(tmp_path: Path) -> None:
    endless = np.where(np.arange(N) % 100 == 0, np.inf, RNG.random(N))
    columns = {"label": CLICKS, "ratio": endless, "sample_weight": endless, "site": ["a", "b"] * (N // 2)}
    tables, text, _ = checked(written(tmp_path, columns))
    assert (tables["schema"]["numeric"], "weight" in tables["schema"]) == (["ratio", "sample_weight"], False)
    assert re.search(r'"ratio",  # .*; 1 % are infinite: bad rows, which data.on_bad_rows = "skip" leaves out', text)


def test_a_label_with_gaps_is_still_the_label(tmp_path: Path) -> None:
    clicked = [None if row == 7 else int(label) for row, label in enumerate(CLICKS)]
    others = {"is_mobile": CLICKS[::-1], "site": ["u", "v", "w"] * (N // 3)}
    tables, text, _ = checked(written(tmp_path, {"clicked": clicked, **others}))
    assert tables["schema"] == {"label": "clicked", "categorical": ["is_mobile", "site"]}
    assert '0.0333 % have none: bad rows, which data.on_bad_rows = "skip" leaves out' in text
    tables, text, _ = checked(
        written(tmp_path, {"clicked": ["NA" if x is None else str(x) for x in clicked], **others})
    )
    assert tables["schema"]["label"] == "clicked"
    assert tables["schema"]["missing"] == ["NA"]
    assert "0.0333 % have none" in text
    floats = [math.nan if x is None else x + i % 3 for i, x in enumerate(clicked)]
    tables, text, _ = checked(written(tmp_path, {"rating": floats, **others}))
    assert (tables["schema"]["label"], tables["model"]["task"]) == ("rating", "regression")
    assert "0.0333 % have none" in text


def test_labels_that_look_like_no_value_are_labels_where_there_are_two(tmp_path: Path) -> None:
    columns = {"outcome": [("none", "some")[label] for label in CLICKS], "site": ["u", "v", "w"] * (N // 3)}
    tables, text, _ = checked(written(tmp_path, columns))
    assert tables["schema"] == {"label": "outcome", "label_positive": ["some"], "categorical": ["site"]}
    assert "have none" not in text


def test_two_large_labels_are_named_by_all_their_digits(tmp_path: Path) -> None:
    columns = {"label": 1234567 + CLICKS, "site": ["u", "v", "w"] * (N // 3)}
    tables, _, _ = checked(written(tmp_path, columns))
    assert tables["schema"]["label_positive"] == ["1234568"]


def test_a_column_that_is_called_like_a_label_and_is_none_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, {"class": ["a", "b", "c"] * (N // 3), "is_mobile": CLICKS, "site": ["u", "v"] * (N // 2)})
    text = guess(path)
    assert tomllib.loads(text)["schema"]["label"] == "is_mobile"
    assert "# Called like a label, but not of two values or of numbers that repeat: class." in text


def test_without_a_label_the_reader_is_asked(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": CLICKS, "b": CLICKS, "site": ["u", "v"] * (N // 2)})
    text = guess(path)
    assert "No column is called like a label, and 2 have two values: a, b" in text
    assert "label" not in tomllib.loads(text)["schema"]
    assert (
        tomllib.loads(guess(written(tmp_path, {"a": CLICKS, "site": ["u", "v"] * (N // 2)})))["schema"]["label"] == "a"
    )
    named = guess(written(tmp_path, {"a": CLICKS, "clicked": CLICKS, "site": ["u", "v"] * (N // 2)}))
    assert "Other columns could be the label: a" in named


def test_texts_of_two_values_are_named_where_nothing_else_could_be_the_label(tmp_path: Path) -> None:
    path = written(tmp_path, {"kind": ["ham", "sp\nam"] * (N // 2), "words": RNG.integers(0, 50, N).astype(str)})
    text = guess(path)
    assert "label" not in tomllib.loads(text)["schema"]
    assert r"'ham', 'sp\nam'" in text
    assert "label_positive the value that counts as 1" in " ".join(text.replace("#", " ").split())


def test_text_is_told_how_it_becomes_parquet(tmp_path: Path) -> None:
    for name in ("a.csv", "a.svm.gz"):
        (tmp_path / name).write_text("label,x\n1,2\n")
        with pytest.raises(DataError, match=rf"dfm convert \S*{name} --to FOLDER"):
            guess(str(tmp_path / name))


def test_a_sample_estimates_what_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "SAMPLE_ROWS", 2000)
    rng = np.random.default_rng(1)
    columns = {"few": rng.integers(0, 50, 40_000), "many": rng.integers(0, 4000, 40_000), "all": np.arange(40_000)}
    for part in range(4):
        rows = slice(part * 10_000, (part + 1) * 10_000)
        written(tmp_path, {name: values[rows] for name, values in columns.items()}, f"log/{part}.parquet")
    found = facts.facts_of(find_shards([str(tmp_path / "log")])).columns
    assert found["few"].n_rows == 2000
    assert found["few"].n_values == 50
    assert 3000 < found["many"].n_values < 5500
    assert found["all"].n_values == 40_000
    assert found["all"].numbers[-1] == 39_999  # the runs reach the last row


def test_a_quarter_of_the_table_is_filled_at_most() -> None:
    assert [hash_bits(n) for n in (1, 6553, 6554, 1 << 20, 1 << 30)] == [16, 16, 17, 24, 28]


def test_the_page_about_guessing_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "deploy" / "docs" / "howto" / "guess.md").read_text(encoding="utf-8")
    program, shown = (re.findall(rf"```{kind}\n(.*?)```", page, flags=re.DOTALL)[0] for kind in ("python", "toml"))
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert capsys.readouterr().out.strip() == shown.strip()


def test_it_has_its_place_among_the_names_of_dfm() -> None:
    assert dfm.guess is guess


def test_numbers_with_placeholders_are_numbers_and_the_placeholders_are_missing(tmp_path: Path) -> None:
    prices = ["NA" if i % 20 == 0 else f"{i % 300 / 7:.2f}" for i in range(3000)]
    pq.write_table(pa.table({"clicked": [i % 2 for i in range(3000)], "price": prices}), tmp_path / "a.parquet")
    schema = tomllib.loads(guess(tmp_path))["schema"]
    assert (schema["numeric"], schema["missing"]) == (["price"], ["NA"])


def test_text_that_is_no_category_is_left_out_with_what_would_help(tmp_path: Path) -> None:
    columns = {
        "clicked": [i % 2 for i in range(300)],
        "site": ["abc"[i % 3] for i in range(300)],
        "at": [f"11/{1 + i % 28}/2026 10:{i % 60:02}" for i in range(300)],
        "text": [
            f"a message of many words, number {i % 250}; it is longer than a category would be" for i in range(300)
        ],
        "other": [
            f"another message of many words, number {i % 250}, which is longer than a category is" for i in range(300)
        ],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    text = guess(tmp_path)
    assert "# left out: at: it looks like moments in a form of its own" in text
    assert "# left out: other: sentences, of" in text
    assert 'lists = ["other"] with list_separator = " " makes a feature of each word' in text


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time64("us")])
def test_times_of_day_are_left_out_with_what_makes_features_of_them(tmp_path: Path, kind: pa.DataType) -> None:
    at = pa.array([datetime.time(n % 24, n % 60) for n in range(N)]).cast(kind)
    tables, text, _ = checked(written(tmp_path, {"clicked": CLICKS, "at": at, "site": RNG.integers(0, 9, N)}))
    remedy = 'as a category, or by [schema.derive] hour = "hour(at)", it may help'
    assert f"# left out: at: it holds times of day; {remedy}" in text
    tables["schema"] |= {"categorical": ["site", "at"], "derive": {"hour": "hour(at)"}}
    assert jobs.plan(tables)["columns"].keys() == {"site", "at", "hour"}


def test_a_guessed_table_is_not_one_that_a_training_finds_too_full() -> None:
    for n_features in (6553, 50_000, 1_000_000):
        assert 1 - math.exp(-n_features / 2 ** hash_bits(n_features)) < diagnosis._FULL


def test_no_group_is_proposed_where_numbers_are_learnt(tmp_path: Path) -> None:
    n = 4000
    table = {"rating": [n % 5 + 0.5 for n in range(n)], "user_id": [f"u{n % 400}" for n in range(n)]}
    pq.write_table(pa.table(table), tmp_path / "ratings.parquet")
    text = guess(str(tmp_path / "ratings.parquet"))
    assert 'task = "regression"' in text
    assert "# group" not in text


def test_what_stays_a_category_for_want_of_another_form_says_so(tmp_path: Path) -> None:
    n = 300
    columns = {
        "clicked": [i % 2 for i in range(n)],
        "tags": [f"a{i % 5}|b{i % 3}" for i in range(n)],
        "cats": [f"x{i % 5};y{i % 3}" for i in range(n)],
        "price": [f"{i % 10},{i % 7}5" for i in range(n)],
        "exact": [f"{i},{i % 7}5" for i in range(n)],
        "pair": [f"{i % 10},{i % 7},1" for i in range(n)],
    }
    path = written(tmp_path, columns)
    schema, text = tomllib.loads(guess(path))["schema"], guess(path)
    assert (schema["lists"], schema["categorical"]) == (["tags"], ["cats", "price", "pair"])
    assert re.search(r'"cats",  # 15 distinct; text with ; between elements, but list_separator is \|: lists if', text)
    assert re.search(r'"price",  # .* distinct; numbers with commas, it seems \("0,05"\): numeric if they are', text)
    assert re.search(r"# left out: exact: each row has a value of its own, as an index has; numbers with commas", text)
    assert text.count("numbers with commas") == 2
