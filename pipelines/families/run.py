"""The families of models side by side: where field strengths are planted, where the truth is an FM, where three columns
decide together, and on Criteo.

    python pipelines/families/run.py
    python pipelines/families/run.py --criteo FOLDER    # with train/ and validation/ shards; or DFM_CRITEO=FOLDER

No family wins everywhere: that is what validation is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import dfm

HERE = Path(__file__).parent
N_FIELDS, N_TOKENS, RANK, N_SHARDS = 10, 100, 6, 8
N_TOKENS_IN_TRIPLES = 10
"""Where three columns decide: a row says less of each triple of values than of a pair."""
N_STRONG = 20
"""Pairs of fields, of 45, that matter where strengths are planted."""
FAMILIES: dict[str, dict[str, Any]] = {
    "linear": {"n_factors": 0},
    "fm": {"n_factors": 8},
    "ffm, 4 groups": {"family": "ffm", "groups": 4, "n_factors": 4},
    "fwfm": {"family": "fwfm", "n_factors": 8},
    "hofm": {"family": "hofm", "n_factors": 8},
}


@dataclass(frozen=True)
class Log:
    """Rows to train on and to validate on. bayes: log loss of the planted odds, None where nobody knows them."""

    name: str
    train: str
    validation: str
    schema: dict[str, Any]
    bayes: float | None = None


def strong_pairs(rng: np.random.Generator) -> NDArray[np.float64]:
    """Strengths of pairs of fields, float64[N_FIELDS, N_FIELDS]: most are 0, the others of either sign."""
    strengths = np.zeros((N_FIELDS, N_FIELDS))
    first, second = np.triu_indices(N_FIELDS, 1)
    for pair in rng.permutation(len(first))[:N_STRONG]:
        strengths[first[pair], second[pair]] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    return strengths


def equal_pairs(_rng: np.random.Generator) -> NDArray[np.float64]:
    """Strengths of a factorization machine: all pairs of fields have 1."""
    return np.triu(np.ones((N_FIELDS, N_FIELDS)), 1)


def of_pairs(drawn: NDArray[np.float64], strengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_{f<g} r_fg <v_f, v_g> of each row. drawn: its vectors, float64[n_rows, N_FIELDS, RANK]."""
    terms: NDArray[np.float64] = np.einsum("nfk,fg,ngk->n", drawn, strengths, drawn, optimize=True)
    return terms


def of_triples(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_{f<g<h} Σ_k v_fk v_gk v_hk of each row."""
    first, second, third = (np.sum(drawn**power, axis=1) for power in (1, 2, 3))
    terms: NDArray[np.float64] = ((first**3 - 3 * first * second + 2 * third) / 6).sum(axis=1)
    return terms


PLANTED: dict[str, Callable[[np.random.Generator, NDArray[np.float64]], NDArray[np.float64]]] = {
    "planted field strengths": lambda rng, drawn: of_pairs(drawn, strong_pairs(rng)),
    "the truth is an FM": lambda rng, drawn: of_pairs(drawn, equal_pairs(rng)),
    "planted triples": lambda _rng, drawn: of_triples(drawn),
}


def planted_log(name: str, folder: Path, rows: int, seed: int = 0) -> Log:
    """Write a log below `folder`: so many rows to train on and a quarter of them to validate on.

    Log-odds: Σ w_t of a row's tokens, and what is planted of their vectors, scaled to a deviation of 1.8.
    """
    rng = np.random.default_rng([seed, list(PLANTED).index(name)])
    n_all = rows + rows // 4
    n_tokens = N_TOKENS_IN_TRIPLES if name == "planted triples" else N_TOKENS
    tokens = (n_tokens * rng.random((n_all, N_FIELDS)) ** 2).astype(np.int64)  # few are frequent
    vectors, weights = rng.normal(size=(N_FIELDS, n_tokens, RANK)), 0.3 * rng.normal(size=(N_FIELDS, n_tokens))
    fields = np.arange(N_FIELDS)
    planted = PLANTED[name](rng, vectors[fields, tokens])
    odds = weights[fields, tokens].sum(axis=1) + 1.8 * planted / planted.std() - 0.5
    labels = (rng.random(n_all) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    where = folder / name.replace(" ", "-")
    for number, shard in enumerate(np.array_split(np.arange(rows), N_SHARDS)):
        _write(where / "train" / f"{number}.parquet", tokens[shard], labels[shard])
    _write(where / "validation" / "0.parquet", tokens[rows:], labels[rows:])
    bayes = float(np.mean(np.logaddexp(0.0, odds[rows:]) - labels[rows:] * odds[rows:]))
    columns = [f"c{field}" for field in range(N_FIELDS)]
    schema = {"label": "label", "categorical": columns}
    return Log(name, str(where / "train"), str(where / "validation"), schema, bayes)


def _write(path: Path, tokens: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    names = pa.array([f"v{token}" for token in range(N_TOKENS)])
    columns: dict[str, Any] = {f"c{field}": names.take(pa.array(tokens[:, field])) for field in range(N_FIELDS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"label": labels, **columns}), path)


def criteo_log(folder: Path) -> Log:
    """The shards of the Criteo log below `folder`, as pipelines/criteo makes them, or its sample on the web."""
    schema = {"label": "label", "categorical": ["C*"], "numeric": ["I*"], "numeric_transform": "log2-bucket"}
    return Log("Criteo", str(folder / "train"), str(folder / "validation"), schema)


def job(log: Log, model: dict[str, Any], folder: Path, epochs: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The job of one family on a log: 8 replicas, dfm's own defaults, everything below `folder`."""
    return {
        "data": {"train": log.train, "validation": log.validation},
        "schema": log.schema,
        "model": {"hash_bits": 20, "seed": seed, **model},
        "training": {"n_replicas": 8, "n_epochs": epochs},
        "cluster": {"cache": str(folder / "cache")},
        "output": {"directory": str(folder / "run"), "resume": False},
    }


@dataclass(frozen=True)
class Line:
    """What a family reached: log loss and AUC of the rows to validate on, rows/s of an epoch, floats of a feature."""

    family: str
    log_loss: float
    auc: float
    rows_per_second: float
    n_floats: int


def compare(log: Log, folder: Path, epochs: int, client: Any = None, seed: int = 0) -> list[Line]:
    """Every family on a log, on the cluster of `client` if there is one. Its rows are hashed once for each."""
    lines = []
    for family, model in FAMILIES.items():
        result = dfm.train(job(log, model, folder, epochs, seed), client)
        layout = dfm.FMModel.load(result.model_url).table.layout
        speed = float(np.median([epoch["rows_per_second"] for epoch in result.history]))
        found = result.validation
        lines.append(Line(family, found["log_loss"], found["auc"], speed, 1 + layout.row_factors))
    return lines


def show(log: Log, lines: list[Line]) -> None:
    """Prints the table of a log."""
    print(f"\n{log.name:24}{'log loss':>10}{'AUC':>9}{'rows/s':>12}{'floats':>8}")
    for line in lines:
        numbers = f"{line.log_loss:10.4f}{line.auc:9.4f}{line.rows_per_second:12,.0f}{line.n_floats:8}"
        print(f"{line.family:24}{numbers}")
    if log.bayes is not None:
        print(f"{'the truth':24}{log.bayes:10.4f}", flush=True)


@click.command(context_settings={"show_default": True})
@click.option("--rows", default=300_000, help="Rows of a planted log to train on.")
@click.option("--epochs", default=5)
@click.option(
    "--criteo", type=click.Path(exists=True, path_type=Path), envvar="DFM_CRITEO", help="Folder of its shards."
)
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of logs and models.")
def main(rows: int, epochs: int, criteo: Path | None, output: Path) -> None:
    """Train every family on every log, and print a table of each log."""
    logs = [planted_log(name, output, rows) for name in PLANTED]
    if criteo is not None:
        logs.append(criteo_log(criteo))
    for log in logs:
        show(log, compare(log, output / log.name.replace(" ", "-"), epochs))


if __name__ == "__main__":
    main()
