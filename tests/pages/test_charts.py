"""Charts: round ticks, points where they belong, and texts that stay texts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dfm.model.figures import notebook_html
from dfm.pages import charts
from dfm.pages.charts import Frame, Ticks
from dfm.pages.page import fragment, preformatted, sections_html, write_report

EVIL = "<script>alert('x')</script>"
FRAME = Frame(EVIL, "y & z", (0.0, 10.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.0, 6.0, [1, 2, 3, 4, 5, 6]),
        (0.294, 0.322, [0.3, 0.31, 0.32]),
        (-3e5, 7e5, [-2e5, 0, 2e5, 4e5, 6e5]),
        (4.0, 4.0, [4.0]),
    ],
)
def test_ticks_are_few_and_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_ticks_of_what_is_counted_are_whole() -> None:
    assert charts.ticks(1.0, 2.0, least=1.0) == [1.0, 2.0]
    assert charts.ticks(1.0, 3.0, least=1.0) == [1.0, 2.0, 3.0]
    assert charts.ticks(1.0, 200.0, least=1.0) == charts.ticks(1.0, 200.0)
    assert Frame("epoch", "loss", (1.0, 3.0), (0.0, 1.0), counts=True).x_ticks.labels == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("low", "high", "labels", "unit"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"], ""),
        (0.4512, 0.45123, ["0.45120", "0.45121", "0.45122", "0.45123"], ""),
        (79_000.0, 83_000.0, ["79,000", "80,000", "81,000", "82,000", "83,000"], ""),
        (100_000.0, 100_100.0, ["100,000", "100,020", "100,040", "100,060", "100,080", "100,100"], ""),
        (-3e5, 7e5, ["-200,000", "0", "200,000", "400,000", "600,000"], ""),
        (1e6, 1.004e6, ["1.000", "1.001", "1.002", "1.003", "1.004"], " (in 10⁶)"),
        (0.0, 2.5e10, ["0", "5", "10", "15", "20", "25"], " (in 10⁹)"),
        (1e-7, 3e-7, ["100", "150", "200", "250", "300"], " (in 10⁻⁹)"),
        (4.0, 4.0, ["4.00"], ""),
        (0.0, 0.0, ["0"], ""),
        (math.nan, math.nan, ["nan"], ""),
    ],
)
def test_no_two_labels_of_an_axis_are_the_same(low: float, high: float, labels: list[str], unit: str) -> None:
    found = Ticks.of(charts.ticks(low, high))
    assert (found.labels, found.unit) == (labels, unit)


def test_the_epochs_of_a_learning_curve_are_whole() -> None:
    page = notebook_html("model", {"history": [{"epoch": epoch, "train_loss": 0.5 / epoch} for epoch in (1, 2, 3)]})
    below = re.findall(r"text-anchor=middle>([\d.]+)</text>", page)
    assert below == ["1", "2", "3"]


def test_long_labels_have_room_beside_the_picture_and_their_unit_stands_in_the_title() -> None:
    long = Frame("x", "rmse", (0.0, 1.0), (100_000.0, 100_100.0))
    usual = Frame("x", "rmse", (0.0, 1.0), (0.4, 0.6))
    assert long.at(0.0, 100_000.0)[0] > usual.at(0.0, 0.4)[0]
    assert long.at(1.0, 100_000.0)[0] == usual.at(1.0, 0.4)[0]
    figure = charts.lines("curves", Frame("x", "rmse", (0.0, 1.0), (1e6, 2e6)), {"a": [(0.0, 1e6), (1.0, 2e6)]})
    assert ">rmse (in 10⁶)</text>" in figure
    assert ">x</text>" in figure


def test_a_frame_puts_its_corners_into_the_picture() -> None:
    left, bottom = FRAME.at(0.0, 0.0)
    right, top = FRAME.at(10.0, 1.0)
    assert left < right
    assert top < bottom, "pictures count from above"
    assert FRAME.at(5.0, 0.5) == pytest.approx(((left + right) / 2, (top + bottom) / 2))
    assert Frame("x", "y", (2.0, 2.0), (0.0, 0.0)).at(2.0, 0.0), "a range of one number divides by no zero"
    assert charts.spanned([3.0, 3.0])[0] < 3.0 < charts.spanned([3.0, 3.0])[1]


def test_a_figure_is_sound_and_has_no_text_as_markup() -> None:
    points = [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0)]
    figure = charts.lines(EVIL, FRAME, {EVIL: points, "other": points[:1]}, [(0.0, 5.0, 0.5)], points[:1])
    assert "<script" not in figure
    assert figure.count("&lt;script&gt;") >= 4
    svg = re.search(r"<svg.*?</svg>", figure, re.DOTALL)
    assert svg is not None
    quoted = re.sub(r"(\s[\w-]+)=([^\s\">]+)", r'\1="\2"', svg[0])  # HTML lets attributes go without quotes
    tags = [element.tag for element in ElementTree.fromstring(quoted).iter()]
    assert tags.count("path") == 3  # the axes and two series
    assert (tags.count("rect"), tags.count("circle")) == (1, 1)


def test_bars_are_as_long_as_their_numbers() -> None:
    drawing = charts.bars(("column", "rise"), [(EVIL, "0.2", 0.2), ("b", "0.1", 0.1), ("c", "-0.1", -0.1)])
    assert drawing is not None
    assert re.findall(r"width:([\d.]+)%", drawing.html) == ["100.0", "50.0"]
    assert "<script" not in drawing.html
    assert charts.bars(("a", "b"), []) is None
    assert charts.side_by_side([]) is None


def test_records_among_the_results_of_a_task_are_a_table() -> None:
    records = [{"column": EVIL, "psi": 0.5}, {"column": "b", "psi": None}]
    page = sections_html({"next day": {"auc": 0.7, "drift": records, "empty": []}})
    assert "<th>drift<td><table><tr><th>column<th>psi<tr><td>&lt;script&gt;" in page
    assert "<script" not in page
    assert "empty" not in page


def test_names_are_broken_after_a_dot_and_nowhere_else() -> None:
    knobs = ["model.n_factors = 0.5", "training.l2_factors", "schema"]
    page = sections_html({"diagnosis": [{"what": "no better", "knobs": knobs, "more": ["two words."]}]})
    assert "<td class=w>model.<wbr>n_factors = 0.5<br>training.<wbr>l2_factors<br>schema<td>two words." in page


def test_the_place_of_another_page_is_a_link_and_nothing_else_is() -> None:
    page = sections_html(
        {"trained": {"report": '/a/"b"/report.html', "model": "/a/model", "evil": "javascript:x.html"}}
    )
    assert '<a href="/a/&quot;b&quot;/report.html">' in page
    assert page.count("<a ") == 1


def test_a_page_fetches_nothing_and_a_notebook_keeps_its_own_looks(tmp_path: Path) -> None:
    sections = {"job": preformatted(EVIL), EVIL: {EVIL: EVIL}, "none": None}
    page = Path(write_report(str(tmp_path / "r.html"), EVIL, sections)).read_text()
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=|url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme:dark" in page
    part = fragment("title", sections)
    style = part.split("</style>")[0].removeprefix("<style>")
    assert all(rule.startswith(".dfm") for rule in style.split("}") if rule)
    assert sections_html(sections) in part
