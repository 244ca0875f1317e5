"""Checkpoints: the whole state of a training after an average, in any filesystem, resumable by the same job.

A checkpoint is a manifest `round-00000012.json` beside the files of its parameter blocks; where a job trains several
models, each has its own, `model-1-round-00000012.json`. Files are written first,
under names that hold the digest of their bytes; the manifest last, and only where none of that name exists (a link on
local disks, a conditional put on S3), so of two drivers at one folder one loses and notices. A manifest that was cut
short, or names a file whose bytes are no longer what they were, is skipped for the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.errors import DataError, SettingsError
from dfm.events import to_json
from dfm.kernels.tables import Layout, ParameterTable
from dfm.storage import files, ownership
from dfm.storage.arrays import array_bytes, parse_arrays

logger = logging.getLogger(__name__)
FORMAT = 1
KEPT = 2
"""Checkpoints that stay: the newest, and one to fall back to."""
_OF_MODEL = r"((?:model-\d+-)?)"
_MANIFEST = re.compile(rf"{_OF_MODEL}round-\d{{8}}\.json")
_BLOCK = re.compile(rf"{_OF_MODEL}round-\d{{8}}-block-\d+-[0-9a-f]{{16}}\.safetensors")
_TEMPORARY = re.compile(rf"\.(?:{_MANIFEST.pattern}|{_BLOCK.pattern})\.[0-9a-f]{{32}}\.part")
_BEGINNING = re.compile(rf"\.?{_OF_MODEL}round-")
_MANIFEST_HEAD = b'{"sha256": "'
_MOMENTUM, _NOISE = "momentum_", "noise"


class Conflict(Exception):
    """Somebody else writes checkpoints to the same folder."""


@dataclass(frozen=True)
class Identity:
    """Facts that a run shares with a checkpoint to go on from: the tables that decide parameters, and the shards."""

    tables: Mapping[str, Mapping[str, Any]]
    shards: Sequence[Sequence[Any]]
    """[url, bytes, modification time or etag] of every shard, training and validation."""
    tables_read: Sequence[Mapping[str, str]] = field(default_factory=list)
    """Records of the tables' states that the shards are of (`dfm.data.snapshots.Snapshot`)."""

    def check(self, found: Identity, where: str, rival: str = "") -> None:
        """SettingsError naming every key that differs from the checkpoint's. rival: sentences about a run at work
        there, whose checkpoint is not to be deleted.
        """
        differences = [*_differing_keys(self.tables, found.tables), *_differing_shards(self.shards, found.shards)]
        if differences:
            afresh = (
                "Choose another output.directory, or start afresh with --no-resume (output.resume = false), which "
                "deletes it"
            )
            raise SettingsError(
                f"the checkpoint at {where} belongs to another job: {'; '.join(differences)}. {rival or afresh}"
            )


def _differing_keys(ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    missing = object()
    found = []
    for table in sorted({*ours, *theirs}):
        here, there = ours.get(table, {}), theirs.get(table, {})
        for key in sorted({*here, *there}):
            now, then = here.get(key, missing), there.get(key, missing)
            if now != then:
                shown = ["(not known)" if value is missing else json.dumps(value) for value in (now, then)]
                found.append(f"{table}.{key} is {shown[0]} now and {shown[1]} there")
    return found


def _differing_shards(ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]) -> list[str]:
    now, then = ({shard[0]: list(shard[1:]) for shard in shards} for shards in (ours, theirs))
    changed = sorted(url for url in {*now, *then} if now.get(url) != then.get(url))
    if not changed:
        return []
    url = changed[0]
    what = "changed" if url in now and url in then else "was added" if url in now else "is gone"
    more = f", and {len(changed) - 1} more differ" if len(changed) > 1 else ""
    return [f"the shard {url} {what} since then{more}"]


@dataclass(frozen=True)
class BlockFile:
    """A saved block: rows [start, start + n_features) of the table, with optimizer state and outer momentum."""

    name: str
    sha256: str
    size: int
    start: int


@dataclass(frozen=True)
class SavedBlock:
    """The contents of a block file."""

    start: int
    table: ParameterTable
    momentum: ParameterTable | None
    noise: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """One manifest. `state`: JSON-ready, what the training loop knows; `best`: the block files to publish, if any."""

    identity: Identity
    state: Mapping[str, Any]
    rounds_done: int
    blocks: tuple[BlockFile, ...]
    best: tuple[BlockFile, ...]
    writer: str = ""
    format: int = FORMAT

    @property
    def name(self) -> str:
        """The name of its manifest, after the folder's prefix."""
        return f"round-{self.rounds_done:08d}.json"

    @property
    def files(self) -> set[str]:
        """Names of the block files that it needs."""
        return {block.name for block in (*self.blocks, *self.best)}


def prefix_of(number: int, n_models: int) -> str:
    """The beginning of the names of all checkpoints of one of a job's models, counted from 0."""
    return f"model-{number}-" if n_models > 1 else ""


def prefixes_in(url: str, options: files.Options) -> list[str]:
    """The prefixes of all that checkpoints have left below a URL, whosever they are."""
    found = [(name, _BEGINNING.match(name)) for name in files.names_in(url, options)]
    kinds = _MANIFEST, _BLOCK, _TEMPORARY
    return sorted({match.group(1) for name, match in found if match and any(kind.fullmatch(name) for kind in kinds)})


def encode_block(saved: SavedBlock) -> bytes:
    """The safetensors bytes of a block."""
    arrays = _arrays("", saved.table)
    if saved.momentum is not None:
        arrays |= _arrays(_MOMENTUM, saved.momentum)
    arrays["start"] = np.array([saved.start], np.int64)
    if saved.noise:
        arrays[_NOISE] = np.array([saved.noise], np.float64)
    return array_bytes(arrays)


def _arrays(prefix: str, table: ParameterTable) -> dict[str, NDArray[np.float32]]:
    return {prefix + block.name: table[block.name] for block in table.layout.blocks}


def decode_block(data: bytes, file: BlockFile, layout: Layout) -> SavedBlock:
    """The block of a file. DataError where the bytes are not those that were written, or do not fit the layout."""
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DataError(f"the checkpoint file {file.name} is damaged: its checksum is not the one that was written")
    try:
        arrays, _ = parse_arrays(np.frombuffer(data, np.uint8))
        table = _table(arrays, "", layout)
        has_momentum = any(name.startswith(_MOMENTUM) for name in arrays)
        momentum = _table(arrays, _MOMENTUM, layout.stateless) if has_momentum else None
        noise = float(arrays[_NOISE][0]) if _NOISE in arrays else 0.0
        return SavedBlock(int(arrays["start"][0]), table, momentum, noise)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"the checkpoint file {file.name} is damaged: {error}") from error


def _table(arrays: Mapping[str, NDArray[Any]], prefix: str, layout: Layout) -> ParameterTable:
    table = ParameterTable(layout, {block.name: arrays[prefix + block.name] for block in layout.blocks})
    shapes = {block.name: table[block.name].shape for block in layout.blocks}
    fits = shapes == layout.shapes(table.n_features, table.n_factored, table.n_fields)
    if not fits or table.n_factored > table.n_features:
        raise ValueError(f"its arrays do not fit {layout}")
    return table.copy()  # aligned and writable, as blocks are


def write_block(url: str, name: str, saved: SavedBlock, options: files.Options) -> BlockFile:
    """Write one block below the folder `url`; the same block always gets the same name and bytes.

    name: what its file's begins with, see `block_name`.
    """
    data = encode_block(saved)
    digest = hashlib.sha256(data).hexdigest()
    file = BlockFile(f"{name}-{digest[:16]}.safetensors", digest, len(data), saved.start)
    files.write_bytes(files.join(url, file.name), data, options)
    return file


def block_name(prefix: str, rounds_done: int, number: int) -> str:
    """The beginning of the name of a block's file."""
    return f"{prefix}round-{rounds_done:08d}-block-{number}"


def read_block(url: str, file: BlockFile, layout: Layout, options: files.Options) -> SavedBlock:
    """Read one block back. DataError where it is damaged, FileNotFoundError where it is gone."""
    return decode_block(files.read_bytes(files.join(url, file.name), options), file, layout)


def encode_manifest(checkpoint: Checkpoint) -> bytes:
    """JSON with the checksum of its own content."""
    content = to_json(asdict(checkpoint))
    return json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content}).encode()


def decode_manifest(data: bytes) -> Checkpoint:
    """ValueError where the manifest is cut short, changed, or of another format."""
    outer = json.loads(data)
    if not isinstance(outer, dict) or not isinstance(outer.get("content"), str):
        raise ValueError("not a manifest")
    if hashlib.sha256(outer["content"].encode()).hexdigest() != outer.get("sha256"):
        raise ValueError("its checksum does not fit")
    content = json.loads(outer["content"])
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')}; this version reads {FORMAT}")
    blocks, best = (tuple(_block_file(entry) for entry in content.pop(key)) for key in ("blocks", "best"))
    return Checkpoint(Identity(**content.pop("identity")), blocks=blocks, best=best, **content)


def _block_file(entry: Mapping[str, Any]) -> BlockFile:
    file = BlockFile(**entry)
    if not _BLOCK.fullmatch(file.name):
        raise ValueError(f"{file.name!r} is no name of a block file")
    return file


@dataclass
class CheckpointFolder:
    """The checkpoints below one URL. `writer` names the run that holds this object."""

    url: str
    writer: str
    options: files.Options = field(default=None, repr=False)
    prefix: str = ""
    """The beginning of the names of its files; those of other models beside them are left alone."""
    _files: dict[str, set[str]] = field(default_factory=dict)
    """Block files by manifest, of all manifests that this run wrote or found."""
    origin: frozenset[str] = frozenset()
    """Block files that the present parameters come from: they are read again where the workers that had them are lost,
    however many checkpoints were written since."""

    def found(self) -> list[Checkpoint]:
        """The checkpoints with a sound manifest, newest first; others are told in a warning and deleted."""
        checkpoints = []
        for name in sorted(self._own(_MANIFEST, files.names_in(self.url, self.options)), reverse=True):
            try:
                checkpoint = decode_manifest(files.read_bytes(files.join(self.url, name), self.options))
            except FileNotFoundError:  # a run that is at work here has deleted it since
                continue
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                self._discard(name, error)
                continue
            self._files[name] = checkpoint.files
            checkpoints.append(checkpoint)
        return checkpoints

    def discard(self, checkpoint: Checkpoint, reason: Exception) -> None:
        """Delete a checkpoint that turned out to be damaged: its name is needed again."""
        self._files.pop(self.prefix + checkpoint.name, None)
        self._discard(self.prefix + checkpoint.name, reason)

    def _discard(self, name: str, reason: Exception) -> None:
        url = files.join(self.url, name)
        ownership.check_replaceable(url, _is_manifest, self.options)
        logger.warning("skipping the damaged checkpoint %s: %s", url, reason)
        ownership.remove_own(url, _is_manifest, self.options)

    def commit(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint whose block files are written, and delete those before the last two.

        Conflict where another run published to the folder in the meantime.
        """
        names = files.names_in(self.url, self.options)
        strange = set(self._own(_MANIFEST, names)) - set(self._files)
        if strange:
            raise Conflict(self._conflict(max(strange)))
        checkpoint, name = replace(checkpoint, writer=self.writer), self.prefix + checkpoint.name
        try:
            files.create_bytes(files.join(self.url, name), encode_manifest(checkpoint), self.options)
        except FileExistsError as error:
            raise Conflict(self._conflict(name)) from error
        self._files[name] = checkpoint.files
        self._prune(names)

    def _conflict(self, name: str) -> str:
        try:
            other = decode_manifest(files.read_bytes(files.join(self.url, name), self.options)).writer
        except (OSError, ValueError):
            other = "another run"
        return (
            f"{files.join(self.url, name)} was written by {other}, not by this run ({self.writer}): two runs share "
            "one output.directory. This one stops; let the other finish, or give each its own directory"
        )

    def _prune(self, names: Sequence[str]) -> None:
        """Delete what the last checkpoints do not need, and what a killed run left half written."""
        manifests = sorted(self._files)
        needed = set(self.origin).union(*(self._files[name] for name in manifests[-KEPT:]))
        for name in manifests[:-KEPT]:
            self._remove(name)
            del self._files[name]
        for name in (*self._own(_TEMPORARY, names), *self._own(_BLOCK, names)):
            if name not in needed:
                self._remove(name)

    def _own(self, kind: re.Pattern[str], names: Iterable[str]) -> list[str]:
        """Names of a kind that belong to this model's checkpoints."""
        beginning = f"{self.prefix}round-"
        return [name for name in names if kind.fullmatch(name) and name.removeprefix(".").startswith(beginning)]

    def _remove(self, name: str) -> None:
        """Delete a file of a checkpoint; one that dfm did not make stays, whatever its name."""
        ownership.remove_own(files.join(self.url, name), _is_own, self.options)

    def clear(self) -> None:
        """Delete all checkpoints: the manifests first, so that none is left without its blocks.

        What is there is asked twice: a network disk may list a folder as it was before its last change.
        """
        for _ in range(2):
            names = files.names_in(self.url, self.options)
            for kind in (_MANIFEST, _BLOCK, _TEMPORARY):
                for name in self._own(kind, names):
                    self._remove(name)
        self._files.clear()
        self._remove_folder()

    def withdraw(self) -> None:
        """Delete the checkpoints that this run has written itself; others stay, with the blocks that they need."""
        mine, blocks, needed = list[str](), set[str](), set[str]()
        for name in self._own(_MANIFEST, files.names_in(self.url, self.options)):
            with contextlib.suppress(ValueError, TypeError, KeyError, FileNotFoundError):
                checkpoint = decode_manifest(files.read_bytes(files.join(self.url, name), self.options))
                is_mine = checkpoint.writer == self.writer
                (blocks if is_mine else needed).update(checkpoint.files)
                mine += [name] if is_mine else []
        for name in (*mine, *sorted(blocks - needed)):
            self._remove(name)
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Delete the folder where nothing is in it any more."""
        if files.is_local(self.url):
            with contextlib.suppress(OSError):
                files.local_path(self.url).rmdir()


def _is_manifest(url: str, options: files.Options) -> bool:
    """Whether a file is a manifest of dfm, be it cut short: after a power cut nothing may be left of one."""
    head = files.read_head(url, len(_MANIFEST_HEAD), options)
    return _MANIFEST_HEAD.startswith(head)


def _is_own(url: str, options: files.Options) -> bool:
    return ownership.is_array_file(url, options) or _is_manifest(url, options)
