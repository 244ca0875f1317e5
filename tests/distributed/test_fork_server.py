"""Local workers of a training command are forked from a process that has imported what they need; elsewhere they are
started anew. Whichever it is, they are alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dfm import cli
from dfm.distributed.cluster import fork_server
from tests.support.real_processes import wait_until, write_job
from tests.support.small_jobs import job_tables

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are started anew")

SCRIPT = """\
import json, os, sys
{before}

def told():
    import gc, logging, signal, dask
    from dfm.distributed.exchange import process_name
    ways = ("distributed.worker.multiprocessing-method",)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)
    return dict(
        name=process_name(), parent=os.getppid(), modules=[name for name in {heavy} if name in sys.modules],
        environment={{name: value for name, value in os.environ.items() if name != "__DASK_PARENT_PID"}},
        path=[folder for folder in sys.path if "dask-scratch-space" not in folder],
        hash=hash("dfm"), folder=os.getcwd(), signals=[str(signal.getsignal(one)) for one in signals],
        config={{key: value for key, value in dask.config.get("distributed.nanny").items() if key not in ways}},
        levels=[logging.getLogger(name).level for name in ("", "distributed", "tornado.application", "dfm")],
        collects=[gc.isenabled(), gc.get_threshold()], limit=sys.getrecursionlimit(),
    )

def at_the_end(path):
    import atexit
    from pathlib import Path
    atexit.register(Path(path).write_text, "over")

if __name__ == "__main__":
    from dfm.distributed.cluster import fork_server
    fork_server.begin()
    {after}
    from dfm.distributed.cluster.connect import connect
    from dfm.settings.tables import ClusterSettings
    with connect(ClusterSettings(workers=2)) as client:
        first = client.run(told)
        parents = sorted({{worker["parent"] for worker in first.values()}})
        threads = [open(f"/proc/{{parent}}/task/{{one}}/comm").read().strip() for parent in parents
                   for one in os.listdir(f"/proc/{{parent}}/task")]
        client.restart_workers(list(first)[:1], timeout=60)
        again = {{address: worker for address, worker in client.run(told).items() if worker not in first.values()}}
        client.run(at_the_end, "over", workers=list(first)[1:])
    fork_server.end()
    print(json.dumps(dict(workers=[*first.values(), *again.values()], threads=threads, own=os.getpid())))
"""
HEAVY = ("numba", "scipy.linalg", "pyarrow.parquet", "distributed.nanny", "dfm.training.rounds")
SPARED = ("pandas", "numpy.f2py")
AT_THE_END = """
import atexit, os, sys
from pathlib import Path
def tell():
    spared = [name for name in ("pandas", "numpy.f2py") if name in sys.modules]
    Path(__file__).with_name(f"{os.getpid()}.txt").write_text(f"{'distributed' in sys.modules} {spared}")
atexit.register(tell)
"""
OF_WORKERS = {*fork_server.ENVIRONMENT, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED"}


def told_by(folder: Path, before: str = "", after: str = "", **environment: str) -> dict[str, Any]:
    """What worker processes, one of which was restarted, tell of themselves."""
    script = folder / "script" / "script.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT.format(before=before, after=after, heavy=(*HEAVY, *SPARED)))
    # Local clusters of this process leave the variables of their workers in its own environment, where they count.
    own = {name: value for name, value in os.environ.items() if name not in OF_WORKERS}
    finished = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True, text=True, timeout=180, check=False, cwd=folder, env={**own, **environment},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "started again" not in finished.stderr, "the first start was none"
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@pytest.fixture(autouse=True)
def _short_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files whose path leaves room for the name of a socket."""
    monkeypatch.setenv("TMPDIR", "/tmp")


SPAWN = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "spawn"}
OF_EACH = ("name", "parent", "modules")


def test_forked_workers_are_what_workers_are_that_are_started_anew(tmp_path: Path) -> None:
    forked, anew = told_by(tmp_path), told_by(tmp_path, **SPAWN)
    *parents, of_the_restarted = dict.fromkeys(worker["parent"] for worker in forked["workers"])
    assert len(parents) == 1
    assert forked["own"] == of_the_restarted
    assert {worker["parent"] for worker in anew["workers"]} == {anew["own"]}
    for worker, other in zip(forked["workers"], anew["workers"], strict=True):
        other["environment"].pop("DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD")
        for what in worker.keys() - {*OF_EACH}:
            assert worker[what] == other[what], what
        assert worker["parent"] == of_the_restarted or worker["modules"] == [*HEAVY], "imported before"
    assert len({worker["name"] for worker in forked["workers"]}) == 3, "two, and one that was restarted"


def test_no_process_of_a_training_command_imports_what_it_can_spare(log: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(AT_THE_END)
    job = write_job(tmp_path / "job.toml", job_tables(log, tmp_path, cluster={"workers": 2}))
    own = {name: value for name, value in os.environ.items() if name not in OF_WORKERS}
    own["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [own.get("PYTHONPATH")])])
    finished = subprocess.run(
        [sys.executable, "-m", "dfm", "train", str(job), "--json"], env=own, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    told = [file.read_text() for file in site.glob("*.txt")]
    assert sorted(each for each in told if each.startswith("True")) == ["True []"] * 3, "the command, and two workers"


def test_the_process_that_is_forked_has_no_thread_that_a_fork_would_lose(tmp_path: Path) -> None:
    threads = told_by(tmp_path)["threads"]
    assert len(threads) <= 2, "a fork has but the thread that forked"
    others = [name for name in threads if name != "jemalloc_bg_thd"]
    assert len(others) == 1, "…and jemalloc knows of forks"


def test_what_a_forked_worker_registered_for_its_end_happens(tmp_path: Path) -> None:
    told_by(tmp_path)
    assert (tmp_path / "over").read_text() == "over"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import distributed", ""),
        ("os.environ['DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD'] = 'spawn'", ""),
        ("import tempfile; tempfile.tempdir = os.path.dirname(os.path.abspath(__file__)).ljust(61, '/')", ""),
        ("import multiprocessing.forkserver; multiprocessing.forkserver.ensure_running = None", ""),
        ("", "os.kill(fork_server._begun[0].number, 9)"),
        ("", "import dask; dask.config.set({'distributed.nanny.environ': {'NUMBA_OPT': 1}})"),
        ("", "import dask; dask.config.set({'distributed.worker.preload': ['json']})"),
        ("", "import dask; dask.config.set({'distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS': 2})"),
        ("", "import dask; dask.config.set({'distributed.nanny.pre-spawn-environ.PYTHONHASHSEED': '7'})"),
    ],
    ids=[
        "Dask is there",
        "another way is wished for",
        "no room for the name of a socket",
        "the process cannot be begun",
        "it was killed",
        "a user's variables for workers",
        "a user's module that workers begin with",
        "Dask is to give them other variables",
        "…and another seed",
    ],
)
def test_elsewhere_workers_are_started_by_the_command(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "tornado.py").write_text("raise SystemExit('the module of a user')\n")
    found = told_by(tmp_path, before, after)
    assert {worker["parent"] for worker in found["workers"]} == {found["own"]}


def test_modules_of_the_working_directory_are_none_of_the_process_that_is_forked(tmp_path: Path) -> None:
    for name in ("queue", "tornado", "pandas"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the module of a user')\n")
    found = told_by(tmp_path)
    assert found["workers"][0]["modules"] == [*HEAVY]


@pytest.mark.parametrize("is_found", [True, False])
def test_dfm_of_the_working_directory_is_not_taken_from_elsewhere(
    is_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout in which `python -m dfm` runs, beside another dfm that is installed."""
    home = str(Path(fork_server.__file__).parents[3])
    other = tmp_path / "dfm" / "__init__.py"
    other.parent.mkdir()
    other.touch()
    path = ["", home, str(tmp_path)] if is_found else ["", str(tmp_path), home]
    monkeypatch.setattr(sys, "path", path)
    assert fork_server._finds_dfm() == is_found


def test_a_process_that_was_forked_itself_ends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    of_another = fork_server._Begun(command=1, number=os.getpid(), environment={})
    monkeypatch.setattr(fork_server, "_begun", [of_another])
    assert fork_server.start_method() == {}
    assert fork_server._begun == []


def test_where_something_cannot_be_imported_the_process_ends_and_says_why() -> None:
    lines = "import sys", "sys.modules['distributed.nanny'] = None", "import dfm.distributed.cluster.imports"
    finished = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "import for themselves" in finished.stderr
    assert "distributed.nanny" in finished.stderr


def test_after_its_end_it_is_gone_and_python_can_begin_another() -> None:
    lines = (
        "import multiprocessing, os",
        "from dfm.distributed.cluster import fork_server",
        "fork_server.begin()",
        "place = f'/proc/{fork_server._begun[0].number}'",
        "assert os.path.exists(place)",
        "fork_server.end()",
        "assert not os.path.exists(place)",
        "process = multiprocessing.get_context('forkserver').Process(target=print, args=('forked',))",
        "process.start()",
        "process.join()",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "forked\n"


def test_a_user_s_safe_path_is_that_of_workers_too(tmp_path: Path) -> None:
    found = told_by(tmp_path, PYTHONSAFEPATH="1", PYTHONPATH=str(Path(fork_server.__file__).parents[3]))
    assert all(worker["environment"]["PYTHONSAFEPATH"] == "1" for worker in found["workers"])


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for temporary files, with a short path."""
    with tempfile.TemporaryDirectory(prefix="dfm-test-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


SLEEPS = """\
import time
from dfm.distributed.cluster import fork_server

fork_server.begin()
print(fork_server._begun[0].number, flush=True)
time.sleep(120)
"""


@contextlib.contextmanager
def sleeping() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command that began such a process, in a group of their own, and the number of that process."""
    command = [sys.executable, "-c", SLEEPS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        try:
            yield process, int(process.stdout.readline())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def lives(number: int) -> bool:
    """Whether a process has not ended; who takes over those of a command that is gone may leave them unburied."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PAUSES = [0.0, 0.1, 0.5, 4.0]
"""Seconds after which something happens: before the process has come to its own code, while it imports, when it has."""


@pytest.mark.parametrize("pause", PAUSES)
def test_an_interruption_of_all_processes_is_the_command_s_alone(pause: float, folder: Path) -> None:
    with sleeping() as (process, number):
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert err.count("Traceback") == 1, err
        wait_until(lambda: not lives(number))
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize("how", ["all are told to end", "the command is killed"])
@pytest.mark.parametrize("pause", PAUSES)
def test_nothing_of_a_command_that_is_ended_stays(pause: float, how: str, folder: Path) -> None:
    with sleeping() as (process, number):
        time.sleep(pause)
        if how == "the command is killed":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        wait_until(lambda: not lives(number))
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "none.toml"], ["evaluate"]], ids=" ".join)
def test_a_command_that_trains_nothing_leaves_no_process(arguments: list[str], folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dfm", *arguments]
    finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, check=False)
    assert finished.returncode in (0, 2)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(tmp_path):
                assert "forkserver" not in " ".join(process.cmdline())
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize(
    ("words", "seems"),
    [
        ("train job.toml", True),
        ("--verbose evaluate model data", True),
        ("train job.toml --set training.n_epochs=2", True),
        ("inspect train", False),
        ("submit job.toml", False),
        ("train job.toml --scheduler tcp://there:8786", False),
        ("train job.toml --scheduler=tcp://there:8786", False),
        ("train job.toml --set cluster.factory=own:cluster", False),
        ("train job.toml --dry-run", False),
        ("predict --help", False),
        ("", False),
    ],
)
def test_it_begins_where_words_tell_of_local_workers(words: str, seems: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert cli._seems_to_start_workers(words.split()) == seems
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://there:8786")
    assert not cli._seems_to_start_workers(words.split())


def test_a_job_may_come_along_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dfm", "train", "/dev/stdin", "--json"]
    job = f'[data]\ntrain = "{tmp_path}/none-such"\n[schema]\nnumeric = ["x"]\n[output]\ndirectory = "{tmp_path}/run"\n'
    finished = subprocess.run(command, input=job, capture_output=True, text=True, check=False)
    assert "none-such" in finished.stderr
