"""The steps of deploy/Dockerfile without Docker: a clean environment of the lock file, every entry point as nobody."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dfm.data import synthetic
from dfm.settings.toml import to_toml
from tests.support.small_jobs import job_tables

ROOT = Path(__file__).parents[1]
NOBODY = 10001
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_the_image_runs_as_a_number_under_an_init_and_is_built_from_lock_files() -> None:
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.M)
    assert re.search(r'^ENTRYPOINT \["dumb-init", "--"\]$', DOCKERFILE, re.M)
    for lock in ("image.lock", "image-cuda12.lock"):
        assert f"/source/deploy/{lock}" in DOCKERFILE
        pinned = [line for line in (ROOT / "deploy" / lock).read_text().splitlines() if re.match(r"[a-z]", line)]
        assert all("==" in line for line in pinned)
        names = {line.split("==")[0] for line in pinned}
        assert {"dask", "distributed", "numba", "pyarrow", "s3fs", "prometheus-client", "dumb-init"} <= names
        assert not names & {"pytest", "mypy", "ruff"}
    assert "cupy-cuda12x" in (ROOT / "deploy" / "image-cuda12.lock").read_text()


def test_image_and_tests_run_the_same_versions_of_what_decides_the_bytes() -> None:
    def pins(lock: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.M))

    image, tests = pins(ROOT / "deploy" / "image.lock"), pins(ROOT / "requirements.lock")
    for name in ("dask", "distributed", "numba", "llvmlite", "numpy", "pyarrow", "fsspec", "safetensors"):
        assert image[name] == tests[name], name


def python_for_all() -> str:
    """A Python that the user of the image may run too."""
    other = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    test = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    found: Any
    for found in (sys._base_executable, shutil.which("python3", path="/usr/local/bin:/usr/bin")):  # type: ignore[attr-defined]
        try:
            if (
                found
                and subprocess.run([found, "-c", test], cwd="/", stderr=subprocess.DEVNULL, **other).returncode == 0
            ):
                return str(found)
        except PermissionError:
            continue
    pytest.skip("no Python of at least 3.11 with venv that another user could run")


@pytest.fixture(scope="module", params=["from the index", "from wheels"])
def image(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that others may read: `opt` is the environment of the image, owned by us, read-only for NOBODY."""
    folder = Path(tempfile.mkdtemp(prefix="dfm-image-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        source = folder / "source"
        shutil.copytree(ROOT / "dfm", source / "dfm", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        lock, wheels = ROOT / "deploy" / "image.lock", folder / "wheels"
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PYTHON"] = python_for_all()
        if request.param == "from wheels":
            run_or_skip([ROOT / "deploy" / "wheels.sh", lock, wheels], environment)
            environment = without_index(environment)
        install = [ROOT / "deploy" / "install.sh", lock, source, folder / "opt", wheels]
        run_or_skip([*unconnected(), *install] if wheels.exists() else install, environment)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_or_skip(command: list[Any], environment: dict[str, str]) -> None:
    """Run a step of the build; where it needs a package index and there is none, the test is skipped."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    missing = "No matching distribution" in done.stderr or "Could not find a version" in done.stderr
    if missing and "PIP_CONFIG_FILE" not in environment:
        pytest.skip("no package index in reach")
    assert done.returncode == 0, done.stderr


def unconnected() -> list[str]:
    """What to put before a command so that it has no network; nothing where that takes rights that we lack."""
    alone = ["unshare", "-n"]
    allowed = os.getuid() == 0 and shutil.which("unshare") and subprocess.run([*alone, "true"]).returncode == 0
    return alone if allowed else []


def without_index(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with pip's settings gone and an index that nobody serves."""
    kept = {key: value for key, value in environment.items() if not key.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/"}


def start(image: Path, tmp: Path, *command: str, init: bool = True) -> subprocess.Popen[str]:
    """A command of the image as its user, with /tmp as the only place to write."""
    environment = {
        "PATH": f"{image}/opt/bin:/usr/bin:/bin", "HOME": str(tmp), "TMPDIR": str(tmp), "PYTHONUNBUFFERED": "1",
        "NUMBA_CACHE_DIR": f"{tmp}/numba", "DASK_TEMPORARY_DIRECTORY": str(tmp), "PYTHONDONTWRITEBYTECODE": "1",
        "DASK_ROOT_CONFIG": str(image / "etc"), "LANG": "C.UTF-8",
    }  # fmt: skip
    extra: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    whole = [f"{image}/opt/bin/dumb-init", "--", *command] if init else list(command)
    return subprocess.Popen(
        whole, env=environment, cwd=tmp, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **extra
    )


@pytest.fixture
def writable(image: Path) -> Path:
    """What /tmp is in the image."""
    folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=image))
    folder.chmod(0o777)
    return folder


@pytest.mark.slow
def test_every_entry_point_works_for_a_user_who_can_write_nothing_but_tmp(image: Path, writable: Path) -> None:
    synthetic.generate(writable / "clicks", rows=4_000, days=4, shards_per_day=1, seed=3)
    if os.getuid() == 0:  # what the user of the image could change is /tmp alone
        probe = start(image, writable, "sh", "-c", f"touch {image}/opt/lib/x || echo refused")
        assert "refused" in probe.communicate(timeout=60)[0]
    (writable / "out").mkdir()
    (writable / "out").chmod(0o777)
    version = start(image, writable, "dfm", "--version")
    assert version.communicate(timeout=120)[0].strip().endswith("0.2.0")
    file = writable / "scheduler.json"
    scheduler = start(
        image, writable, "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address",
        "127.0.0.1:0", "--scheduler-file", str(file),
    )  # fmt: skip
    processes = [scheduler]
    try:
        deadline = time.monotonic() + 120
        while not (file.exists() and file.read_text().endswith("}")) and time.monotonic() < deadline:
            time.sleep(0.1)
        told = json.loads(file.read_text())
        port = told["services"]["dashboard"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as health:
            assert health.read() == b"ok"
        processes.append(start(image, writable, "dask", "worker", told["address"], "--nthreads", "1"))
        tables = job_tables(
            writable / "clicks", writable, cluster={"scheduler": told["address"], "worker_timeout": 120}
        )
        (writable / "job.toml").write_text(to_toml(tables))
        drive = start(image, writable, "dfm", "drive", str(writable / "job.toml"), "--attempts", "1")
        out, _ = drive.communicate(timeout=300)
        assert drive.returncode == 0, out
        done = json.loads(out.splitlines()[-1])
        assert done["event"] == "done"
        assert (writable / "out" / "model" / "model.json").exists()
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        ended = [process.communicate(timeout=30) for process in processes]
    assert all(process.returncode is not None for process in processes), ended


@pytest.mark.slow
def test_the_init_passes_on_the_signal_that_ends_a_pod(image: Path, writable: Path) -> None:
    process = start(image, writable, "python", "-c", "print('up', flush=True); import time; time.sleep(100)")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert time.monotonic() - started < 5


# --- without a package index -----------------------------------------------------------------------------


def wheel_of(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Write a small wheel of version 1.0; its line for a lock file."""
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, data in files.items():
            archive.writestr(inner, data)
        archive.writestr(f"{info}/RECORD", "".join(f"{inner},,\n" for inner in [*files, f"{info}/RECORD"]))
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def install_offline(folder: Path) -> subprocess.CompletedProcess[str]:
    """deploy/install.sh of the wheels in `folder`, without a network where that can be had, and with none in use."""
    environment = without_index({**os.environ, "PYTHON": sys.executable})
    parts = [folder / "lock", folder / "source", folder / "opt", folder / "wheels"]
    shutil.rmtree(folder / "opt", ignore_errors=True)
    return subprocess.run(
        [*unconnected(), ROOT / "deploy" / "install.sh", *parts], capture_output=True, text=True, env=environment
    )


def test_an_image_is_installed_from_a_folder_of_wheels_alone_and_not_from_an_older_state(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "source" / "dfm").mkdir(parents=True)
    (tmp_path / "source" / "dfm" / "__init__.py").write_text("state = 1\n")
    wheel_of(tmp_path / "wheels", "dask_fm", {"dfm/__init__.py": b"state = 1\n"})
    (tmp_path / "lock").write_text(wheel_of(tmp_path / "wheels", "needed", {"needed.py": b""}))
    done = install_offline(tmp_path)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [tmp_path / "opt" / "bin" / "python", "-c", "import dfm, needed; print(dfm.state)"],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert told.stdout == "1\n"

    (tmp_path / "source" / "dfm" / "__init__.py").write_text("state = 2\n")
    stale = install_offline(tmp_path)
    assert stale.returncode != 0
    assert "is not of this source: run deploy/wheels.sh again" in stale.stderr
