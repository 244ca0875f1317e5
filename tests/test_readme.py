"""What the README shows of Python is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
pytest.importorskip("sklearn", minversion="1.6")
pytest.importorskip("pandas")


def section(title: str) -> str:
    """The text below a heading, up to the next one of the same level."""
    return README.read_text(encoding="utf-8").split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_python_section_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", section("From Python"), flags=re.DOTALL)
    assert all(block.startswith(">>> ") for block in blocks)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "From Python", str(README), 0)
    assert len(test.examples) > 20
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, clear_globs=True)
    report = capsys.readouterr().out
    assert runner.summarize(verbose=False).failed == 0, report
