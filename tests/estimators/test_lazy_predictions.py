"""A lazy prediction names its model instead of holding it, and finds it wherever and whenever it is computed."""

# ruff: noqa: E402 (what may be missing is looked for first)
from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")
pd = pytest.importorskip("pandas")

import dask
import dask.dataframe as dd
from distributed import Client

from dfm.estimators import FMClassifier, scorers
from tests.support.small_jobs import in_process_client

FRAME = pd.DataFrame({"u": np.arange(6000), "i": np.arange(6000) % 50})
ROWS = dd.from_pandas(FRAME[:300], npartitions=3)


@pytest.fixture(scope="module")
def model() -> FMClassifier:
    """A model of some hundred kilobytes."""
    return FMClassifier(n_factors=8, n_epochs=1, min_count_factors=1).fit(FRAME, FRAME.u % 2)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with in_process_client(2) as client:
        yield client


def files_of_models() -> set[str]:
    return {place.path for place in scorers._recent if os.path.exists(place.path)}


def test_the_graph_holds_no_model(model: FMClassifier) -> None:
    assert len(cloudpickle.dumps(model)) > 400_000
    graphs = [dict(model.predict(ROWS).__dask_graph__()), dict(model.predict_proba(ROWS).__dask_graph__())]
    assert all(len(cloudpickle.dumps(graph)) < 60_000 for graph in graphs)


def test_predictions_of_one_model_share_one_file_and_one_key(model: FMClassifier) -> None:
    first = model.predict(ROWS)
    before = files_of_models()
    second, other = model.predict(ROWS), model.predict_proba(ROWS)
    assert files_of_models() == before
    assert second.name == first.name != other.name


def test_a_small_model_travels_in_the_graph_and_needs_no_file() -> None:
    small = FMClassifier(n_factors=2, n_epochs=1, hash_bits=10, min_count_factors=1).fit(FRAME[:40], FRAME.u[:40] % 2)
    before = files_of_models()
    lazily = small.predict(ROWS)
    assert files_of_models() == before
    arrived = cloudpickle.loads(cloudpickle.dumps(lazily))
    np.testing.assert_array_equal(arrived.compute(scheduler="sync"), small.predict(FRAME[:300]))


def test_a_collection_is_computed_by_whoever_comes_later(model: FMClassifier, client: Client) -> None:
    expected = model.predict_proba(FRAME[:300])
    lazily = model.predict_proba(ROWS)
    for scheduler in ("threads", "sync"):
        np.testing.assert_array_equal(lazily.compute(scheduler=scheduler), expected)
    np.testing.assert_array_equal(client.compute(lazily).result(), expected)
    with Client(client.scheduler.address, set_as_default=False) as other:
        np.testing.assert_array_equal(other.compute(lazily).result(), expected)


def loaded_elsewhere(lazily: Any) -> Any:
    """What a process without the model would compute."""
    arrived = cloudpickle.loads(cloudpickle.dumps(lazily))
    made_here, scorers._made_here = scorers._made_here, type(scorers._made_here)()
    try:
        return arrived.compute(scheduler="threads")
    finally:
        scorers._made_here = made_here


def test_another_process_loads_the_model_from_its_file_once(
    model: FMClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = scorers._load
    monkeypatch.setattr(scorers, "_load", lambda digest, data: loads.append(digest) or load(digest, data))
    scorers._loaded.clear()
    np.testing.assert_array_equal(loaded_elsewhere(model.predict(ROWS)), model.predict(FRAME[:300]))
    assert len(loads) == 1


def test_a_file_with_another_content_is_not_read(model: FMClassifier) -> None:
    lazily = model.predict(ROWS)
    for path in files_of_models():
        Path(path).write_bytes(b"something else")
    scorers._loaded.clear()
    with pytest.raises(Exception, match="the model of this prediction is not within reach"):
        loaded_elsewhere(lazily)
    scorers._recent.clear()


def test_a_prediction_that_was_sent_off_keeps_its_model_until_others_came(client: Client) -> None:
    model = FMClassifier(n_factors=8, n_epochs=1, min_count_factors=1, random_state=3).fit(FRAME, FRAME.u % 2)
    expected = model.decision_function(FRAME[:300])
    future = client.compute(dask.delayed(np.asarray)(model.decision_function(ROWS)))
    path = scorers._recent[-1].path
    del model
    gc.collect()
    np.testing.assert_array_equal(future.result(), expected)
    assert os.path.exists(path)
    scorers._recent.clear()
    del future
    gc.collect()
    assert not os.path.exists(path)
