"""CSV and its kin: types by samples, and each line judged by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm.data.canonical import value_text
from dfm.data.synthetic import SCHEMA
from dfm.data.text.account import LineAccount
from dfm.data.text.convert import convert
from dfm.data.text.tables import TableReader, criteo_reader, table_reader
from dfm.errors import DataError, SettingsError

READER = TableReader(("i", "x", "s"), (pa.int64(), pa.float64(), pa.string()), ",")


def block(text: str | bytes) -> np.ndarray:
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["1", "", "x", "1.5"]), st.sampled_from(["2.5", "", "y"]),
                          st.sampled_from(["a", "", '"q,u"', '"open', "a,b"])), min_size=1, max_size=12))  # fmt: skip
def test_each_line_is_judged_as_if_it_stood_alone(rows: list[tuple[str, str, str]]) -> None:
    def fits(row: tuple[str, str, str]) -> bool:
        return row[0] in ("1", "") and row[1] in ("2.5", "") and row[2] not in ('"open', "a,b")

    found = READER.parse(block("".join(",".join(row) + "\n" for row in rows)))
    assert [fault.line for fault in found.faults] == [at for at, row in enumerate(rows) if not fits(row)]
    values = {"1": 1, "2.5": 2.5, '"q,u"': "q,u", "": None, "a": "a"}
    kept = [tuple(values[value] for value in row) for row in rows if fits(row)]
    assert [tuple(row.values()) for row in found.batch.to_pylist()] == kept


@pytest.mark.parametrize(
    ("line", "reason", "text"),
    [
        ("x,1,a", "column 'i' is no int64", "x"),
        ("1,y,a", "column 'x' is no double", "y"),
        ("1,2", "2 columns instead of 3", "1,2"),
        ('1,2,"a', "quotes", '1,2,"a'),
        (b"1,2,\xff", "column 's' is no UTF-8 text", "1,2,"),
        (b"\xff,2,a\xff", "column 'i' is no UTF-8 text", ""),
        (b'1,2,"a,\xff"', "column 's' is no UTF-8 text", ""),
        (b"1,\xff", "2 columns instead of 3", "1,"),
        (b"1,2,\xff\rb", "it is no UTF-8 text", "1,2,"),
    ],
)
def test_a_line_that_is_no_row_says_why(line: str | bytes, reason: str, text: str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    found = READER.parse(block(b"1,2,a\n" + raw + b"\n\r\n3,4,b\r\n"))
    assert [fault.line for fault in found.faults] == [1]
    assert ("iconv" in found.faults[0].remedy) == (not raw.isascii())
    assert reason in found.faults[0].reason
    assert text in found.faults[0].text
    assert (found.n_lines, found.n_blank, found.batch["i"].to_pylist()) == (4, 1, [1, 3])


def test_lines_in_another_encoding_and_bad_ones_among_them_are_told_in_order() -> None:
    lines = [b"1,2,a", b"1,2,\xff", b"x,2,a", b"", b"1,2,\xc3\xa4", b"1,2,\xe4", b"3,4,b"] * 3
    found = READER.parse(block(b"\n".join(lines) + b"\n"))
    assert [fault.line for fault in found.faults] == [start + bad for start in (0, 7, 14) for bad in (1, 2, 5)]
    assert ["iconv" in fault.remedy for fault in found.faults] == [True, False, True] * 3
    assert (found.n_lines, found.n_blank, found.batch["s"].to_pylist()) == (21, 3, ["a", "ä", "b"] * 3)
    alone = READER.parse(block(b"1,2,\xe4\n1,2,\xff\n"))
    assert (len(alone.faults), alone.n_lines, alone.batch.num_rows) == (2, 2, 0)


def converted(tmp_path: Path, text: str, **options: object) -> pa.Table:
    (tmp_path / "log.csv").write_text(text)
    convert(str(tmp_path / "log.csv"), str(tmp_path / "shards"), overwrite=True, **options)  # type: ignore[arg-type]
    return pq.read_table(tmp_path / "shards")


def test_types_suit_all_samples_and_can_be_said(tmp_path: Path) -> None:
    text = "i,x,day,zip,empty,\n1,1,2026-11-20,007,,0\n2,2.5,2026-11-21,008,,1\n,NA,,,,2\n"
    table = converted(tmp_path, text, missing=["NA"], types={"zip": "text"})
    assert table.column_names == ["i", "x", "day", "zip", "empty", "column_5"]
    types = [pa.int64(), pa.float64(), pa.date32(), pa.string(), pa.string(), pa.int64()]
    assert table.schema.types == types
    assert table["zip"].to_pylist() == ["007", "008", None]
    assert table["x"].to_pylist() == [1, 2.5, None]
    with pytest.raises(SettingsError, match="no such column; there are i, x"):
        converted(tmp_path, text, types={"y": "text"})
    with pytest.raises(DataError, match="names the column 'a' twice"):
        converted(tmp_path, "a,a\n1,2\n")


def test_text_that_is_no_utf8_is_told_by_its_line_and_column_and_written_by_no_other_name(tmp_path: Path) -> None:
    raw = "label,city\n1,Bern\n0,Zürich\n".encode("latin-1") + b"0,Genf\n" * 99
    (tmp_path / "log.csv").write_bytes(raw)
    to = str(tmp_path / "shards")
    with pytest.raises(DataError, match=r"line 3: column 'city' is no UTF-8 text .* iconv -f CP1252 -t UTF-8 FILE"):
        convert(str(tmp_path / "log.csv"), to)
    assert convert(str(tmp_path / "log.csv"), to, on_bad_rows="skip", overwrite=True).account.rejected == 1
    assert pq.read_schema(tmp_path / "shards" / "part-00000-00000.parquet").field("city").type == pa.string()


def test_lines_that_are_no_utf8_say_nothing_of_types(tmp_path: Path) -> None:
    rows = [b"%d,2026-11-%02d" % (day, day) for day in range(1, 29)]
    (tmp_path / "log.csv").write_bytes(
        b"\n".join([b"i,day", *rows[:9], b"\xff,2026-11-30", *rows[9:], b"7,\xa0"]) + b"\n"
    )
    to = str(tmp_path / "shards")
    done = convert(str(tmp_path / "log.csv"), to, on_bad_rows="skip", max_bad_fraction=0.1)
    assert done.account.rejected == 2
    table = pq.read_table(to)
    assert (table.num_rows, table.schema.types) == (28, [pa.int64(), pa.date32()])


def test_other_delimiters_and_files_without_header(tmp_path: Path) -> None:
    assert converted(tmp_path, "a;b\n1;x\n", delimiter=";").to_pylist() == [{"a": 1, "b": "x"}]
    found = converted(tmp_path, "1,x\n2,y\n", header=False)
    assert found.to_pylist() == [{"column_0": 1, "column_1": "x"}, {"column_0": 2, "column_1": "y"}]
    (tmp_path / "more.tsv").write_text('a\tb\n1\t5" screen\n')
    convert(str(tmp_path / "more.tsv"), str(tmp_path / "shards"), overwrite=True)
    assert pq.read_table(tmp_path / "shards").to_pylist() == [{"a": 1, "b": '5" screen'}]


@pytest.mark.parametrize("delimiter", ["||", "€", '"', "\n"])
def test_a_delimiter_is_one_character_that_is_no_quote(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(SettingsError, match=r"--delimiter .*: expected one ASCII character"):
        converted(tmp_path, "a,b\n1,x\n", delimiter=delimiter)


def test_a_tab_may_be_said_as_shells_have_it(tmp_path: Path) -> None:
    assert converted(tmp_path, "a\tb\n1\tx\n", delimiter="\\t").to_pylist() == [{"a": 1, "b": "x"}]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_before_the_header_are_none(tmp_path: Path, end: str) -> None:
    text = end.join(["", " ", "a,b", "1,x", "", "2,y", ""])
    assert converted(tmp_path, text).to_pylist() == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(DataError, match=r"log\.csv, line 6: 1 columns instead of 2"):
        converted(tmp_path, text.replace("2,y", "2"))


def test_a_line_end_in_quotes_is_told_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: a value in quotes does not end .* write a blank for it"):
        converted(tmp_path, 'a,b\n1,"x\ny"\n2,z\n')
    with pytest.raises(DataError, match="the header, 'a,\"b', ends within a value in quotes"):
        converted(tmp_path, 'a,"b\nc"\n1,2\n')


def test_a_value_of_another_type_advises_to_say_the_type(tmp_path: Path) -> None:
    reader = dataclasses.replace(READER, names=("i", "x x", "s"))
    account = LineAccount()
    account.add_block("log.csv", reader.parse(block("1,2.5,a\n1,abc,a\n")))
    with pytest.raises(DataError, match=r"column 'x x' is no double \('abc'\).*say so: --type 'x x=text'"):
        account.check("error", 0.01)


@pytest.mark.parametrize(("value", "kind"), [("2.5", "number"), ("1e3", "number"), ("+5", "number"), ("12a", "text")])
def test_a_value_among_integers_advises_what_it_is(value: str, kind: str) -> None:
    reader = TableReader(("label", "price"), (pa.int64(), pa.int64()), ",")
    (fault,) = reader.parse(block(f"1,3\n1,{value}\n")).faults
    assert f"--type price={kind}" in fault.remedy


def test_zeros_in_front_of_whole_numbers_are_told_before_they_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    samples = [b"1,7,0,x0\n", b"0012,00.5,0,001\n"]
    found = table_reader(("user id", "price", "click", "text"), samples, (",", '"'), {}, ())
    assert found.types == (pa.int64(), pa.float64(), pa.int64(), pa.string())
    (told,) = caplog.messages
    assert told.startswith("'user id' has whole numbers with zeros in front, which are lost")
    assert "--type 'user id=text'" in told
    caplog.clear()
    for kind in ("text", "integer"):
        table_reader(("user", "click"), [b"0012,1\n"], (",", '"'), {"user": kind}, ())
    assert not caplog.messages


def test_a_column_without_values_in_the_samples_is_told(caplog: pytest.LogCaptureFixture) -> None:
    found = table_reader(("a", "b c", "d"), [b"1,,\n", b"2,,x\n"], (",", '"'), {}, ())
    assert found.types == (pa.int64(), pa.string(), pa.string())
    (told,) = caplog.messages
    assert told.startswith("'b c' had no value in what was looked at, and is kept as text")
    assert "--type 'b c'=number" in told
    caplog.clear()
    table_reader(("a", "b"), [b"1,\n"], (",", '"'), {"b": "number"}, ())
    assert not caplog.messages


def test_numbers_that_mean_nothing_are_told_to_be_numbers_to_a_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a,age,site\n" + "".join(f"{i % 2},{(-999, 30)[i % 2]},s{i % 3}\n" for i in range(20))
    assert converted(tmp_path, text, missing=["-999", "NA"])["age"].null_count == 10
    (told,) = [record.getMessage() for record in caplog.records]
    assert "--missing -999" in told
    assert "rows to be scored must have None for it in columns of numbers (a, age)" in told
    caplog.clear()
    converted(tmp_path, text, missing=["NA"])
    converted(tmp_path, text, missing=["-999"], types={"a": "text", "age": "text"})
    assert not caplog.records


def test_files_of_one_header_are_one_table_and_of_another_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.csv", "a,b\n1,2\n"), ("b.csv", "a,b\r\n3,4.5"), ("c.csv", "")):
        (tmp_path / name).write_text(text)
    found = convert(f"{tmp_path}/*.csv", str(tmp_path / "shards"))
    assert pq.read_table(tmp_path / "shards").to_pylist() == [{"a": 1, "b": 2.0}, {"a": 3, "b": 4.5}]
    assert (found.account.read, found.account.written) == (2, 2)
    (tmp_path / "d.csv").write_text("b,a\n1,2\n")
    with pytest.raises(DataError, match=r"d\.csv begins with 'b,a', and not with the header"):
        convert(f"{tmp_path}/*.csv", str(tmp_path / "shards"), overwrite=True)


def test_the_log_of_criteo_has_the_columns_of_a_synthetic_one() -> None:
    assert criteo_reader().schema.names == SCHEMA.names
    line = "\t".join(["1", "5", "-1", *[""] * 11, "68fd1e64", *[""] * 25])
    found = criteo_reader().parse(block(line + "\n" + line.replace("68fd", "\t68fd") + "\n"))
    row = found.batch.to_pylist()[0]
    assert (row["label"], row["I1"], row["I2"], row["I3"], row["C1"], row["C26"]) == (1, 5, -1, None, "68fd1e64", None)
    assert [fault.reason for fault in found.faults] == ["41 columns instead of 40"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**62 + n for n in range(50)], pa.int64()),
        ([*(2**62 + n for n in range(50)), 2**63 + 5], pa.string()),
        ([*(2**63 + n for n in range(50))], pa.string()),
        ([*(2**62 + n for n in range(50)), 0.5], pa.string()),
        ([*(2**53 - n for n in range(50)), 0.5], pa.float64()),
        ([-(2**63) - 1, 1], pa.string()),
        (["1e300", "12345678901234567.5", 3], pa.float64()),
        (["0x1A", "0x1B"], pa.string()),
        ([1, 2, " 3"], pa.int64()),
    ],
)
def test_numbers_that_no_type_tells_apart_stay_text(tmp_path: Path, values: list[object], kind: pa.DataType) -> None:
    table = converted(tmp_path, "user,x\n" + "".join(f"{value},1\n" for value in values))
    assert table.schema.field("user").type == kind
    assert len(set(table["user"].to_pylist())) == len(values)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["true", "false"], pa.bool_()),
        (["True", "False"], pa.string()),
        (["TRUE", "FALSE"], pa.string()),
        (["true", "FALSE"], pa.string()),
        (["true", "0"], pa.string()),
    ],
)
def test_truths_of_another_spelling_stay_the_text_that_is_served(
    tmp_path: Path, values: list[str], kind: pa.DataType
) -> None:
    table = converted(tmp_path, "is_new,x\n" + "".join(f"{value},1\n" for value in values))
    assert table.schema.field("is_new").type == kind
    assert [value_text(value) for value in table["is_new"].to_pylist()] == values


def test_a_boolean_of_another_spelling_is_told_instead_of_rewritten() -> None:
    (fault,) = TableReader(("is_new",), (pa.bool_(),), ",").parse(block("true\nTRUE\n")).faults
    assert (fault.line, fault.reason, fault.text) == (1, "column 'is_new' is no bool", "TRUE")


def test_samples_agree_on_text_where_one_has_wide_integers_and_another_fractions(tmp_path: Path) -> None:
    for name, value in (("a", f"{2**60}"), ("b", "0.5")):
        (tmp_path / f"{name}.csv").write_text(f"user,x\n{value},1\n")
    convert(str(tmp_path / "*.csv"), str(tmp_path / "out"))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [table["user"].to_pylist() for table in tables] == [[f"{2**60}"], ["0.5"]]


def test_a_first_line_that_cannot_be_cut_is_shown(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"a,b\r1,2\r")
    with pytest.raises(DataError, match=r"'a,b\\r1,2'…, cannot be cut .*carriage return.*end with a newline"):
        convert(str(tmp_path / "log.csv"), str(tmp_path / "out"))


def test_a_first_value_may_be_as_long_as_others(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("x" * 200_000 + ",1\ny,2\n")
    assert convert(str(tmp_path / "log.csv"), str(tmp_path / "out"), header=False, format="csv").account.written == 2
