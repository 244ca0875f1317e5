"""A whole catalogue for each request: an index of nearest neighbours serves a factorization machine.

    python pipelines/retrieval/run.py

A model is trained on a planted log of users and items. `model.vectors` splits it into a vector for each request and one
for each item whose product is the score, up to a number of each request, so that the best items of a request are the
neighbours of its vector. The index is FAISS's (extra `retrieval`); what is exact runs without it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import dfm
from dfm.version import pip_install

HERE = Path(__file__).parent
TASTES, N_KINDS, N_BRANDS, N_SHARDS = 6, 40, 300, 8
NEIGHBOURS, BREADTHS = 32, (16, 64, 256)
"""Neighbours of an item in the graph of the index, and items that a search keeps in view: more find more, later."""
USER, ITEM = ["user", "hour"], ["item", "kind", "brand"]
Floats = NDArray[np.float32]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Shop:
    """Who buys what: tastes float64[n, TASTES] of users and items, columns of items, how popular each is."""

    users: NDArray[np.float64]
    items: NDArray[np.float64]
    catalogue: pa.Table
    popularity: NDArray[np.float64]

    @classmethod
    def planted(cls, n_users: int, n_items: int, seed: int = 0) -> Shop:
        """Items of a kind have tastes in common, those of a brand are popular together."""
        rng = np.random.default_rng(seed)
        kinds, brands = rng.integers(0, N_KINDS, n_items), rng.integers(0, N_BRANDS, n_items)
        tastes = rng.normal(size=(N_KINDS, TASTES))[kinds] + 0.5 * rng.normal(size=(n_items, TASTES))
        popularity = 0.5 * rng.normal(size=N_BRANDS)[brands] + 0.3 * rng.normal(size=n_items)
        columns = {"item": [f"i{n}" for n in range(n_items)], "kind": [f"k{n}" for n in kinds]}
        catalogue = pa.table({**columns, "brand": [f"b{n}" for n in brands]})
        return cls(rng.normal(size=(n_users, TASTES)), tastes, catalogue, popularity)

    def requests(self, n: int, seed: int) -> pa.Table:
        """Requests of users at some hour."""
        rng = np.random.default_rng([seed, 1])
        return _requests(rng.integers(0, len(self.users), n), rng.integers(0, 24, n))

    def log(self, n_rows: int, folder: Path, seed: int = 0) -> Path:
        """Items that were shown to users, and whether they were clicked; items near the front more often."""
        rng = np.random.default_rng([seed, 2])
        user, hour = rng.integers(0, len(self.users), n_rows), rng.integers(0, 24, n_rows)
        item = (len(self.items) * rng.random(n_rows) ** 1.5).astype(np.int64)
        taste = np.einsum("rt,rt->r", self.users[user], self.items[item]) / np.sqrt(TASTES)
        odds = 1.5 * taste + self.popularity[item] + 0.2 * np.cos(hour / 24 * 2 * np.pi) - 1.5
        rows = pa.table({"label": (rng.random(n_rows) < 1 / (1 + np.exp(-odds))).astype(np.int8)})
        for table in (_requests(user, hour), self.catalogue.take(pa.array(item))):
            for name in table.column_names:
                rows = rows.append_column(name, table[name])
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(np.array_split(np.arange(n_rows), N_SHARDS)):
            pq.write_table(rows.take(pa.array(shard)), folder / f"{number}.parquet")
        return folder


def _requests(user: Positions, hour: Positions) -> pa.Table:
    return pa.table({"user": [f"u{n}" for n in user], "hour": [f"h{n}" for n in hour]})


def job(log: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The job of the model; no cross has columns of users and of items, or no vector of an item could say all."""
    return {
        "data": {"train": str(log)},
        "schema": {"label": "label", "categorical": [*USER, *ITEM]},
        "model": {"n_factors": 16, "hash_bits": 20},
        "training": {"n_replicas": 4},
        "cluster": {"cache": str(folder / "cache")},
        "output": {"directory": str(folder / "run"), "resume": False},
    }


def best_of_all(queries: Floats, vectors: Floats, top: int) -> Positions:
    """Items of the greatest products with each query, int64[n_queries, top], best first: every item is looked at."""
    found = []
    for query in queries:
        products = vectors @ query
        some = np.argpartition(-products, top)[:top]
        found.append(some[np.lexsort((some, -products[some]))])
    return np.array(found)


def spread_from_scores(model: dfm.FMModel, shop: Shop, requests: pa.Table) -> float:
    """How far score less product of vectors goes apart within a request, at most: it is one number but for rounding."""
    queries, vectors = model.vectors(requests, shop.catalogue)
    candidates = model.candidates(shop.catalogue)
    rows = requests.to_pylist()
    return max(float(np.ptp(candidates.scores(model, row) - vectors @ q)) for row, q in zip(rows, queries, strict=True))


def recall(found: Positions, truth: Positions) -> float:
    """The share of the best items that were found."""
    return float(np.mean([len({*ours} & {*best}) / len(best) for ours, best in zip(found, truth, strict=True)]))


class Index:
    """A graph of near neighbours (Malkov and Yashunin 2020), of vectors whose greatest products are sought.

    Nearest is not the same as greatest product unless all vectors have one length: each gets a number more that makes
    it so, and queries a 0 (Bachrach et al. 2014). ImportError without FAISS.
    """

    def __init__(self, vectors: Floats) -> None:
        import faiss

        squares = np.einsum("id,id->i", vectors, vectors, dtype=np.float64)
        self.graph = faiss.IndexHNSWFlat(vectors.shape[1] + 1, NEIGHBOURS)
        self.graph.hnsw.efConstruction = 200
        self.graph.add(np.column_stack([vectors, np.sqrt(squares.max() - squares)]).astype(np.float32))

    def search(self, queries: Floats, top: int, breadth: int) -> Positions:
        """Items near each query, int64[n_queries, top]."""
        self.graph.hnsw.efSearch = breadth
        longer = np.column_stack([queries, np.zeros(len(queries))]).astype(np.float32)
        return np.asarray(self.graph.search(longer, top)[1])


def milliseconds(work: Any, requests: Sequence[Any]) -> float:
    """The median time of one request, each asked for by itself."""
    seconds = []
    for request in requests:
        started = time.perf_counter()
        work(request)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def compare(model: dfm.FMModel, shop: Shop, requests: pa.Table, top: int) -> list[tuple[str, float, float]]:
    """Ways to the best items: name, share of the best ones that it finds, milliseconds of a request."""
    queries, vectors = model.vectors(requests, shop.catalogue)
    truth, candidates, some = best_of_all(queries, vectors, top), model.candidates(shop.catalogue), queries[:100]
    ranked = np.array([model.rank(row, candidates, top=top).positions for row in requests.to_pylist()[:100]])
    lines = [
        ("model.rank", recall(ranked, truth[:100]),
         milliseconds(lambda row: model.rank(row, candidates, top=top), requests.to_pylist()[:100])),
        ("product with all", 1.0, milliseconds(lambda query: best_of_all(query[None], vectors, top), some)),
    ]  # fmt: skip
    try:
        index = Index(vectors)
    except ImportError:
        return lines
    for breadth in BREADTHS:
        found = index.search(queries, top, breadth)
        time_of_one = milliseconds(lambda query, breadth=breadth: index.search(query[None], top, breadth), some)
        lines.append((f"index, breadth {breadth}", recall(found, truth), time_of_one))
    return lines


@click.command(context_settings={"show_default": True})
@click.option("--users", default=2_000)
@click.option("--items", default=50_000)
@click.option("--rows", default=1_000_000, help="Rows of the log.")
@click.option("--requests", default=1_000, help="Requests that are asked.")
@click.option("--top", default=10, help="Items that a request wants.")
@click.option("--output", default=HERE / "output", type=click.Path(path_type=Path), help="Folder of log and model.")
def main(users: int, items: int, rows: int, requests: int, top: int, output: Path) -> None:
    """Train a model and ask for the best items of requests, exactly and by an index."""
    shop = Shop.planted(users, items)
    result = dfm.train(job(shop.log(rows, output / "log"), output))
    print(f"AUC on held-out rows: {result.validation['auc']:.4f}")
    report(dfm.FMModel.load(result.model_url), shop, shop.requests(requests, 3), top)


def report(model: dfm.FMModel, shop: Shop, asked: pa.Table, top: int) -> None:
    """Prints how far vectors and scores agree, and a line for every way to the best items."""
    spread = spread_from_scores(model, shop, asked.slice(0, 20))
    print(f"\nvectors and scores agree to {spread:.1e} ({len(shop.items):,} items)\n")
    print(f"{'way':24}{f'recall@{top}':>12}{'ms a request':>14}")
    lines = compare(model, shop, asked, top)
    for name, share, time_of_one in lines:
        print(f"{name:24}{share:12.4f}{time_of_one:14.2f}")
    if len(lines) == 2:
        print(f"\nan index of nearest neighbours needs FAISS: {pip_install('retrieval')}")


if __name__ == "__main__":
    main()
