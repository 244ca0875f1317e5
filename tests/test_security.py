"""What comes from outside (models, checkpoints, job files) is data: runs no code, reaches nowhere, fills no memory."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import dfm
from dfm import jobs
from dfm.errors import DataError, DfmError, ModelError, SettingsError
from dfm.model.fm_model import FMModel
from dfm.settings.constraints import Flag
from dfm.settings.job import load_job
from dfm.settings.tables import TABLES, ClusterSettings
from dfm.training.checkpoint import BlockFile, Checkpoint, CheckpointFolder, SavedBlock, decode_block, encode_block
from tests.support import fuzz_model
from tests.support.bad_inputs import write_good
from tests.support.small_jobs import in_process_client
from tests.support.small_models import make_model

# --- code -----------------------------------------------------------------------------------------------

FORBIDDEN_CALLS = {"eval", "exec", "__import__", "compile"}
FORBIDDEN_ATTRIBUTES = {
    ("os", "system"), ("os", "popen"), ("pickle", "load"), ("pickle", "loads"), ("cloudpickle", "loads"),
    ("cloudpickle", "load"), ("marshal", "loads"), ("yaml", "load"), ("np", "load"), ("joblib", "load"),
}  # fmt: skip

TRUSTED = {
    # Numba reads the arity of an intrinsic from its signature, made from a name and a number of operands here.
    ("simd.py", "exec"),
    # A function that a user passed in Python, on its way from client to worker inside Dask's own pickles.
    ("functions.py", "cloudpickle.loads"),
    # Values of this process on their way to its own cluster: tasks made of pieces of Dask's own pickles.
    ("watch.py", "pickle.loads"),
    # An estimator that this user pickled for a prediction: the graph, which is Dask's pickle, has the file's digest.
    ("scorers.py", "pickle.loads"),
    # Not the builtin: an argument, which compiles such a function.
    ("snapshot.py", "compile"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_module_runs_code_or_unpickles_what_it_reads() -> None:
    for path in Path(dfm.__file__).parent.rglob("*.py"):
        for name, call in calls(path):
            if (path.name, name) in TRUSTED:
                continue
            assert name not in FORBIDDEN_CALLS, f"{path}:{call.lineno}"
            assert tuple(name.rsplit(".", 1)) not in FORBIDDEN_ATTRIBUTES, f"{path}:{call.lineno}"
            assert not any(key.arg in ("shell", "allow_pickle") for key in call.keywords), f"{path}:{call.lineno}"


# --- models ---------------------------------------------------------------------------------------------


def fuzz(folder: Path, first: int, count: int) -> Counter[str]:
    """Outcomes of models that were changed in so many ways, in a process that must survive them all."""
    command = [sys.executable, fuzz_model.__file__, str(folder), str(first), str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=120 + 0.2 * count
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"exit code {done.returncode} at mutation {lines[-1:]}: {done.stderr[-2000:]}"
    return Counter(json.loads(lines[-1]))


def test_changed_models_are_refused_or_score_and_never_end_the_process(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, 0, 400)
    assert sum(outcomes.values()) == 400
    assert outcomes["refused"] > 250
    assert outcomes["another model"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_many_more_changed_models(tmp_path: Path, block: int) -> None:
    assert sum(fuzz(tmp_path, 1_000_000 * (block + 1), 5_000).values()) == 5_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model().save(str(tmp_path / "model"))
    return tmp_path / "model"


def test_a_manifest_or_a_file_of_terabytes_is_not_read(model: Path) -> None:
    """Sparse files: reading them would take the memory of the machine."""
    manifest = json.loads((model / "model.json").read_bytes())
    os.truncate(model / manifest["files"]["parameters"]["name"], 1 << 42)
    with pytest.raises(ModelError, match="is damaged: its checksum differs"):
        FMModel.load(str(model))
    manifest["files"]["parameters"]["bytes"] = 1 << 42
    (model / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"is damaged \(size of its parameters in bytes is 4398046511104"):
        FMModel.load(str(model))
    os.truncate(model / "model.json", 1 << 42)
    with pytest.raises(ModelError, match="more than 67108864 bytes"):
        FMModel.load(str(model))


# --- checkpoints ----------------------------------------------------------------------------------------


def test_checkpoint_manifests_that_somebody_changed_are_skipped_or_refused(tmp_path: Path) -> None:
    block = {"name": "round-00000001-block-0-0123456789abcdef.safetensors", "sha256": "0" * 64, "size": 1, "start": 0}
    sound = {
        "identity": {"tables": {}, "shards": []}, "state": {}, "rounds_done": 1, "blocks": [block], "best": [],
        "writer": "", "format": 1,
    }  # fmt: skip
    for number in range(600):
        draw = random.Random(number)
        content = json.loads(json.dumps(sound))
        fuzz_model.change(content, draw)
        text = json.dumps(content)
        outer: Any = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}
        if number % 5 == 0:
            fuzz_model.change(outer, draw)
        (tmp_path / "round-00000001.json").write_text(json.dumps(outer))
        found: list[Checkpoint] = []
        # Only a change of the outside may take away what says that the file is dfm's to delete: then it is refused.
        with contextlib.suppress(*([SettingsError] if number % 5 == 0 else [])):
            found = CheckpointFolder(str(tmp_path), "tester").found()
        for checkpoint in found:
            assert all("/" not in name and ".." not in name for name in checkpoint.files), number


def test_checkpoint_blocks_that_somebody_changed_are_refused() -> None:
    table = make_model().table
    data = encode_block(SavedBlock(0, table, None))
    for number in range(400):
        changed = fuzz_model.mutate(data, random.Random(number))
        file = BlockFile("x", hashlib.sha256(changed).hexdigest(), len(changed), 0)
        try:
            found = decode_block(changed, file, table.layout)
        except DataError:
            continue
        assert found.table.linear.shape[1] == table.layout.linear_width


# --- job files ------------------------------------------------------------------------------------------

HOSTILE = (
    "__import__('os').system('touch pwned')",
    "$(touch pwned)",
    "`touch pwned`",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "!!python/object/apply:os.system ['touch pwned']",
    "|touch pwned",
    "; touch pwned",
    "\x80\x04\x95cos\nsystem\n(S'touch pwned'\ntR.",
)
EVERY_KNOB = [(name, key) for name, kind in TABLES.items() for key in kind.knobs()]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(1) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where jobs run; nothing may be touched there."""
    write_good(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts_in(value: Any) -> Iterator[str]:
    """All texts inside a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value:
            yield from texts_in(item)
        for item in value.values() if isinstance(value, dict) else ():
            yield from texts_in(item)


@pytest.mark.parametrize(("table", "key"), EVERY_KNOB)
def test_a_hostile_value_of_a_knob_is_refused_or_stays_text(folder: Path, table: str, key: str) -> None:
    for value in HOSTILE:
        for written in (value, [value], {value: value}, {"x": [value]}):
            try:
                job = load_job({table: {key: written}})
            except SettingsError:
                continue
            assert value in set(texts_in(job.to_dict(secrets=True)))
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "place",
    ["data.train", "data.validation", "schema.label", "schema.weight", "schema.categorical", "schema.transforms",
     "schema.crosses", "cluster.cache", "output.directory"],
)  # fmt: skip
def test_a_hostile_job_runs_no_code(folder: Path, client: Client, place: str, value: str) -> None:
    table, key = place.split(".")
    written: Any = {"schema.transforms": {value: "raw"}, "schema.crosses": [[value, "C"]]}.get(place, value)
    tables: dict[str, dict[str, Any]] = {
        "data": {"train": "data"},
        "schema": {"categorical": ["C"], "numeric": ["I"]},
        "model": {"n_factors": 2, "hash_bits": 10},
        "training": {"n_replicas": 2, "n_epochs": 1, "averages_per_epoch": 1},
        "cluster": {"cache": str(folder / "cache")},
        "output": {"directory": str(folder / "out")},
    }
    tables[table][key] = written
    try:
        result = jobs.train(tables, client)
    except DfmError:
        assert place not in ("cluster.cache", "output.directory") or "\x80" in value
    else:
        assert FMModel.load(result.model_url).task == "classification"
    assert not list(folder.rglob("pwned"))


def test_a_job_nested_without_end_is_no_toml(folder: Path) -> None:
    for text in ("x = " + "[" * 100_000, "[a]\nx = " + "{y=" * 50_000, "[data]\ntrain = '''" + "x" * 10):
        (folder / "job.toml").write_text(text)
        with pytest.raises(SettingsError, match="is not TOML"):
            load_job(folder / "job.toml")
    load_job({}, ["output.directory=" + "[" * 100_000])


def test_a_scheduler_address_is_an_address(folder: Path) -> None:
    settings = ClusterSettings(scheduler="$(touch pwned)", worker_timeout=0.2)
    make_model().save(str(folder / "model"))
    with pytest.raises(DfmError):
        jobs.evaluate(str(folder / "model"), str(folder / "data"), settings=settings)
    assert not (folder / "pwned").exists()
    assert isinstance(TABLES["cluster"].knobs()["dashboard"].constraint, Flag)
