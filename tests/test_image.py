"""The steps of deploy/Dockerfile without Docker: a clean environment of the lock file, every entry point as nobody."""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_jobs import job_tables

from dfm import synth
from dfm.kubernetes.manifest import to_toml

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


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder that others may read: `opt` is the environment of the image, owned by us, read-only for NOBODY."""
    folder = Path(tempfile.mkdtemp(prefix="dfm-image-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        source = folder / "source"
        shutil.copytree(ROOT / "dfm", source / "dfm", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        command = [ROOT / "deploy" / "install.sh", ROOT / "deploy" / "image.lock", source, folder / "opt"]
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PYTHON"] = python_for_all()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
            pytest.skip("no package index in reach")
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    synth.generate(writable / "clicks", rows=4_000, days=4, shards_per_day=1, seed=3)
    if os.getuid() == 0:  # what the user of the image could change is /tmp alone
        probe = start(image, writable, "sh", "-c", f"touch {image}/opt/lib/x || echo refused")
        assert "refused" in probe.communicate(timeout=60)[0]
    (writable / "out").mkdir()
    (writable / "out").chmod(0o777)
    version = start(image, writable, "dfm", "--version")
    assert version.communicate(timeout=120)[0].strip().endswith("0.1.0")
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
