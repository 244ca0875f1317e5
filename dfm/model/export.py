"""A model for other systems: a Parquet table, ONNX, or the text formats of xLearn and libFM.

Whoever scores an exported model has to hash raw values first, as `model.json` specifies: `hashed_inputs` does it and is
what every export is tested with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfm.data.hashed_rows import HashedRows
from dfm.data.matrices import is_sparse
from dfm.data.vocabulary import ABSENT
from dfm.errors import SettingsError
from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import ParameterTable
from dfm.model.entries import check_good
from dfm.model.fm_model import FMModel
from dfm.model.onnx_graph import DATA_NAME, onnx_files
from dfm.model.rows import batches_of, in_columns, numeric_of
from dfm.model.token_names import TokenNames
from dfm.storage import files, ownership

logger = logging.getLogger(__name__)
_TEXTS = ("xlearn", "libfm")
_TEXT_LINKS = ("sigmoid", "identity", "margin", "rank")
"""Links that text formats may hold: their reader, who knows classes and numbers, makes predictions of scores."""
_WITHOUT_RANGE = {
    "xlearn": "cut what xlearn_predict gives to this range, or export to onnx",
    "libfm": "libFM cuts its predictions to the range of the training labels that it is given; cut those of any other "
    "reader to this range",
}
"""By format: the remedy where a model's predictions have a range."""


def hashed_inputs(model: FMModel, data: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Hashed indices, field numbers and values of raw rows: int64, int64, float32, each [n_rows, longest row].

    Short rows are padded with index -1, field 0, value 0. Of a field-aware model index and field are those of the
    feature that scores: of a rare or unseen value its field's rare bucket, and where values of two columns share an
    index, the field of the feature that has it. `data` is what `FMModel.predict` takes; DataError as there.
    """
    parts = list(_hashed_rows(model, data))
    longest = max((int(np.diff(part.indptr).max(initial=0)) for part in parts), default=0)
    n_rows = sum(part.n_rows for part in parts)
    ids, fields = np.full((n_rows, longest), -1, np.int64), np.zeros((n_rows, longest), np.int64)
    values = np.zeros((n_rows, longest), np.float32)
    first = 0
    for part in parts:
        lengths = np.diff(part.indptr)
        row = first + np.repeat(np.arange(part.n_rows), lengths)
        column = np.arange(len(part.indices)) - np.repeat(part.indptr[:-1], lengths)
        ids[row, column], fields[row, column] = _ids_and_fields(model, part)
        values[row, column] = part.values if part.values.size else 1.0
        first += part.n_rows
    return ids, fields, values


def _hashed_rows(model: FMModel, data: Any) -> Iterator[HashedRows]:
    """The rows as the model sees them, in batches."""
    if isinstance(data, np.ndarray) or is_sparse(data):
        yield model.encode_matrix(data)
        return
    schema = model.schema
    for batch in batches_of(in_columns(data, schema), schema.columns, numeric_of(schema), schema.missing):
        encoded = model.encode(batch)
        check_good(encoded)
        yield encoded.rows


def _ids_and_fields(model: FMModel, rows: HashedRows) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """The index and the field of each entry, uint32[n_entries] and uint16[n_entries]."""
    fields = rows.fields
    if not fields.size:
        fields = (np.arange(len(rows.indices)) % len(model.schema.fields)).astype(np.uint16)
    if not family_of(model.table.layout.family).has_groups:
        return rows.indices, fields
    # Kernels go by the field of the feature, readers of a field-aware text by the one that stands beside the id.
    vocabulary, found = model.vocabulary, model.lookup.rows(rows.indices, fields)
    known = np.flatnonzero(found != ABSENT)
    ids, fields = rows.indices.copy(), fields.copy()
    ids[known], fields[known] = vocabulary.ids[found[known]], vocabulary.fields[found[known]]
    return ids, fields


def _dense_factors(model: FMModel) -> NDArray[np.float32]:
    """V of every feature, zeros for those without factors: float32[n_features, row_factors]."""
    table = model.table
    dense = np.zeros((table.n_features, table.layout.row_factors), np.float32)
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


def parquet_file(model: FMModel, names: TokenNames | None = None) -> dict[str, bytes]:
    """`parquet_table` as a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(parquet_table(model, names), sink)
    return {"model.parquet": bytes(sink.getvalue())}


def xlearn_text(model: FMModel) -> dict[str, bytes]:
    """Lines "bias: b", "i_INDEX: w", "v_INDEX: v …" as xLearn's text models have them; INDEX is the hashed index.

    Of a field-aware model "v_INDEX_FIELD: v …", where xLearn's field is dfm's group; a second file has the group of
    each field, in their order.
    """
    text = {"model.xlearn.txt": "".join(_xlearn_lines(model)).encode()}
    if not family_of(model.table.layout.family).has_groups:
        return text
    groups = model.table.layout.groups or (0,) * len(model.schema.fields)
    return {**text, "model.xlearn.fields.txt": _lines(map(str, groups))}


def _xlearn_lines(model: FMModel) -> Iterator[str]:
    ids = model.vocabulary.ids
    yield f"bias: {_text(model.table.bias_value)}\n"
    for index, weight in zip(ids, model.table.linear_weights, strict=True):
        yield f"i_{index}: {_text(weight)}\n"
    layout, dense = model.table.layout, _dense_factors(model)
    if not family_of(layout.family).has_groups:
        yield from (f"v_{index}: {_numbers(row)}\n" for index, row in zip(ids, dense, strict=True))
        return
    for index, vectors in zip(ids, dense.reshape(len(ids), layout.n_groups, layout.n_factors), strict=True):
        yield from (f"v_{index}_{group}: {_numbers(vector)}\n" for group, vector in enumerate(vectors))


def libfm_text(model: FMModel) -> dict[str, bytes]:
    """libFM's model text. Features are numbered by line; a second file has their hashed indices."""
    lines = ["#global bias W0", _text(model.table.bias_value), "#unary interactions Wj"]
    lines += [_text(weight) for weight in model.table.linear_weights]
    lines += ["#pairwise interactions Vj,f"]
    lines += [_numbers(factors) for factors in _dense_factors(model)]
    ids = map(str, model.vocabulary.ids)
    return {"model.libfm.txt": _lines(lines), "model.libfm.ids.txt": _lines(ids)}


def _lines(lines: Iterable[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _numbers(row: NDArray[np.float32]) -> str:
    return " ".join(map(_text, row))


def _text(number: np.float32) -> str:
    """The shortest decimal that reads back as the same float32."""
    return str(np.float32(number))


FORMATS: dict[str, Callable[[FMModel], dict[str, bytes]]] = {
    "parquet": parquet_file,
    "onnx": onnx_files,
    "xlearn": xlearn_text,
    "libfm": libfm_text,
}
"""By name: what makes the files, by their names."""


def export(
    model: FMModel, kind: str, directory: str, options: files.Options = None, names: TokenNames | None = None
) -> list[str]:
    """Write the model in one of FORMATS below a folder or URL; returns the URLs of the files written.

    names: of tokens, which "parquet" writes. An earlier export is replaced. SettingsError where the folder has no name,
    a file of such a name is there that dfm did not make, or the format cannot say what the model is; of a range that
    predictions stay in, which texts cannot say either, there is a warning.
    """
    files.check_named(directory, "output")
    model.check_is_machine("export")
    info, family = model.objective.info, model.table.layout.family
    if kind in _TEXTS and kind not in family_of(family).texts:
        raise SettingsError(
            f'the text of {kind} knows a bias, weights and factors, and a model of family "{family}" has more; export '
            "to onnx, or to parquet for a reader that knows it"
        )
    if kind in _TEXTS and model.calibration is not None:
        raise SettingsError(
            f"the text of {kind} cannot say that logits are calibrated, as those of this model are; export to onnx, or "
            'train with model.calibration = "none"'
        )
    if kind in _TEXTS and info.link not in _TEXT_LINKS:
        raise SettingsError(
            f'the text of {kind} cannot say that predictions are {info.link}(score), as with loss "{info.name}"; '
            "export to onnx, or to parquet for a reader that knows it"
        )
    if model.clip is not None and kind in _WITHOUT_RANGE:
        low, high = model.clip
        logger.warning(
            "predictions of this model stay within %g to %g, which the text of %s cannot say: %s",
            low, high, kind, _WITHOUT_RANGE[kind],
        )  # fmt: skip
    contents = parquet_file(model, names) if kind == "parquet" else FORMATS[kind](model)
    urls = [files.join(directory, file) for file in contents]
    ledger = ownership.Ledger(directory, "exports", options)
    claim = ledger.claim(contents)
    for name, data in contents.items():
        with ledger.writing(name, claim) as stream:
            stream.write(data)
    if kind == "onnx" and DATA_NAME not in contents:
        ledger.remove([DATA_NAME])  # that of an earlier, larger model
    ledger.settle()
    return urls
