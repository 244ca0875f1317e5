"""A checkpoint is all or nothing: what is damaged is skipped, what is another's is refused, what is old is deleted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dfm.distributed import checkpointing
from dfm.errors import ClusterError, DataError, SettingsError
from dfm.kernels.optimizers import OPTIMIZERS
from dfm.kernels.tables import InitialValues, Layout, initialise
from dfm.storage import files
from dfm.training.checkpoint import (
    BlockFile,
    Checkpoint,
    CheckpointFolder,
    Conflict,
    Identity,
    SavedBlock,
    block_name,
    decode_block,
    decode_manifest,
    encode_block,
    encode_manifest,
    read_block,
    write_block,
)

LAYOUT = Layout("adagrad", 3)
TABLES = {"data": {"train": ["clicks"]}, "training": {"learning_rate": 0.1, "n_epochs": 5}}
IDENTITY = Identity(TABLES, [["clicks/a.parquet", 100, "then"], ["clicks/b.parquet", 200, "then"]])


def block(start: int = 7, momentum: bool = False, layout: Layout = LAYOUT) -> SavedBlock:
    table = initialise(layout, np.arange(20, dtype=np.uint32), 5, InitialValues(start))
    return SavedBlock(
        start,
        table,
        initialise(layout.stateless, np.arange(20, dtype=np.uint32), 5, InitialValues(1)) if momentum else None,
    )


def saved(folder: Path, rounds_done: int, **changes: Any) -> Checkpoint:
    """A checkpoint whose files are written, not yet committed."""
    file = write_block(str(folder), block_name("", rounds_done, 0), block(rounds_done), None)
    checkpoint = Checkpoint(IDENTITY, {"progress": {"epoch": 1}, "best": None}, rounds_done, (file,), ())
    return dataclasses.replace(checkpoint, **changes)


def folder_at(path: Path, writer: str = "this run") -> CheckpointFolder:
    return CheckpointFolder(str(path), writer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_block_comes_back_with_its_state(tmp_path: Path, optimizer: str, momentum: bool) -> None:
    layout = Layout(optimizer, 3)
    before = block(momentum=momentum, layout=layout)
    file = write_block(str(tmp_path), block_name("", 12, 1), before, None)
    after = read_block(str(tmp_path), file, layout, None)
    assert after.start == file.start == 7
    for part in ("bias", "linear", "factors"):
        np.testing.assert_array_equal(getattr(after.table, part), getattr(before.table, part))
        if momentum:
            np.testing.assert_array_equal(getattr(after.momentum, part), getattr(before.momentum, part))
    assert (after.momentum is not None) == momentum
    assert after.table.factors.flags.writeable
    assert file.name.startswith("round-00000012-block-1-")


def test_every_changed_byte_of_a_block_is_noticed() -> None:
    data = encode_block(block())
    file = BlockFile(
        "round-00000001-block-0-0123456789abcdef.safetensors",
        hashlib.sha256(data).hexdigest(),
        len(data),
        7,
    )
    for position in range(0, len(data), 37):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(DataError, match="damaged: its checksum"):
            decode_block(bytes(changed), file, LAYOUT)


def test_a_block_of_another_layout_is_refused(tmp_path: Path) -> None:
    file = write_block(str(tmp_path), block_name("", 1, 0), block(), None)
    with pytest.raises(DataError, match="do not fit"):
        read_block(str(tmp_path), file, Layout("adagrad", 16), None)


def test_the_newest_checkpoint_is_found_first(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    for rounds_done in (3, 5):
        folder.commit(saved(tmp_path, rounds_done))
    assert [checkpoint.rounds_done for checkpoint in folder_at(tmp_path).found()] == [5, 3]
    assert folder_at(tmp_path).found()[0].identity == IDENTITY
    assert folder_at(tmp_path / "none").found() == []


@pytest.mark.parametrize("damage", ["cut short", "changed", "empty", "of another format", "a name outside"])
def test_a_damaged_manifest_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = folder_at(tmp_path)
    folder.commit(saved(tmp_path, 3))
    folder.commit(saved(tmp_path, 5))
    manifest = tmp_path / "round-00000005.json"
    data = manifest.read_bytes()
    outside = BlockFile("../../etc/passwd", "0" * 64, 1, 0)
    manifest.write_bytes(
        {
            "cut short": data[: len(data) // 2],
            "changed": data.replace(b"learning_rate", b"learning_rats"),
            "empty": b"",
            "of another format": encode_manifest(saved(tmp_path, 5, format=99)),
            "a name outside": encode_manifest(saved(tmp_path, 5, blocks=(outside,))),
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        found = folder_at(tmp_path).found()
    assert [checkpoint.rounds_done for checkpoint in found] == [3]
    assert "skipping the damaged checkpoint" in caplog.text
    assert "round-00000005.json" in caplog.text


def test_no_mutation_of_a_manifest_gives_another_checkpoint() -> None:
    data = encode_manifest(Checkpoint(IDENTITY, {"best": None}, 5, (), ()))
    original = decode_manifest(data)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 4
        try:
            assert decode_manifest(bytes(changed)) == original
        except (ValueError, TypeError, KeyError):
            continue


def test_of_two_runs_at_one_folder_the_second_to_commit_stops(tmp_path: Path) -> None:
    ours, theirs = folder_at(tmp_path, "ours"), folder_at(tmp_path, "theirs")
    ours.commit(saved(tmp_path, 3))
    assert theirs.found()
    theirs.commit(saved(tmp_path, 4))
    for rounds_done in (4, 5):
        with pytest.raises(Conflict, match=r"round-00000004\.json was written by theirs, not by this run \(ours\)"):
            ours.commit(saved(tmp_path, rounds_done))
    theirs.commit(saved(tmp_path, 5))


def test_only_the_last_two_checkpoints_and_their_files_stay(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    best = (write_block(str(tmp_path), block_name("", 2, 0), block(2), None),)
    (tmp_path / f".round-00000001.json.{'0' * 32}.part").write_bytes(encode_manifest(saved(tmp_path, 1))[:100])
    (tmp_path / "notes.txt").write_text("somebody's")
    for rounds_done in range(3, 9):
        folder.commit(saved(tmp_path, rounds_done, best=best))
    kept = names(tmp_path)
    assert [name for name in kept if name.endswith(".json")] == ["round-00000007.json", "round-00000008.json"]
    assert [name[:20] for name in kept if "block" in name] == [f"round-0000000{n}-block"[:20] for n in (2, 7, 8)]
    assert "notes.txt" in kept
    assert len(kept) == 6
    folder.clear()
    assert names(tmp_path) == ["notes.txt"]


def test_files_that_the_parameters_come_from_stay_however_old_they_are(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    origin = saved(tmp_path, 1)
    saver = checkpointing.Checkpointer(SimpleNamespace(submit=lambda *_: SimpleNamespace(key="")), folder, IDENTITY,
                                       LAYOUT, by_workers=True)  # fmt: skip
    state = {"progress": {"blocks_at": 1}, "best": None}
    saver.load(dataclasses.replace(origin, state=state))
    for rounds_done in range(1, 6):
        folder.commit(saved(tmp_path, rounds_done))
    assert [name[:20] for name in names(tmp_path) if "block" in name] == [f"round-0000000{n}-block" for n in (1, 4, 5)]
    saver.load(dataclasses.replace(saved(tmp_path, 5), state=state))  # as when the lineage of parameters is cut
    folder.commit(saved(tmp_path, 6))
    assert [name[:20] for name in names(tmp_path) if "block" in name] == [f"round-0000000{n}-block" for n in (5, 6)]
    saver.close()


def test_a_file_that_is_gone_is_trouble_of_the_cluster_and_a_missing_file(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 1)
    (tmp_path / checkpoint.blocks[0].name).unlink()
    with pytest.raises(checkpointing.BlockGone, match="is gone, which the parameters of this run come from") as gone:
        checkpointing.load_block(str(tmp_path), checkpoint.blocks[0], LAYOUT, None)
    assert isinstance(gone.value, ClusterError)
    assert isinstance(gone.value, FileNotFoundError)
    again = pickle.loads(pickle.dumps(gone.value))
    assert (type(again), str(again)) == (type(gone.value), str(gone.value))


def test_a_cleared_folder_is_gone_and_can_be_used_again(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "checkpoint")
    folder.commit(saved(tmp_path / "checkpoint", 3))
    folder.clear()
    assert not (tmp_path / "checkpoint").exists()
    folder.commit(saved(tmp_path / "checkpoint", 1))


def test_a_run_that_takes_its_checkpoints_back_leaves_those_of_others_and_their_blocks(tmp_path: Path) -> None:
    ours, theirs = folder_at(tmp_path, "ours"), folder_at(tmp_path, "theirs")
    ours.commit(saved(tmp_path, 1))
    ours.commit(second := saved(tmp_path, 2))
    assert theirs.found()
    theirs.commit(third := saved(tmp_path, 3, best=second.blocks))
    ours.withdraw()
    assert names(tmp_path) == sorted(["round-00000003.json", *(each.blocks[0].name for each in (second, third))])
    theirs.withdraw()
    assert not tmp_path.exists()


def test_a_listing_of_before_the_last_change_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_at(tmp_path / "checkpoint")
    folder.commit(saved(tmp_path / "checkpoint", 3))
    before = [name for name in files.names_in(folder.url) if not name.endswith(".json")]
    stale, names_in = [before], files.names_in
    monkeypatch.setattr(files, "names_in", lambda *place: stale.pop() if stale else names_in(*place))
    folder.clear()
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Identity({**TABLES, "training": {"learning_rate": 0.2, "n_epochs": 5}}, IDENTITY.shards),
         r"training\.learning_rate is 0\.1 now and 0\.2 there"),
        (Identity({**TABLES, "training": {"learning_rate": 0.1}}, IDENTITY.shards),
         r"training\.n_epochs is 5 now and \(not known\) there"),
        (Identity(TABLES, [["clicks/a.parquet", 100, "later"], ["clicks/b.parquet", 200, "then"]]),
         r"the shard clicks/a\.parquet changed since then\. "),
        (Identity(TABLES, [["clicks/a.parquet", 100, "then"]]), r"the shard clicks/b\.parquet was added since then"),
        (Identity(TABLES, [*IDENTITY.shards, ["clicks/c.parquet", 1, "then"]]),
         r"the shard clicks/c\.parquet is gone since then"),
        (Identity({"data": {"train": ["logs"]}}, []), r"data\.train is .*; .*training.*; the shard .* and 1 more"),
    ],
)  # fmt: skip
def test_another_job_is_refused_with_what_differs(other: Identity, message: str) -> None:
    with pytest.raises(SettingsError, match=message + ".*--no-resume"):
        IDENTITY.check(other, "out/checkpoint")
    IDENTITY.check(IDENTITY, "out/checkpoint")


def test_a_manifest_is_json_that_says_what_it_holds() -> None:
    outer = json.loads(encode_manifest(Checkpoint(IDENTITY, {"best": None}, 5, (), ())))
    assert json.loads(outer["content"])["identity"]["tables"] == TABLES
