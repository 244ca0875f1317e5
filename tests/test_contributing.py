"""What contributors are told is true: paths are there, one benchmark can be chosen, every decision is in the index."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DECISIONS = ROOT / "benchmarks" / "decisions"
RECORDS = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
LINK = r"\[[^\]]+\]\((?P<{}>[^)]+)\)"
LINE = re.compile(r"\| (?P<date>\d{4}-\d\d-\d\d) \| \[(?P<title>.+)\]\((?P<file>[^)]+)\) \| (?P<status>.+) \|")
STATUS = re.compile(rf"in force|in force; [^:]+: {LINK.format('part')}|superseded by {LINK.format('whole')}")


def test_paths_that_contributing_names_exist() -> None:
    named = set(re.findall(r"[\w.*/-]+\.(?:py|md|toml|lock|yaml)\b", CONTRIBUTING))
    named -= {"benchmarks/decisions/DATE-NAME.md", "__init__.py"}
    assert len(named) > 10
    for path in named:
        assert list(ROOT.glob(path)), f"CONTRIBUTING.md names {path}, which is not there"


def test_make_targets_that_contributing_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", CONTRIBUTING)) <= targets


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would run, with no need of the environment that it would first install."""
    stamps = [option for stamp in (".venv/.installed", "tmpdir") for option in ("-o", stamp)]
    return subprocess.run(["make", "-n", *stamps, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["bench", "bench-smoke"])
def test_one_benchmark_can_be_chosen(target: str) -> None:
    def chosen(*arguments: str) -> list[str]:
        return re.findall(r"benchmarks/\S*bench_\w+\.py", make(target, *arguments).stdout)

    assert chosen() == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").rglob("bench_*.py"))
    assert chosen("ONLY=rounds kernels") == ["benchmarks/bench_rounds.py", "benchmarks/kernels/bench_kernels.py"]
    refused = make(target, "ONLY=nothing")
    assert refused.returncode != 0
    assert 'there is no benchmark "nothing"; choose of:' in refused.stderr
    assert "kernels" in refused.stderr


def test_hooks_before_a_commit_are_what_lint_runs_and_fetch_nothing() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = [hook["entry"].replace("--force-exclude", ".") for hook in repositories[0]["hooks"]]
    linted = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert linted
    commands = [command.replace("$(BIN)", ".venv/bin") for command in linted[1].replace("\t", "").splitlines()]
    assert [sorted(hook.split()) for hook in hooks] == [sorted(command.split()) for command in commands]


def title_of(record: Path) -> str:
    """The first heading, without the date that some begin or end with."""
    first = record.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    return re.sub(r"^\d{4}-\d\d-\d\d: | \(\d{4}-\d\d-\d\d\)$", "", first)


def test_the_index_of_decisions_is_complete_and_newest_first() -> None:
    lines = [line for line in (DECISIONS / "README.md").read_text(encoding="utf-8").splitlines() if "](2" in line]
    parsed = [LINE.fullmatch(line) for line in lines]
    assert all(parsed), [line for line, found in zip(lines, parsed, strict=True) if not found]
    indexed = {found["file"]: found for found in parsed if found}
    for record in RECORDS:
        line = f"| {record.name[:10]} | [{title_of(record)}]({record.name}) | in force |"
        assert record.name in indexed, f"benchmarks/decisions/README.md lacks the line {line}"
        found = indexed[record.name]
        assert (found["date"], found["title"]) == (record.name[:10], title_of(record))
        status = STATUS.fullmatch(found["status"])
        assert status, f"{record.name}: {found['status']!r} is no status"
        assert (status["part"] or status["whole"] or record.name) in indexed
    assert indexed.keys() == {record.name for record in RECORDS}
    dates = [found["date"] for found in parsed if found]
    assert dates == sorted(dates, reverse=True)
