"""Commands for data that come from elsewhere, as a user gives them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dfm.cli import doors
from dfm.data.text.formats import FORMATS
from dfm.events import faults_of
from tests.support.command_line import Run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "log.svm"
    path.write_text("".join(f"{i % 2} {i % 7}:1 {10 + i % 5}:0.5\n" for i in range(3000)))
    return path


def test_converting_prints_a_job_that_trains_or_writes_it(run: Run, text: Path, tmp_path: Path) -> None:
    code, out, err = run("convert", text, "--to", tmp_path / "shards", "--workers", 1)
    assert (code, tomllib.loads(out)["data"]["train"]) == (0, str(tmp_path / "shards"))
    assert "3,000 rows of 3,000 lines of libsvm in 1 shards" in err
    job = tmp_path / "job.toml"
    arguments = ("convert", text, "--to", tmp_path / "shards", "--overwrite", "--workers", 1, "--job")
    assert run(*arguments, job)[0] == 0
    code, out, _ = run("train", job, "--dry-run")
    assert code == 0
    assert "3,000" in out
    job.write_text("# mine\n")
    code, _, err = run(*arguments, job)
    assert (code, job.read_text()) == (2, "# mine\n")
    assert "was not made by dfm" in err
    code, _, err = run(*arguments, tmp_path / "shards" / "job.toml")
    assert code == 2
    assert "lies among the shards" in err


def test_programs_are_told_of_a_conversion_in_an_event(run: Run, text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text() + "1 x:1\n")
    arguments = ("convert", text, "--to", tmp_path / "shards", "--workers", 1, "--json")
    code, _, err = run(*arguments)
    assert code == 3
    assert "log.svm, line 3001: expected index:value" in err
    code, out, _ = run(*arguments, "--on-bad-rows", "skip")
    told = json.loads(out)
    assert code == 0
    assert faults_of(told) == []
    assert (told["lines"], told["rows"], told["rejected"], told["format"]) == (3001, 3000, 1, "libsvm")
    assert told["columns"] == {"label": "double", "features": "map<int64, float>"}


def test_variables_that_nobody_has_set_are_no_folders(run: Run, text: Path, tmp_path: Path) -> None:
    """`--to "$OUT"`, as the shell leaves it."""
    for arguments, told in (
        (("convert", text, "--to", ""), "the folder for the shards (--to) is empty and names no place"),
        (("synth", "", "--rows", 100), "the folder of the log is empty and names no place"),
        (("demo", "--output", "", "--rows", 2000), "output is empty and names no place"),
        (("guess", ""), "a path of the data is empty and names no place"),
        (
            ("convert", text, "--to", tmp_path, "--on-bad-rows", "skip", "--max-bad-fraction", "nan"),
            "= NaN is not legal",
        ),
    ):
        code, _, err = run(*arguments)
        assert (code, told in err) == (2, True), err


def test_wishes_about_tables_reach_the_reader(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1;007;NA\n0;008;2.5\n")
    wishes = ("--delimiter", ";", "--no-header", "--type", "column_1=text", "--missing", "NA")
    assert run("convert", tmp_path / "log.txt", "--to", tmp_path / "shards", *wishes, "--workers", 1)[0] == 0
    assert pq.read_table(tmp_path / "shards").to_pylist() == [
        {"column_0": 1, "column_1": "007", "column_2": None},
        {"column_0": 0, "column_1": "008", "column_2": 2.5},
    ]
    code, _, err = run("convert", tmp_path / "log.txt", "--to", tmp_path / "b", "--type", "x=date", "--workers", 1)
    assert code == 2
    assert "is not COLUMN=KIND" in err
    code, _, err = run("convert", tmp_path / "log.txt", "--to", tmp_path / "b", "--format", "vw", "--missing", "NA")
    assert code == 2
    assert "are for csv and tsv, and the format is vw" in err


def test_a_guessed_job_runs_as_it_stands(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "clicked,site,price\n" + "".join(f"{i % 2},s{i % 7},{i % 13}.5\n" for i in range(3000))
    )
    job = tmp_path / "job.toml"
    arguments = ("convert", tmp_path / "log.csv", "--to", tmp_path / "shards", "--workers", 1)
    assert run(*arguments, "--job", job)[0] == 0
    code, out, _ = run("guess", tmp_path / "shards")
    assert (code, out) == (0, job.read_text())
    assert tomllib.loads(out)["schema"] == {"label": "clicked", "categorical": ["site"], "numeric": ["price"]}
    code, planned, _ = run("train", job, "--dry-run")
    assert code == 0
    assert "field price" in planned
    code, _, err = run("guess", tmp_path / "log.csv")
    assert code == 3
    assert "log.csv --to FOLDER makes of it" in err


RATINGS = "1,1,5\n" + "".join(f"{i % 40},{i % 23},{1 + i % 5}\n" for i in range(2000))


def test_a_table_without_a_header_is_given_names(run: Run, tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text(RATINGS)
    code, _, err = run("convert", tmp_path / "u.csv", "--to", tmp_path / "a", "--names", "user,item,rating")
    assert (code, "warning" in err) == (0, False)
    table = pq.read_table(tmp_path / "a")
    assert (table.column_names, table.num_rows) == (["user", "item", "rating"], 2001)
    code, _, err = run("convert", tmp_path / "u.csv", "--to", tmp_path / "b", "--no-header")
    assert code == 0
    assert pq.read_table(tmp_path / "b").column_names == ["column_0", "column_1", "column_2"]
    code, _, err = run("convert", tmp_path / "u.csv", "--to", tmp_path / "c", "--names", "user,item")
    assert code == 2
    assert "2 names, and the first line has 3 values" in " ".join(err.split())
    code, _, err = run("convert", tmp_path / "u.csv", "--to", tmp_path / "c")
    assert code == 3
    assert "say --no-header (or --names A,B,…) where the first line is a row" in " ".join(err.split())


def test_a_row_that_was_taken_for_a_header_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sms.tsv").write_text("ham\tgo until the next stop please\n" + "spam\tyou have won again\n" * 50)
    code, _, err = run("convert", tmp_path / "sms.tsv", "--to", tmp_path / "a", "--job", tmp_path / "job.toml")
    assert code == 0
    assert "'go until the next stop please' looks like a value; if it is a row, say --no-header" in " ".join(
        err.split()
    )


def test_missing_texts_of_a_conversion_are_those_of_its_job(run: Run, tmp_path: Path) -> None:
    rows = [
        f"{i % 2},{'n/a' if i % 9 == 0 else i % 7 + 0.5},{'n/a' if i % 5 == 0 else 'abc'[i % 3]}" for i in range(900)
    ]
    (tmp_path / "log.csv").write_text("clicked,price,site\n" + "\n".join(rows))
    code, _, _ = run(
        "convert", tmp_path / "log.csv", "--to", tmp_path / "a", "--missing", "n/a", "--job", tmp_path / "j.toml"
    )
    assert code == 0
    schema = tomllib.loads((tmp_path / "j.toml").read_text())["schema"]
    assert schema["missing"] == ["n/a"]
    assert schema["numeric"] == ["price"]


def test_a_number_that_means_a_missing_value_is_told_to_be_one_to_a_model(run: Run, tmp_path: Path) -> None:
    rows = [f"{i % 2},{-999 if i % 9 == 0 else i % 40},{'abc'[i % 3]}" for i in range(900)]
    (tmp_path / "log.csv").write_text("clicked,age,site\n" + "\n".join(rows))
    code, out, err = run("convert", tmp_path / "log.csv", "--to", tmp_path / "a", "--missing", "-999", "--workers", 1)
    assert code == 0
    assert "to a model that learns from them the number -999 is one like any other" in " ".join(err.split())
    assert 'missing = ["-999"]  # as text: of rows to be scored, a number -999 is one like any other' in out


def test_a_job_without_a_label_asks_for_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n" + "".join(f"{i % 5},{i % 7}\n" for i in range(500)))
    code, out, _ = run("convert", tmp_path / "log.csv", "--to", tmp_path / "a", "--job", tmp_path / "j.toml")
    assert code == 0
    assert f"next: name the label in {tmp_path}/j.toml" in out


def test_every_format_can_be_named() -> None:
    assert {*doors._FORMATS} == {"auto", *FORMATS}
