"""Retrieval: products of vectors rank a catalogue as the model does; an index finds nearly all of that."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import dfm
from pipelines.retrieval import run
from tests.support.small_jobs import in_process_client

TOP = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dfm.FMModel, run.Shop, Any]:
    folder, shop = tmp_path_factory.mktemp("retrieval"), run.Shop.planted(40, 400)
    with in_process_client(1) as client:
        result = dfm.train(run.job(shop.log(4_000, folder / "log"), folder), client)
    return result.model, shop, shop.requests(30, 3)


def test_products_rank_all_items_as_the_model_does(trained, monkeypatch, capsys):
    model, shop, requests = trained
    assert run.spread_from_scores(model, shop, requests) < 1e-5
    monkeypatch.setitem(sys.modules, "faiss", None)  # an import of it fails
    run.report(model, shop, requests, TOP)
    out = capsys.readouterr().out
    assert "model.rank                    1.0000" in out
    assert "product with all              1.0000" in out
    assert "index, breadth" not in out
    assert 'pip install "dask-fm[retrieval]"' in out


def test_the_best_items_come_first():
    vectors = np.array([[1.0], [4.0], [2.0], [4.0]], np.float32)
    assert run.best_of_all(np.array([[1.0], [-1.0]], np.float32), vectors, 3).tolist() == [[1, 3, 2], [0, 2, 1]]
    assert run.recall(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 5]])) == 0.75


def test_an_index_finds_nearly_all_of_the_best_items(trained):
    pytest.importorskip("faiss")
    model, shop, requests = trained
    lines = run.compare(model, shop, requests, TOP)
    shares = [share for name, share, _ in lines if name.startswith("index")]
    assert len(shares) == len(run.BREADTHS)
    assert shares[-1] > 0.95
