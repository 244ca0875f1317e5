"""The README is short, and what it says is elsewhere is there."""

from __future__ import annotations

import re

from tests.support.site import DOCS, README, blocks

TEXT = README.read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(TEXT.encode()) <= 12_000


def test_it_has_one_job_file_which_is_that_of_the_site() -> None:
    (job,) = [block.text for block in blocks(README) if block.kind == "toml"]
    assert job in [block.text for block in blocks(DOCS / "howto" / "job-file.md")]


def test_parts_of_the_site_that_it_names_are_there() -> None:
    parts = re.findall(r"(?m)^\| `(\w+)/` \|", TEXT)
    assert sorted(parts) == ["explanation", "howto", "reference", "tutorials"]
    assert all((DOCS / part / "index.md").exists() for part in parts)


def test_its_figures_are_those_of_the_site() -> None:
    """A figure that is measured anew is changed in both places."""
    measured = (DOCS / "explanation" / "measured.md").read_text(encoding="utf-8")
    rows = [line for line in TEXT.split("\n") if line.startswith("| ") and "`benchmarks/" in line]
    assert len(rows) >= 4
    for row in rows:
        figure = row.split(" | ")[1]
        assert f"| {figure} |" in measured, figure
