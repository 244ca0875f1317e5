"""What pip gets: a name of its own, extras by one command, a source whose tests run, a README that holds."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import dfm
from dfm.version import DISTRIBUTION, pip_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [
    path
    for folder in ("dfm", "pipelines", "benchmarks", "deploy", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".sh", ".toml", ".yaml") and path != Path(__file__)
]
"""Files that may tell somebody what to install."""


def test_the_name_and_the_version_are_said_once() -> None:
    assert (PROJECT["name"], PROJECT["version"]) == (DISTRIBUTION, dfm.__version__)


def test_nobody_is_told_to_install_the_distribution_of_others() -> None:
    for path in [*TEXTS, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]:
        found = re.findall(r"(?<![\w-])dfm\[[a-z]\w*\]|pip install dfm\b", path.read_text(encoding="utf-8"))
        assert found == (["pip install dfm"] if path.name == "README.md" and path.parent == ROOT else []), path


def test_the_oldest_dask_that_is_tested_is_the_oldest_that_is_allowed() -> None:
    allowed = {name: floor for name, floor in (each.split(">=") for each in PROJECT["dependencies"])}
    pinned = dict(re.findall(r"^([a-z]+)==(\S+)", (ROOT / "requirements-oldest-dask.lock").read_text(), re.M))
    assert pinned == {name: f"{allowed[name]}.0" for name in ("dask", "distributed")}


def test_the_oldest_airflow_that_the_page_names_is_the_oldest_that_is_allowed() -> None:
    extras = PROJECT["optional-dependencies"]
    (floor,) = re.findall(
        r"Airflow (\S+) or newer", (ROOT / "deploy" / "airflow" / "README.md").read_text(encoding="utf-8")
    )
    assert f"apache-airflow>={floor}" in extras["airflow"]
    assert f"apache-airflow>={floor}" in extras["airflow-dev"]
    assert floor == "3.3", "the first whose triggers end what a task that is cleared waits for (BaseTrigger.on_kill)"


def test_every_extra_that_a_text_names_is_there() -> None:
    assert pip_install("sklearn", "plots") == 'pip install "dask-fm[sklearn,plots]"'
    extras = PROJECT["optional-dependencies"].keys()
    for path in [*TEXTS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        named = [*re.findall(r"dask-fm\[([a-z0-9,]+)\]", text), *re.findall(r"pip_install\(['\"](\w+)['\"]\)", text)]
        assert {extra for names in named for extra in names.split(",")} <= {*extras}, path


def test_links_of_the_readme_need_no_file_beside_it() -> None:
    headings = {re.sub(r"[^\w]+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)}
    targets = re.findall(r"\]\(([^)\s]+)\)", README)
    assert targets
    assert [target for target in targets if not target.startswith("https://") and target[1:] not in headings] == []


def tracked() -> set[str]:
    """The files that belong to the source, by git; empty where this is no clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return set()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_archive_of_the_source_holds_all_that_its_tests_read(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed")
    expected = {name for name in tracked() if not name.startswith(".ci/")}
    if not expected:
        pytest.skip("no clone")
    (path,) = builder.SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert Path(path).name == f"dask_fm-{dfm.__version__}.tar.gz"
    assert expected - names == set()


def test_a_wheel_is_the_package_under_the_name_of_the_distribution(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(io.BytesIO(Path(path).read_bytes())) as wheel:
        names = wheel.namelist()
        metadata = message_from_bytes(wheel.read(next(name for name in names if name.endswith("/METADATA"))))
    assert Path(path).name == f"dask_fm-{dfm.__version__}-py3-none-any.whl"
    assert metadata["Name"] == DISTRIBUTION
    assert {name.split("/")[0] for name in names} == {"dfm", f"dask_fm-{dfm.__version__}.dist-info"}
    assert {*PROJECT["optional-dependencies"]} == {*metadata.get_all("Provides-Extra", [])}
