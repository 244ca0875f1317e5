"""Loads models that somebody changed, in a process of its own: `python tests/fuzz_model.py FOLDER FIRST COUNT`.

Prints the number of a mutation before the model is loaded, then one line of JSON that counts the outcomes. Checksums
are made to fit, as somebody would who means it. An outcome that must not be raises.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import resource
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dfm.errors import DfmError, ModelError
from dfm.model.fm_model import FMModel
from tests.support import fuzz_parquet
from tests.support.small_models import make_model, random_table

MEMORY = 6 << 30
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 31, 2**31, 2**63, 2**70, -(2**63), 1e308, float("nan"), float("inf"), "", "x",
    "../../x", "/etc/passwd", "\x00", "é" * 300, [], [[]], [0] * 5000, {}, {"a": {}}, "__import__('os').abort()",
    "{{7*7}}", "${HOME}",
    "categorical", "list", "cross", "raw", "quantile", "regression",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value, without the metadata."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, item in inner:
        if path or key != "metadata":
            found += places(item, (*path, key))
    return found


def change(manifest: dict[str, Any], draw: random.Random) -> None:
    """Put something nasty somewhere, or take something out."""
    path = draw.choice(places(manifest))
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    if draw.random() < 0.15:
        del parent[path[-1]]
    elif isinstance(parent, list) and draw.random() < 0.2:
        parent.append(copy.deepcopy(draw.choice(parent)))
    else:
        parent[path[-1]] = copy.deepcopy(draw.choice(NASTY))


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Change the header or the arrays of a safetensors file, or its length."""
    out = bytearray(data)
    header = int.from_bytes(data[:8], "little")
    kind = draw.choice(["header", "header", "length", "arrays", "arrays", "cut", "huge"])
    if kind == "length":
        out[draw.randrange(8)] = draw.randrange(256)
    elif kind == "cut":
        return bytes(out[: draw.randrange(len(out))])
    elif kind == "huge":
        text = draw.choice(
            [b'{"ids":' + b"[" * 200_000, b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b'],"data_offsets":[0,4]}}']
        )
        return len(text).to_bytes(8, "little") + text + data[8 + header :]
    else:
        first, last = (8, 8 + header) if kind == "header" else (8 + header, len(out))
        for _ in range(draw.choice([1, 1, 4, 40])):
            digits = b'0123456789-[]{},:"FUI' if kind == "header" else bytes(range(256))
            out[draw.randrange(first, last)] = draw.choice(digits)
    return bytes(out)


def write(folder: Path, manifest: dict[str, Any], text: str | None = None) -> None:
    (folder / "model.json").write_text(json.dumps(manifest) if text is None else text)


def one(number: int, source: Path, folder: Path, rows: Any, sound: np.ndarray) -> str:
    """Change a model, load it, score with it: the outcome in a word."""
    draw = random.Random(number)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    manifest = json.loads((source / "model.json").read_bytes())
    if draw.random() < 0.6:
        manifest["files"].pop("golden")  # the last line of defence is not the only one
    what = draw.choice(["manifest", "manifest", "parameters", "golden", "text"])
    if what == "manifest":
        for _ in range(draw.choice([1, 1, 2])):
            change(manifest, draw)
        write(folder, manifest)
    elif what == "text":
        text = json.dumps(manifest)
        at = draw.randrange(len(text))
        write(
            folder,
            {},
            draw.choice([text[:at], text[:at] + '"' + text[at:], "[" * 200_000, "9" * 10_000, '"x"', "null", ""]),
        )
    elif what in manifest["files"]:
        entry = manifest["files"][what]
        data = (folder / entry["name"]).read_bytes()
        data = mutate(data, draw) if what == "parameters" else fuzz_parquet.mutate(data, draw, len(data))
        (folder / entry["name"]).write_bytes(data)
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        write(folder, manifest)
    try:
        model = FMModel.load(str(folder))
    except ModelError as error:
        if len(str(error)) > 2000:
            raise AssertionError(f"{number}: a message of {len(str(error))} characters") from error
        return "refused"
    try:
        scores = model.predict(rows)
        few = model.predict({name: rows.column(name).to_pylist()[:3] for name in rows.column_names})
    except DfmError:
        return "loaded, scores nothing"
    assert np.all(np.isfinite(scores)), f"{number}: scores that are not finite"
    assert np.allclose(few, scores[:3], atol=1e-6), number
    return "unchanged" if np.array_equal(scores, sound) else "another model"


def main(folder: Path, first: int, count: int) -> None:
    """Load mutations first, first + 1, … and print what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, rows = folder / "sound", random_table(60, 3)
    make_model().save(str(source), random_table(20))
    sound = FMModel.load(str(source)).predict(rows)
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        print(number, flush=True)
        outcomes[one(number, source, folder / "changed", rows, sound)] += 1
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["changed", "sound"], f"loading wrote {names}"
    print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
