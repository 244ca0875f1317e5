"""What travels between workers carries a checksum: a bit that flips is noticed, and what it was in is sent again."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm import jobs
from dfm.averaging.contributions import Contribution
from dfm.data.partition import SparsePartition
from dfm.errors import DamagedTransferError
from dfm.kernels.tables import InitialValues, Layout, ParameterTable, initialise
from dfm.solvers.sums import Part, Sums
from dfm.storage import transfers
from dfm.training.exact_rounds import Update
from tests.support.small_jobs import in_process_client, job_tables

LAYOUT = Layout("adagrad", 3)
TRAVELLERS: dict[str, Any] = {
    "changes": Contribution(
        np.arange(4, dtype=np.uint32),
        {"linear": np.ones((4, 3), np.float32), "factors": np.zeros((2, 9), np.uint16)},
        {"bias": np.array([[0.5, 0.25]])},
        12.0,
    ),
    "parameters": initialise(LAYOUT, np.arange(5, dtype=np.uint32), 3, InitialValues(1), 0),
    "sums": Sums(np.arange(3, dtype=np.uint32), np.ones((2, 3)), np.ones((1, 2))),
    "values": Update(2, Part(0, 2, True), np.ones((2, 2), np.float32), np.ones(3, np.float32)),
    "rows": SparsePartition(
        np.array([0, 2, 3]),
        np.array([0, 1, 0], np.uint32),
        np.zeros(0, np.float32),
        np.array([0, 1], np.float32),
        np.zeros(0, np.float32),
        np.array([3, 7], np.uint32),
        1,
        2,
        group_ids=np.array([5, 6], np.uint64),
    ),
}


def sent(traveller: Any) -> tuple[bytes, list[bytearray]]:
    """What Dask sends: a pickle, and the bytes of each array beside it."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(traveller, protocol=5, buffer_callback=buffers.append)
    return text, [bytearray(buffer.raw()) for buffer in buffers]


@pytest.mark.parametrize("name", sorted(TRAVELLERS))
def test_what_travels_arrives(name: str) -> None:
    text, buffers = sent(TRAVELLERS[name])
    assert sent(pickle.loads(text, buffers=buffers)) == (text, buffers)


@pytest.mark.parametrize("name", sorted(TRAVELLERS))
@given(data=st.data())
def test_any_flipped_bit_of_what_travels_is_noticed(name: str, data: st.DataObject) -> None:
    text, buffers = sent(TRAVELLERS[name])
    buffer = data.draw(st.sampled_from([buffer for buffer in buffers if buffer]))
    buffer[data.draw(st.integers(0, len(buffer) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedTransferError, match="other bits than they were sent with"):
        pickle.loads(text, buffers=buffers)


@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_sum_of_bits_differs_with_each_of_them(content: bytes, data: st.DataObject) -> None:
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    before, after = (np.frombuffer(each, np.uint8) for each in (content, bytes(changed)))
    assert transfers.sum_of_bits([before]) != transfers.sum_of_bits([after])


@pytest.mark.parametrize("begin", [0, 3])
@pytest.mark.parametrize("n_bytes", [0, 7, 8, 1_000, 8 * 2**17, 8 * 2**17 + 61])
def test_a_sum_is_the_same_however_large_and_wherever_an_array_lies(begin: int, n_bytes: int) -> None:
    content = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    there = np.frombuffer(bytes(begin) + content.tobytes(), np.uint8)[begin:]
    padded = np.concatenate([content, np.zeros(-n_bytes % 8, np.uint8)])
    expected = int(padded.view("<u8").sum(dtype=np.uint64))
    assert transfers.sum_of_bits([there]) == transfers.sum_of_bits([content.copy()]) == expected
    assert transfers.sum_of_bits([content, content]) == 2 * expected % 2**64


def flipping(arrived: Callable[..., Any], kind: type, number: int, met: list[str]) -> Callable[..., Any]:
    """As things arrive, with a bit flipped in the n-th of a kind."""

    @functools.wraps(arrived)
    def with_a_flip(of: type, what: str, values: tuple[Any, ...], checksum: int) -> Any:
        if of is kind:
            met.append(what)
            if len(met) == number:
                at = next(i for i, value in enumerate(values) if isinstance(value, dict))
                changed = {name: array.copy() for name, array in values[at].items()}
                next(iter(changed.values())).reshape(-1).view(np.uint8)[1] ^= 4
                values = (*values[:at], changed, *values[at + 1 :])
        return arrived(of, what, values, checksum)

    return with_a_flip


@pytest.mark.parametrize("kind", [Contribution, ParameterTable])
def test_a_bit_that_flips_between_workers_is_told_and_changes_nothing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    with in_process_client(2) as client:
        undisturbed = jobs.train(job_tables(log, tmp_path / "undisturbed"), client)
        met: list[str] = []
        monkeypatch.setattr(transfers, "_arrived", flipping(transfers._arrived, kind, 3, met))
        result = jobs.train(job_tables(log, tmp_path / "flipped"), client)
    assert len(met) > 3
    assert "arrived with other bits" in caplog.text
    assert result.parameters_sha256 == undisturbed.parameters_sha256
