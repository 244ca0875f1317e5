"""From a click log on disk to a model: dfm, Vowpal Wabbit, scikit-learn and xLearn on the same rows, stage by stage.

    .venv/bin/python benchmarks/end_to_end/bench_end_to_end.py [--rows 1000000] [--repeats 3] [--folder …] [--smoke]

The log of `dfm synth` (39 columns, 26 of them strings) with a day more, by which all are judged. dfm reads its Parquet
shards with two workers, with compiled kernels and with none; scikit-learn reads them too (one process). Vowpal Wabbit
and xLearn need text, which is written before and not counted. Tools take turns; shown are medians. Those that are not
installed are left out: the `bench` extra has Vowpal Wabbit and scikit-learn, XLEARN names a binary `xlearn_train`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from big_log import prepare_log
from machine import machine_line

EPOCHS = 5
DAYS, LAST_DAY = 8, "2026-11-21"
WABBIT_BITS, XLEARN_BITS = 22, 20
Stages = dict[str, float]
"""Seconds by stage, and what the model was worth."""
LOSS = "log loss"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/end_to_end"))
    parser.add_argument("--without", default="", help="Beginning of the names of tools to leave out, by commas.")
    parser.add_argument("--smoke", action="store_true", help="tiny and untimed: does it still run?")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows, repeats = (7_000, 1) if arguments.smoke else (arguments.rows, arguments.repeats)
    folder = (arguments.folder / f"{rows}").resolve()
    if arguments.inside:
        print(json.dumps(INSIDE[arguments.inside](folder)))
        return
    print(machine_line())
    prepare_log(folder, rows * DAYS // (DAYS - 1))
    left_out = tuple(filter(None, [*arguments.without.split(","), "dfm, nothing" if arguments.smoke else ""]))
    chosen = {name: run for name, run in tools(folder).items() if not name.startswith(left_out)}
    if not arguments.smoke:
        shutil.rmtree(folder / "kernels", ignore_errors=True)
        trained(folder, folder / "kernels")  # compiles
    found: dict[str, list[Stages]] = {name: [] for name in chosen}
    for _ in range(repeats):
        for name, run in chosen.items():
            found[name].append(run())
            if not arguments.smoke:
                print(f"{name}: {found[name][-1]}", flush=True)
    for name, runs in found.items():
        print(line_of(name, runs, is_timed=not arguments.smoke))


def tools(folder: Path) -> dict[str, Callable[[], Stages]]:
    """What can be run here, by name."""
    here: dict[str, Callable[[], Stages]] = {
        "dfm": lambda: trained(folder, folder / "kernels"),
        "dfm, nothing compiled": lambda: trained(folder, None),
    }
    if importlib.util.find_spec("vowpalwabbit"):
        write_once(folder / "wabbit.txt", folder, wabbit_lines)
        here["Vowpal Wabbit, linear"] = lambda: in_own_process(folder, "wabbit")
    if importlib.util.find_spec("sklearn"):
        here["scikit-learn, linear"] = lambda: in_own_process(folder, "sklearn")
    if binary := os.environ.get("XLEARN"):
        write_once(folder / "xlearn.txt", folder, libsvm_lines)
        here["xLearn, k = 8"] = lambda: by_xlearn(folder, binary)
    return here


def line_of(name: str, runs: Sequence[Stages], is_timed: bool) -> str:
    """Medians of one tool, as a line of a table."""
    medians = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    if not is_timed:
        return f"{name}: {', '.join(medians)}"
    total = sum(seconds for stage, seconds in medians.items() if stage != LOSS)
    parts = ", ".join(f"{stage} {value:.2f}" for stage, value in medians.items() if stage != LOSS)
    loss = f"; log loss {medians[LOSS]:.4f}" if LOSS in medians else ""
    return f"{name}: {total:.2f} s ({parts}){loss}"


# ------------------------------------------------------------------------------------------------ dfm ----


def trained(folder: Path, kernels: Path | None) -> Stages:
    """`dfm train`, by the moments at which it tells of its stages; kernels: where compiled ones are kept, if at all."""
    for place in ("run", "cache", "compiled"):
        shutil.rmtree(folder / place, ignore_errors=True)
    command = [sys.executable, "-m", "dfm", "train", str(folder / "job.toml"), "--json"]
    command += ["--set", f"training.n_epochs={EPOCHS}", "--set", "training.early_stopping=false"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(kernels or folder / "compiled")}
    moments, started, loss = {}, time.perf_counter(), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as run:
        for line in run.stdout or ():
            event = json.loads(line)
            moments[event["event"]] = time.perf_counter() - started
            loss = event["validation"]["log_loss"] if event["event"] == "done" else loss
    if run.returncode:
        raise SystemExit(f"dfm ended with {run.returncode}")
    ends = {"start": moments["plan"], "prepare": moments["prepared"], "train": moments["epoch"]}
    ends["publish and stop"] = time.perf_counter() - started
    return {**differences(ends), LOSS: loss}


def differences(ends: Stages) -> Stages:
    """Seconds of stages, of the moments at which they end."""
    begins = [0.0, *ends.values()]
    return {stage: end - begin for (stage, end), begin in zip(ends.items(), begins, strict=False)}


# --------------------------------------------------------------------------------- rows, as others take them ----


def tokens(folder: Path, is_last_day: bool) -> Iterator[tuple[pa.Array, list[pa.ChunkedArray]]]:
    """Labels, and of each column a word a row (`C1=a91f`; numbers by their power of two), shard by shard."""
    for path in sorted((folder / "clicks").glob("*/*.parquet")):
        if (path.parent.name == f"day={LAST_DAY}") == is_last_day:
            table = pq.ParquetFile(path).read()
            yield table["label"], [word_of(table, name) for name in table.column_names if name != "label"]


def word_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The words of one column."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        column = pc.floor(pc.log2(pc.max_element_wise(column.cast(pa.float64()), 1.0))).cast(pa.int64())
    return pc.binary_join_element_wise(f"{name}=", pc.fill_null(column.cast(pa.string()), ""), "")


def write_once(path: Path, folder: Path, lines_of: Callable[..., Iterator[list[str]]]) -> None:
    """Text of the days to train on, and of the last one beside it, unless they are there."""
    for name, is_last_day in ((path, False), (path.with_suffix(".last"), True)):
        if not name.exists():
            with name.with_suffix(".part").open("w", encoding="utf-8") as stream:
                for lines in lines_of(folder, is_last_day):
                    stream.write("\n".join(lines) + "\n")
            name.with_suffix(".part").rename(name)


def wabbit_lines(folder: Path, is_last_day: bool) -> Iterator[list[str]]:
    """Lines of Vowpal Wabbit's format, shard by shard."""
    for labels, words in tokens(folder, is_last_day):
        joined = pc.binary_join_element_wise(*words, " ").to_pylist()
        yield [f"{1 if label else -1} |a {text}" for label, text in zip(labels.to_pylist(), joined, strict=True)]


def libsvm_lines(folder: Path, is_last_day: bool) -> Iterator[list[str]]:
    """Lines of libsvm's format, of hashed words."""
    from pandas.util import hash_array

    for labels, words in tokens(folder, is_last_day):
        hashed = [hash_array(np.asarray(word.to_pylist(), object)) % 2**XLEARN_BITS for word in words]
        columns = [pc.binary_join_element_wise(pa.array(each).cast(pa.string()), "1", ":") for each in hashed]
        joined = pc.binary_join_element_wise(*columns, " ").to_pylist()
        yield [f"{int(label)} {text}" for label, text in zip(labels.to_pylist(), joined, strict=True)]


# ---------------------------------------------------------------------------------------------- others ----


def in_own_process(folder: Path, name: str) -> Stages:
    """What a tool tells of itself in a new process; the rest of that process's time is its start."""
    command = [sys.executable, __file__, "--inside", name, "--folder", str(folder.parent), "--rows", folder.name]
    started = time.perf_counter()
    told: Stages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    judged = told.pop("judge")
    seconds = time.perf_counter() - started - judged
    return {"start and stop": seconds - sum(told[stage] for stage in told if stage != LOSS), **told}


def loss_of(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean log loss."""
    return float(-np.log(np.where(labels > 0, probabilities, 1 - probabilities).clip(1e-15)).mean())


def labels_of(folder: Path) -> np.ndarray:
    """Labels of the last day."""
    return np.concatenate([labels.to_numpy() for labels, _ in tokens(folder, is_last_day=True)])


def inside_wabbit(folder: Path) -> Stages:
    """Text to model: as many passes as dfm has epochs, over a cache of its own."""
    import vowpalwabbit

    (folder / "wabbit.cache").unlink(missing_ok=True)
    options = f"--quiet --loss_function logistic -b {WABBIT_BITS} -l 0.1 --holdout_off --passes {EPOCHS}"
    files = f"-d {folder / 'wabbit.txt'} --cache_file {folder / 'wabbit.cache'} -f {folder / 'wabbit.model'}"
    started = time.perf_counter()
    workspace = vowpalwabbit.Workspace(f"{options} {files}")
    workspace.run_parser()
    workspace.finish()
    trained_at = time.perf_counter()
    judge = vowpalwabbit.Workspace(f"--quiet -t -i {folder / 'wabbit.model'} --link logistic")
    scores = [judge.predict(line) for line in (folder / "wabbit.last").read_text().splitlines()]
    loss = loss_of(np.array(scores), labels_of(folder))
    return {"read and train": trained_at - started, LOSS: loss, "judge": time.perf_counter() - trained_at}


def inside_sklearn(folder: Path) -> Stages:
    """Shards to a matrix of hashed words, whole in memory, and passes of SGD over it."""
    import scipy.sparse
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    hasher = FeatureHasher(2**WABBIT_BITS, input_type="string", alternate_sign=False, dtype=np.float32)

    def rows_of(is_last_day: bool) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
        parts = [
            (hasher.transform(zip(*(word.to_pylist() for word in words), strict=True)), labels.to_numpy())
            for labels, words in tokens(folder, is_last_day)
        ]
        return scipy.sparse.vstack([part for part, _ in parts]), np.concatenate([labels for _, labels in parts])

    started = time.perf_counter()
    rows, labels = rows_of(is_last_day=False)
    hashed = time.perf_counter()
    model = SGDClassifier(loss="log_loss", max_iter=EPOCHS, tol=None, learning_rate="adaptive", eta0=0.02, alpha=1e-7)
    model.fit(rows, labels)
    trained_at = time.perf_counter()
    last, truth = rows_of(is_last_day=True)
    loss = loss_of(model.predict_proba(last)[:, 1], truth)
    judged = time.perf_counter() - trained_at
    return {"read and hash": hashed - started, "train": trained_at - hashed, LOSS: loss, "judge": judged}


INSIDE: dict[str, Callable[[Path], Stages]] = {"wabbit": inside_wabbit, "sklearn": inside_sklearn}


def by_xlearn(folder: Path, binary: str) -> Stages:
    """Text to model, with two threads; what it keeps of text that it has read is deleted before."""
    for kept in folder.glob("xlearn.*.bin"):
        kept.unlink()
    options = ["-s", "1", "-p", "adagrad", "-k", "8", "-e", str(EPOCHS), "-nthread", "2", "--no-norm", "-r", "0.05"]
    options += ["-u", "0.05", "--dis-es", "-m", str(folder / "xlearn.model")]
    started = time.perf_counter()
    environment = {**os.environ, "USER": os.environ.get("USER", "dfm")}
    subprocess.run(
        [binary, str(folder / "xlearn.txt"), *options], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    return {"read and train": time.perf_counter() - started}


if __name__ == "__main__":
    main()
