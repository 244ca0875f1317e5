"""Every block of code in the README and the site is run, or checked, or marked as output; pages name what there is.

The convention stands in CONTRIBUTING.md. Cells of notebooks are run by `make docs`; everything else here.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import io
import itertools
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest

import dfm
import dfm.airflow
import dfm.estimators
from dfm.cli.app import cli
from dfm.settings.job import Job, describe
from dfm.settings.tables import TABLES
from dfm.training.inputs import automatic_held_out
from dfm.workflow.gate import Gate
from tests.support.site import DOCS, PAGES, README, ROOT, Block, blocks, made, maker, name_of

EVERYWHERE = [README, *PAGES]
each_page = pytest.mark.parametrize("page", EVERYWHERE, ids=name_of)
KINDS = ("python", "toml", "console", "text")
PROGRAMS = ("airflow", "curl", "dask", "dfm", "docker", "export", "helm", "kubectl", "make", "pip", "python")
"""The commands that a console block may show."""


def of_kind(kind: str) -> list[Any]:
    """The blocks of a kind, everywhere, as cases."""
    return [
        pytest.param(block, id=f"{name_of(page)}:{block.line}")
        for page in EVERYWHERE
        for block in blocks(page)
        if block.kind == kind
    ]


@each_page
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        is_known = block.kind in KINDS or block.kind.startswith("{")
        assert is_known, f"line {block.line}: {block.kind!r} is no kind of block; CONTRIBUTING.md has them"


@each_page
def test_only_notebooks_have_cells_and_front_matter_says_so(page: Path) -> None:
    has_cells = any(block.kind.startswith("{code-cell}") for block in blocks(page))
    assert has_cells == page.read_text(encoding="utf-8").startswith("---\nfile_format: mystnb\n")


# -------------------------------------------------------------------------------------------------- python ----


GUARD = 'if __name__ == "__main__":'
"""What workers of a script need; these pages are run by a process that is no script."""


def run(page: Path, found: list[Block]) -> int:
    """Run the Python blocks of a page from top to bottom in the current folder; the number of examples with output."""
    names: dict[str, Any] = {"__name__": "page"}
    examples = 0
    for block in found:
        if not block.text.startswith(">>> "):
            exec(compile(block.text.replace(GUARD, "if True:"), f"{page}:{block.line}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block.text, names, name_of(page), str(page), block.line)
        test.globs = names
        report = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test, out=report.write, clear_globs=False)
        assert runner.summarize(verbose=False).failed == 0, report.getvalue()
        examples += len(test.examples)
    return examples


@contextlib.contextmanager
def imported_anew(package: str, name: str) -> Iterator[None]:
    """A module that reads variables when it is imported is imported in the block, if at all, and stays as it was."""
    before = sys.modules.pop(f"{package}.{name}", None)
    try:
        yield
    finally:
        sys.modules.pop(f"{package}.{name}", None)
        if before is not None:
            sys.modules[f"{package}.{name}"] = before
            setattr(sys.modules[package], name, before)


def pages_of_python() -> list[Any]:
    """Pages with Python; those that train on workers of their own wait for these."""
    return [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.patient] * any(GUARD in block.text for block in found))
        for page in EVERYWHERE
        if (found := [block for block in blocks(page) if block.kind == "python"])
    ]


@pytest.mark.parametrize("page", pages_of_python())
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [block for block in blocks(page) if block.kind == "python"]
    for needed in ("sklearn", "pandas", "fastapi", "deltalake", "pyiceberg", "duckdb", "polars", "mlflow"):
        if any(re.search(rf"^(>>> )?(from|import) {needed}\b", block.text, re.MULTILINE) for block in found):
            pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ), imported_anew("pyiceberg", "catalog"), contextlib.redirect_stdout(io.StringIO()):
        examples = run(page, found)
    if page.name == "python.md" and page.parent.name == "howto":
        assert examples > 20


def test_cells_of_notebooks_are_python() -> None:
    """What `make docs` runs, as far as it can be seen without running it."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind.startswith("{code-cell}"):
                code = re.sub(r"(?m)^( *)[!%].*$", r"\1pass", re.sub(r"\A(:\w+:.*\n)+", "", block.text))
                if "%%" not in block.text:
                    ast.parse(code, f"{page}:{block.line}")


# ---------------------------------------------------------------------------------------------------- toml ----


def job_files() -> list[Any]:
    """TOML blocks, and what cells write into job files."""
    cells = [
        pytest.param(Block("toml", block.text.split("\n", 1)[1], block.line), id=f"{name_of(page)}:{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.text.startswith("%%writefile job.toml")
    ]
    return [*of_kind("toml"), *cells]


@pytest.mark.parametrize("block", job_files())
def test_toml_is_a_job_or_tables_of_one(block: Block) -> None:
    tables = tomllib.loads(block.text)
    assert tables
    if "train" in tables.get("data", {}):
        Job.from_dict(tables)
    for name, table in tables.items():
        TABLES[name].from_dict(table)


# ------------------------------------------------------------------------------------------------- console ----


def context_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command of dfm that these words begin with, and the rest of them."""
    name = next(word for word in words if not word.startswith("-"))
    command = cli.commands[name]
    return command, words[words.index(name) + 1 :]


def check_dfm(words: list[str]) -> None:
    """UsageError where the command has no such option or value; AssertionError for an unknown knob."""
    command, rest = context_of(words)
    root = click.Context(cli, info_name="dfm", **cli.context_settings)  # a command keeps the names of its help option
    with root.scope():
        command.make_context(command.name, list(rest), parent=root)
    knobs = {one.name for one in describe()}
    for option, value in itertools.pairwise(rest):
        if option == "--set":
            assert value.split("=")[0] in knobs, value


@pytest.mark.parametrize("block", of_kind("console"))
def test_commands_of_a_console_are_there(block: Block) -> None:
    joined = block.text.replace("\\\n", " ").rstrip("\n")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in joined.split("\n"):
        assert line.startswith("$ "), f"{line!r}: output belongs into a block of its own, ```text"
        for words in split_commands(line[2:]):
            assert words[0] in PROGRAMS, words
            if words[0] == "dfm":
                check_dfm(words[1:])
            if words[0] == "make":
                assert words[1] in targets
            if words[0] == "python" and words[1] not in ("-c", "-m"):
                assert (ROOT / words[1]).exists(), words[1]


def split_commands(line: str) -> list[list[str]]:
    """The commands of a line with pipes, without comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word == "|":
            found.append([])
        else:
            found[-1].append(word)
    return found


def test_a_command_that_is_not_there_is_found() -> None:
    check_dfm(["train", "job.toml", "--set", "training.learning_rate=0.1"])
    for wrong in (["train", "job.toml", "--sett", "a=b"], ["evaluate", "m", "d", "--on-bad-rows", "stop"]):
        with pytest.raises(click.UsageError):
            check_dfm(wrong)
    with pytest.raises(AssertionError):
        check_dfm(["train", "job.toml", "--set", "training.rate=0.1"])


# ------------------------------------------------------------------------------------- names and links ----


@each_page
def test_tests_and_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    for name in re.findall(r"`((?:tests|dfm|benchmarks|deploy|pipelines)/[^` ]+)", text):
        assert "_build/" in name or (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", "".join(re.split(r"```.*?```", text, flags=re.DOTALL))):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    assert not re.findall(r'README, "[^"]+"', text), "the README says less than the site: link to one of its pages"


def test_every_page_that_is_made_is_included_and_every_one_included_is_made() -> None:
    for name in maker().PAGES:
        assert made(name).strip()
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"_build/made/(\w+)\.md", text)) == set(maker().PAGES)
    assert set(re.findall(r"_build/copies/(\S+)\.md", text)) == set(maker().COPIES.values())


def test_the_reference_has_every_knob_and_every_public_name() -> None:
    knobs = made("knobs")
    for one in describe():
        assert f"`{one.name} = {one.default}`" in knobs
    python = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for name in {*dfm.__all__} - {"__version__", "DfmError", "export"}:
        assert re.search(rf"auto\w+:: dfm\.{name}\n", python), name
    for name in dfm.estimators.__all__:
        assert f":: dfm.estimators.{name}\n" in python, name
    operators = made("airflow")
    for name in dfm.airflow.__all__:
        assert re.search(rf"## {name}\n\n\w", operators), name


def test_the_glossary_has_every_word_of_the_package() -> None:
    words = re.findall(r"(?m)^([\w ,]+)\n    \S", (dfm.__doc__ or "").split("--------\n", 1)[1])
    assert len(words) > 50
    for word in words:
        assert f"\n{word}\n    " in made("glossary"), word


def test_the_exit_codes_are_those_of_the_errors_and_of_the_command() -> None:
    table = made("exit_codes")
    for name, kind in vars(dfm.errors).items():
        if isinstance(kind, type) and issubclass(kind, dfm.errors.DfmError):
            (line,) = [line for line in table.split("\n") if line.startswith("| ") and f"`dfm.errors.{name}`" in line]
            assert line.startswith(f"| {kind.exit_code} | ")
    assert len(re.findall(r"(?m)^\| \d+ \|", table)) == 11


def test_the_page_of_airflow_has_every_threshold_of_the_gate() -> None:
    text = (ROOT / "deploy" / "airflow" / "README.md").read_text(encoding="utf-8")
    table = text.split("`dfm.workflow.gate.Gate` in full:\n\n", 1)[1].split("\n\n", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in table.split("\n")[2:]]
    told = {name: value for row in rows for name, value in zip(row[0].split(", "), row[1].split(", "), strict=True)}
    assert told == {f"`{entry.name}`": str(entry.default) for entry in dataclasses.fields(Gate)}


@pytest.mark.parametrize("page", [DOCS / "howto" / "job-file.md", DOCS / "explanation" / "defaults.md"], ids=name_of)
def test_rows_that_are_held_out_are_as_many_as_a_page_says(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    pattern = r"a tenth is held out, at least (N) rows \(a fifth .*?\) and at most (N), and none of fewer than (N)"
    (found,) = re.findall(pattern.replace("N", r"[\d,]+"), text)
    least, most, n_rows = (int(number.replace(",", "")) for number in found)
    assert automatic_held_out(5 * least - 5) == least - 1
    assert automatic_held_out(5 * least) == automatic_held_out(10 * least) == least
    assert automatic_held_out(10 * most - 10) == most - 1
    assert automatic_held_out(20 * most) == most
    assert (automatic_held_out(n_rows - 1), automatic_held_out(n_rows)) == (0, n_rows // 5)


def test_test_vectors_of_the_hashing_are_those_of_another_library() -> None:
    xxhash = pytest.importorskip("xxhash")
    rows = re.findall(r"(?m)^\| `(.+?)` \| `(.+?)` \| .*? \| `(\w+)` \| `(\w+)` \| (\d+) \|$", made("hash_vectors"))
    assert len(rows) >= 10
    for column, text, seed, hashed, index in rows:
        value = ast.literal_eval(text) if text.startswith("b'") else text.encode()
        assert xxhash.xxh64_intdigest(column.encode(), 0) == int(seed, 16)
        assert xxhash.xxh64_intdigest(value, int(seed, 16)) == int(hashed, 16)
        assert int(hashed, 16) % 2**20 == int(index)


def test_the_map_of_the_site_has_every_page() -> None:
    listed = re.findall(r"(?m)^- (\S+\.html):", (DOCS / "llms.txt").read_text(encoding="utf-8"))
    there = {str(page.relative_to(DOCS).with_suffix(".html")) for page in PAGES}
    assert sorted(listed) == sorted(there), "deploy/docs/llms.txt has a line for each page"


def test_nothing_of_the_site_needs_sphinx_to_be_checked() -> None:
    assert "sphinx" not in sys.modules
