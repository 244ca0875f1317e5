"""Estimators of every family, here and on a cluster, in the labels' own unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from dfm.data.partition import SparsePartition, by_group
from dfm.errors import SettingsError
from dfm.estimators import FMClassifier, FMRegressor, chunks
from dfm.kernels.families.registry import DEFAULT, FAMILIES, family_of
from tests.support.small_jobs import in_process_client

OTHERS = [family for family in FAMILIES if family != DEFAULT]


def rows(n: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    """Three categories, of which two agree or not."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame({name: rng.integers(0, 3, n).astype(str) for name in ("site", "zone", "noise")})
    return data, (data["site"] == data["zone"]).to_numpy().astype(int)


@pytest.mark.parametrize("family", OTHERS)
def test_it_fits_here_and_on_a_cluster_with_the_same_bytes(family: str) -> None:
    data, labels = rows()
    settings = {"family": family, "n_factors": 4, "n_replicas": 2, "n_epochs": 8, "init_stdev": 0.3, "random_state": 5}
    here = FMClassifier(**settings).fit(data, labels)
    assert here.score(data, labels) > 0.9
    client: Client
    with in_process_client(2) as client:
        there = FMClassifier(**settings).fit(data, labels, client=client)
    for block in here._tables[0].layout.blocks:
        assert there._tables[0][block.name].tobytes() == here._tables[0][block.name].tobytes(), block.name


@pytest.mark.parametrize("family", OTHERS)
def test_a_collection_gives_the_model_of_the_same_rows_here(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of one replica, shuffled as chunks are, and group by group where the family has groups."""
    dd = pytest.importorskip("dask.dataframe")
    data, labels = rows()
    settings = {"family": family, "n_factors": 4, "n_replicas": 1, "n_epochs": 2, "init_stdev": 0.3, "random_state": 5}
    seen: list[SparsePartition] = []

    def noted(partition: SparsePartition, groups: tuple[int, ...]) -> SparsePartition:
        seen.append(by_group(partition, groups))
        return seen[-1]

    monkeypatch.setattr(chunks, "by_group", noted)
    frame, y = dd.from_pandas(data, npartitions=3), dd.from_pandas(pd.Series(labels), npartitions=3)
    with in_process_client(2) as client:
        there = FMClassifier(**settings).fit(frame, y, client=client)
    n_groups = there._tables[0].layout.n_groups
    assert seen
    assert all(part.ends.size == (part.n_rows * n_groups if n_groups > 1 else 0) for part in seen)
    here = FMClassifier(**settings).fit(data, labels)
    np.testing.assert_allclose(there.predict_proba(data), here.predict_proba(data), atol=0.05)


@pytest.mark.parametrize("family", OTHERS)
def test_a_regressor_predicts_in_the_labels_own_unit(family: str) -> None:
    data, agree = rows()
    model = FMRegressor(family=family, n_factors=4, n_epochs=20, init_stdev=0.3, random_state=5, early_stopping=False)
    model.fit(data, 500.0 + 90.0 * agree)
    assert np.abs(model.predict(data) - (500.0 + 90.0 * agree)).mean() < 20.0


@pytest.mark.parametrize("family", [name for name in OTHERS if family_of(name).knows_fields])
def test_a_matrix_is_one_field_and_refused(family: str) -> None:
    with pytest.raises(SettingsError, match="a numeric matrix counts as one"):
        FMClassifier(family=family).fit(np.eye(4), [0, 1, 0, 1])
