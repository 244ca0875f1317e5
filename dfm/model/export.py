"""A model for other systems: a Parquet table, ONNX, or the text formats of xLearn and libFM.

Whoever scores an exported model has to hash raw values first, as `model.json` specifies: `hashed_inputs` does it and is
what every export is tested with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfm.errors import SettingsError
from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import ParameterTable
from dfm.model.fm_model import FMModel
from dfm.model.hashing_explained import ids_explained
from dfm.model.rows import batches_of, in_columns
from dfm.model.token_names import TokenNames
from dfm.storage import files, ownership
from dfm.version import pip_install

ONNX_OPSET = 18
_ONNX_LINKS = {"sigmoid": "Sigmoid", "identity": "Identity", "margin": "Identity", "exp": "Exp"}
_TEXT_LINKS = ("sigmoid", "identity", "margin")
"""Links that text formats may hold: their reader, who knows classes and numbers, makes predictions of scores."""


def hashed_inputs(model: FMModel, data: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Hashed indices, field numbers and values of raw rows: int64, int64, float32, each [n_rows, longest row].

    Short rows are padded with index -1, field 0, value 0. `data` is what `FMModel.predict` takes.
    """
    parts = [model.encode(batch).rows for batch in batches_of(in_columns(data, model.schema), model.schema.columns)]
    longest = max((int(np.diff(part.indptr).max(initial=0)) for part in parts), default=0)
    n_rows = sum(part.n_rows for part in parts)
    ids, fields = np.full((n_rows, longest), -1, np.int64), np.zeros((n_rows, longest), np.int64)
    values = np.zeros((n_rows, longest), np.float32)
    n_fields, first = len(model.schema.fields), 0
    for part in parts:
        lengths = np.diff(part.indptr)
        row = first + np.repeat(np.arange(part.n_rows), lengths)
        column = np.arange(len(part.indices)) - np.repeat(part.indptr[:-1], lengths)
        ids[row, column] = part.indices
        fields[row, column] = part.fields if part.fields.size else column % n_fields
        values[row, column] = part.values if part.values.size else 1.0
        first += part.n_rows
    return ids, fields, values


def _dense_factors(model: FMModel) -> NDArray[np.float32]:
    """V of every feature, zeros for those without factors: float32[n_features, n_factors]."""
    table = model.table
    dense = np.zeros((table.n_features, table.layout.n_factors), np.float32)
    dense[: table.n_factored] = table.factor_weights
    return dense


def parquet_table(model: FMModel, names: TokenNames | None = None) -> pa.Table:
    """One row per feature: id (hashed index), field (name), token, rare, count, w, V (null where the feature has none).

    The bias is the row of id -1 without a field. What a family has for fields, or for pairs of them, has rows of id -1
    and a column of its own. `rare` marks the bucket that rare and unseen categories of a field share. token: the
    feature's name where it is known: of buckets of numbers, and of what `names` has met; null elsewhere.
    """
    vocabulary, table = model.vocabulary, model.table
    fields = [field.name for field in model.schema.fields]
    is_rare = np.zeros(table.n_features, np.bool_)
    is_rare[vocabulary.rare[vocabulary.rare >= 0]] = True
    shared = [name or None for block in table.layout.shared for name in block.row_names(fields)]
    known = (names or TokenNames(model)).names
    tokens = [*map(known.get, range(table.n_features)), *[None] * len(shared)]
    return pa.table(
        {
            "id": pa.array([*vocabulary.ids.tolist(), *[-1] * len(shared)], pa.int64()),
            "field": pa.array([*np.array(fields)[vocabulary.fields].tolist(), *shared], pa.string()),
            "token": pa.array(tokens, pa.string()),
            "rare": pa.array([*is_rare.tolist(), *[False] * len(shared)]),
            "count": pa.array([*vocabulary.counts.tolist(), *[0] * len(shared)], pa.int64()),
            **_columns(table, len(shared)),
        }
    )


def _columns(table: ParameterTable, n_shared: int) -> dict[str, pa.Array]:
    """The blocks' columns: rows of features, then rows that belong to none; null where a block has no such row."""
    columns: dict[str, list[Any]] = {
        block.column: [None] * (table.n_features + n_shared) for block in table.layout.blocks
    }
    vectors = {block.column for block in table.layout.touched if block.is_vector}
    end = table.n_features
    for block in table.layout.blocks:
        values = table.values(block).tolist()
        first = end if block.is_shared else 0
        columns[block.column][first : first + len(values)] = values
        end += len(values) if block.is_shared else 0
    return {
        name: pa.array(values, pa.list_(pa.float32()) if name in vectors else pa.float32())
        for name, values in columns.items()
    }


def parquet_bytes(model: FMModel, names: TokenNames | None = None) -> bytes:
    """`parquet_table` as a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(parquet_table(model, names), sink)
    return bytes(sink.getvalue())


def xlearn_text(model: FMModel) -> bytes:
    """Lines "bias: b", "i_INDEX: w", "v_INDEX: v …" as xLearn's text models have them; INDEX is the hashed index."""
    return "".join(_xlearn_lines(model)).encode()


def _xlearn_lines(model: FMModel) -> Iterator[str]:
    ids = model.vocabulary.ids
    yield f"bias: {_text(model.table.bias_value)}\n"
    for index, weight in zip(ids, model.table.linear_weights, strict=True):
        yield f"i_{index}: {_text(weight)}\n"
    for index, factors in zip(ids, _dense_factors(model), strict=True):
        yield f"v_{index}: {' '.join(map(_text, factors))}\n"


def libfm_text(model: FMModel) -> bytes:
    """libFM's model text. Features are numbered by line; `export` writes their hashed indices beside it."""
    lines = ["#global bias W0", _text(model.table.bias_value), "#unary interactions Wj"]
    lines += [_text(weight) for weight in model.table.linear_weights]
    lines += ["#pairwise interactions Vj,f"]
    lines += [" ".join(map(_text, factors)) for factors in _dense_factors(model)]
    return ("\n".join(lines) + "\n").encode()


def _text(number: np.float32) -> str:
    """The shortest decimal that reads back as the same float32."""
    return str(np.float32(number))


def onnx_bytes(model: FMModel) -> bytes:
    """An ONNX graph with inputs ids, fields (int64) and values (float32), each [n_rows, n_entries] as `hashed_inputs`
    gives them, and output "prediction" float32[n_rows]; Gather, Where, ReduceSum and arithmetic only.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise SettingsError(f"the ONNX export needs the package onnx: {pip_install('onnx')}") from error
    vocabulary = model.vocabulary
    n_features = vocabulary.n_features
    # Row n_features is all zeros: padding and features that nobody knows point there.
    rows = np.full(2**vocabulary.hash_bits + 1, -1, np.int64)
    rows[vocabulary.ids] = np.arange(n_features)
    rows[-1] = n_features
    rare = np.where(vocabulary.rare >= 0, vocabulary.rare, n_features)
    constants = {
        "row_of_id": rows,
        "rare_row": rare.astype(np.int64),
        "w": np.append(model.table.linear_weights, np.float32(0)),
        "V": np.vstack([_dense_factors(model), np.zeros((1, model.table.layout.n_factors), np.float32)]),
        "bias": np.array([model.table.bias_value], np.float32),
        "zero": np.array(0, np.int64),
        "entries": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
    }
    layout, link = model.table.layout, _ONNX_LINKS[model.objective.info.link]
    own = {block.name: model.table.values(block) for block in layout.shared}
    more, of_family = family_of(layout.family).onnx(own, vocabulary.fields)
    constants |= more
    steps = [
        ("Gather", ["row_of_id", "ids"], "known"),
        ("Gather", ["rare_row", "fields"], "pooled"),
        ("Less", ["known", "zero"], "is_unknown"),
        ("Where", ["is_unknown", "pooled", "known"], "row"),
        ("Gather", ["w", "row"], "weights"),
        ("Mul", ["weights", "values"], "weighted"),
        ("ReduceSum", ["weighted", "entries"], "linear_part"),
        ("Gather", ["V", "row"], "vectors"),
        ("Unsqueeze", ["values", "last"], "value_column"),
        ("Mul", ["vectors", "value_column"], "scaled"),
        *of_family,
        ("Add", ["linear_part", "factor_part"], "parts"),
        ("Add", ["parts", "bias"], "score"),
        (link, ["score"], "prediction" if model.clip is None else "unclipped"),
    ]
    if model.clip is not None:
        constants |= {
            name: np.array(bound, np.float32) for name, bound in zip(("low", "high"), model.clip, strict=True)
        }
        steps.append(("Clip", ["unclipped", "low", "high"], "prediction"))
    attributes: dict[str, dict[str, Any]] = {"ReduceSum": {"keepdims": 0}, "Transpose": {"perm": [0, 2, 1]}}
    nodes = [helper.make_node(kind, inputs, [out], **attributes.get(kind, {})) for kind, inputs, out in steps]
    shape = ["n_rows", "n_entries"]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
        helper.make_tensor_value_info("fields", TensorProto.INT64, shape),
        helper.make_tensor_value_info("values", TensorProto.FLOAT, shape),
    ]
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n_rows"])]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "factorization_machine", inputs, outputs, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=9)
    made.doc_string = ids_explained(model)
    checker.check_model(made)
    return bytes(made.SerializeToString())


FORMATS: dict[str, tuple[str, Callable[[FMModel], bytes]]] = {
    "parquet": ("model.parquet", parquet_bytes),
    "onnx": ("model.onnx", onnx_bytes),
    "xlearn": ("model.xlearn.txt", xlearn_text),
    "libfm": ("model.libfm.txt", libfm_text),
}


def export(
    model: FMModel, kind: str, directory: str, options: files.Options = None, names: TokenNames | None = None
) -> list[str]:
    """Write the model in one of FORMATS below a folder or URL; returns the URLs of the files written.

    names: of tokens, which "parquet" writes. An earlier export is replaced. SettingsError where a file of such a name
    is there that dfm did not make.
    """
    name, made = FORMATS[kind]
    info, family = model.objective.info, model.table.layout.family
    if kind in ("xlearn", "libfm") and not family_of(family).has_texts:
        raise SettingsError(
            f'the text of {kind} knows a bias, weights and factors, and a model of family "{family}" has more; export '
            "to onnx, or to parquet for a reader that knows it"
        )
    if kind in ("xlearn", "libfm") and info.link not in _TEXT_LINKS:
        raise SettingsError(
            f'the text of {kind} cannot say that predictions are {info.link}(score), as with loss "{info.name}"; '
            "export to onnx, or to parquet for a reader that knows it"
        )
    contents = {name: parquet_bytes(model, names) if kind == "parquet" else made(model)}
    if kind == "libfm":
        contents["model.libfm.ids.txt"] = ("\n".join(map(str, model.vocabulary.ids)) + "\n").encode()
    urls = [files.join(directory, file) for file in contents]
    ledger = ownership.Ledger(directory, "exports", options)
    ledger.claim(contents)
    for url, data in zip(urls, contents.values(), strict=True):
        files.write_bytes(url, data, options)
    ledger.settle()
    return urls
