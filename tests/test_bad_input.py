"""Every bad input of the table has its documented message and exit code, on the command line and from Python."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dfm import jobs
from dfm.cli import app
from dfm.distributed.cluster import connect
from dfm.errors import DataError, DfmError, RunCancelled, SettingsError, StorageError
from dfm.runs.display import Reporter
from dfm.settings.tables import ClusterSettings
from tests.support.bad_inputs import ROWS, TABLE, BadInput, markdown, write_good
from tests.support.site import made
from tests.support.small_jobs import in_process_client

CASES = [pytest.param(case, id=name) for name, case in TABLE.items()]
SKIPPABLE = [pytest.param(case, id=name) for name, case in TABLE.items() if case.skipped]
LONGEST = 1500
"""Characters of a message, however long the value that it is about."""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(1) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good shards."""
    write_good(tmp_path / "data")
    return tmp_path / "data"


def tables(folder: Path, case: BadInput | None = None, **data: Any) -> dict[str, dict[str, Any]]:
    """The job of the table's rows."""
    job: dict[str, dict[str, Any]] = {
        "data": {"train": str(folder)},
        "schema": {"weight": "w", "categorical": ["C"], "numeric": ["I"], "lists": ["L"]},
        "model": {"n_factors": 2, "hash_bits": 12, "min_count": 1, "min_count_factors": 1},
        "training": {"n_replicas": 2, "n_epochs": 2, "averages_per_epoch": 1, "early_stopping": False},
        "cluster": {"cache": str(folder.parent / "cache"), "workers": 1},
        "output": {"directory": str(folder.parent / "out")},
    }
    for name, table in (case.changes if case else {}).items():
        job[name] = {**job[name], **table}
    job["data"] |= data
    return job


def spoiler(case: BadInput, folder: Path) -> Callable[[dict[str, Any]], None]:
    """An observer that spoils the shards at the case's event."""
    if case.meets == "before":
        case.spoil(folder)
    done: list[bool] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == case.meets and not done:
            done.append(True)
            case.spoil(folder)

    return on_event


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments, an observer beside its reporter: exit code, standard output and error."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(logging.getLogger("dfm"), "handlers", [])
    plain = Reporter.__call__

    def call(observe: Callable[[dict[str, Any]], None], *arguments: str) -> tuple[int, str, str]:
        def both(self: Reporter, event: dict[str, Any]) -> None:
            plain(self, event)
            observe(event)

        monkeypatch.setattr(Reporter, "__call__", both)
        monkeypatch.setattr(sys, "argv", ["dfm", *arguments])
        with pytest.raises(SystemExit) as exited:
            app.main()
        printed = capsys.readouterr()
        assert isinstance(exited.value.code, int)
        return exited.value.code, printed.out, printed.err

    return call


def job_file(job: dict[str, dict[str, Any]], path: Path) -> str:
    """JSON's strings, numbers and lists are TOML's."""
    lines = [
        f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items()) for name, table in job.items()
    ]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_says_what_is_wrong_and_exits_with_its_code(
    case: BadInput, folder: Path, client: Client, run: Run
) -> None:
    observe = spoiler(case, folder)
    job = job_file(tables(folder, case), folder.parent / "job.toml")
    code, out, err = run(observe, "train", job, "--json", "--scheduler", client.scheduler.address)
    assert code == case.code, err
    if not case.message:
        done = json.loads(out.splitlines()[-1])
        assert done["event"] == "done"
        assert done["rows"]["read"] == done["rows"]["trained"] == 2 * ROWS
        assert (folder.parent / "out" / "model" / "model.json").exists()
        return
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert re.search(case.message, line), line
    assert len(line) < LONGEST
    assert not (folder.parent / "out" / "model" / "model.json").exists()
    record = json.loads((folder.parent / "out" / "run.json").read_bytes())
    assert (record["state"], record["error"]["exit_code"]) == ("failed", case.code)


@pytest.mark.parametrize("case", CASES)
def test_the_library_raises_the_same_message(case: BadInput, folder: Path, client: Client) -> None:
    observe = spoiler(case, folder)
    if not case.message:
        result = jobs.train(tables(folder, case), client, on_event=observe)
        assert (result.rows.read, result.rows.accepted) == (2 * ROWS, 2 * ROWS)
        return
    with pytest.raises(DfmError, match=case.message) as refusal:
        jobs.train(tables(folder, case), client, on_event=observe)
    assert refusal.value.exit_code == case.code


@pytest.mark.parametrize("case", SKIPPABLE)
def test_a_job_that_skips_leaves_the_row_out_and_counts_it(case: BadInput, folder: Path, client: Client) -> None:
    observe = spoiler(case, folder)
    skipping = {"on_bad_rows": "skip", "max_bad_fraction": 0.02}
    result = jobs.train(tables(folder, case, **skipping), client, on_event=observe)
    assert (result.rows.read, result.rows.accepted, result.rows.rejected) == (2 * ROWS, 2 * ROWS - 1, 1)
    (reason,) = result.model.metadata["rows"]["reasons"]
    assert reason.split(": ")[1] in case.message.replace("\\", "")
    with pytest.raises(DataError, match=r"1 of 80 rows are bad, more than data\.max_bad_fraction = 0\.01 allows"):
        jobs.train(tables(folder, case, on_bad_rows="skip", max_bad_fraction=0.01), client)


def test_a_type_that_changes_without_changing_the_values_changes_no_byte(folder: Path, client: Client) -> None:
    before = jobs.train(tables(folder), client).parameters_sha256
    TABLE["changed type, same values"].spoil(folder)
    assert jobs.train(tables(folder), client).parameters_sha256 == before


def test_a_run_that_was_stopped_does_not_go_on_with_other_data(folder: Path, client: Client) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            raise RunCancelled("asked to stop")

    with pytest.raises(RunCancelled):
        jobs.train(tables(folder), client, on_event=stop)
    assert list((folder.parent / "out" / "checkpoint").glob("*.json"))
    TABLE["shard that changed"].spoil(folder)
    with pytest.raises(SettingsError, match=r"belongs to another job: the shard .*b\.parquet changed since then"):
        jobs.train(tables(folder), client)


def test_a_lost_worker_does_not_make_its_partitions_again_from_a_shard_that_changed(folder: Path) -> None:
    """A real process: it dies between two epochs, with the cache and all that it held, and the shard is another one."""
    job = tables(folder)
    job["training"]["n_epochs"] = 60
    killed: list[int] = []
    with connect.connect(ClusterSettings(workers=1, cache=job["cluster"]["cache"])) as own:

        def lose_the_worker(event: dict[str, Any]) -> None:
            if event["event"] == "epoch" and not killed:
                TABLE["shard that changed"].spoil(folder)
                shutil.rmtree(job["cluster"]["cache"])
                killed.append(next(iter(own.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        with pytest.raises(DataError, match=TABLE["shard that changed"].message):
            jobs.train(job, own, on_event=lose_the_worker)
    assert killed


def test_the_site_holds_the_table() -> None:
    assert made("bad_inputs") == markdown()
    assert all(f"| {case.what} | {case.answer} | " in markdown() for case in TABLE.values())


# --- files and disks ------------------------------------------------------------------------------------


def test_a_shard_that_may_not_be_read_is_named(folder: Path) -> None:
    """Root reads everything, so a child becomes nobody, after it has imported what only root may read."""
    program = (
        "import os, sys\nfrom dfm.errors import DataError\nfrom dfm.data.parquet import find_shards\n"
        "find_shards([sys.argv[1]])\n"
        "os.chmod(sys.argv[1] + '/b.parquet', 0)\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "os.chdir(sys.argv[1])\n"
        "try: find_shards([sys.argv[1]])\n"
        "except DataError as error: print(error); sys.exit(error.exit_code)"
    )
    private = [path for path in (folder, *folder.parents) if path.stat().st_uid == os.geteuid()]
    modes = {path: path.stat().st_mode for path in private if not path.stat().st_mode & 0o001}
    for _ in range(5):  # a pytest that begins beside this one closes the folder above to others again
        try:
            for path, mode in modes.items():
                path.chmod(mode | 0o055)
            done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        if "PermissionError" not in done.stderr:
            break
    assert done.returncode == 3, done
    assert re.search(r"b\.parquet may not be read: permission denied; check its access rights", done.stdout)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB, where root may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_below_the_cache_is_told_with_what_is_free(tiny_disk: Path, folder: Path, client: Client) -> None:
    write_good(folder)
    job = tables(folder)
    job["cluster"]["cache"] = str(tiny_disk / "cache")
    (tiny_disk / "fill").write_bytes(b"x" * 60_000)
    with pytest.raises(StorageError, match=rf"{tiny_disk}/cache/.* cannot be written: .*bytes free; make room") as full:
        jobs.train(job, client)
    assert full.value.exit_code == 8


def test_a_file_that_may_not_grow_is_told_like_a_full_disk(folder: Path) -> None:
    """With a limit on file sizes; needs no root."""
    program = (
        "import resource, sys, pathlib, numpy as np\nfrom dfm.storage.arrays import write_arrays\n"
        "from dfm.errors import StorageError\nimport signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: write_arrays(pathlib.Path(sys.argv[1]), {'a': np.zeros(100_000, np.uint8)})\n"
        "except StorageError as error: print(error); sys.exit(error.exit_code)"
    )
    command = [sys.executable, "-c", program, str(folder / "cache" / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 8, done
    assert re.search(
        r"x\.safetensors cannot be written: .*make room there, or name a folder on another disk", done.stdout
    )
    assert list((folder / "cache").iterdir()) == []


def test_a_cache_that_may_not_be_written_is_told(folder: Path, client: Client) -> None:
    (folder.parent / "file").write_bytes(b"")
    job = tables(folder)
    job["cluster"]["cache"] = str(folder.parent / "file" / "cache")
    with pytest.raises(StorageError, match=r"file/cache/.* cannot be written: .*cluster\.cache"):
        jobs.train(job, client)
