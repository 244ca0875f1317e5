"""A model as an ONNX graph: as large as its features are many, whatever the space that they were hashed into.

Hashed indices find their rows by buckets: the known ones lie in ascending order, cut by their leading bits into as many
buckets as there are features, or up to twice as many. Hashes are spread evenly, so that a bucket holds a few, and three
or four steps of a bisection find the one. Nothing but Gather, Where, sums and arithmetic is needed, and it is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfm.data.vocabulary import Vocabulary
from dfm.errors import SettingsError
from dfm.kernels.families.family import OnnxPart, OnnxStep
from dfm.kernels.families.registry import family_of
from dfm.kernels.tables import ParameterTable
from dfm.model.calibration import Calibration
from dfm.model.fm_model import FMModel
from dfm.model.hashing_explained import ids_explained
from dfm.version import pip_install

OPSET = 18
NAME, DATA_NAME = "model.onnx", "model.onnx.data"
LARGEST = 2**31 - 2**20
"""Bytes of constants that a file of ONNX may hold: protobuf has no message of 2 GiB."""
_SMALL = 1024
"""Bytes up to which a constant stays in the graph: runtimes look into axes before they read a data file."""
_ALIGNMENT = 1 << 16
"""Bytes that the places of arrays in a data file are multiples of, so that runtimes can map them."""
_LINKS = {"sigmoid": "Sigmoid", "identity": "Identity", "margin": "Identity", "rank": "Identity", "exp": "Exp"}
_INT, _INT32, _FLOAT = np.int64, np.int32, np.float32
Constants = dict[str, NDArray[Any]]


def onnx_files(model: FMModel) -> dict[str, bytes]:
    """Files by name: a graph with inputs ids, fields (int64) and values (float32), each [n_rows, n_entries] as
    `hashed_inputs` gives them, and output "prediction" float32[n_rows].

    Where the constants are too large for one file, the second holds them, and belongs beside the first.
    """
    try:
        import onnx
    except ImportError as error:
        raise SettingsError(f"the ONNX export needs the package onnx: {pip_install('onnx')}") from error
    model.check_is_machine("export")
    constants, steps = _graph_of(model)
    data = b""
    if sum(array.nbytes for array in constants.values()) > LARGEST:
        data, tensors = _apart(constants)
    else:
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = _made(steps, tensors)
    made.doc_string = ids_explained(model)
    # The checker looks for data files on disk, where there are none yet: it is shown the graph alone.
    onnx.checker.check_model(made if not data else _made(steps, [], constants))
    return {NAME: bytes(made.SerializeToString()), **({DATA_NAME: data} if data else {})}


def _apart(constants: Mapping[str, NDArray[Any]]) -> tuple[bytes, list[Any]]:
    """The content of a data file, and the tensors that hold small constants and say where in it the others lie."""
    from onnx import TensorProto, helper, numpy_helper

    pieces: list[Any] = []
    tensors, end = [], 0
    for name, array in constants.items():
        if array.nbytes <= _SMALL:
            tensors.append(numpy_helper.from_array(array, name))
            continue
        padding = -end % _ALIGNMENT
        pieces += [bytes(padding), np.ascontiguousarray(array, array.dtype.newbyteorder("<"))]
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": DATA_NAME, "offset": end + padding, "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        end += padding + array.nbytes
    return b"".join(pieces), tensors


def _made(steps: list[OnnxStep], tensors: list[Any], constants: Mapping[str, NDArray[Any]] | None = None) -> Any:
    """The graph with its constants; those that are given apart are inputs."""
    from onnx import TensorProto, helper

    attributes: dict[str, dict[str, Any]] = {
        "ReduceSum": {"keepdims": 0},
        "Transpose": {"perm": [0, 2, 1]},
        "index": {"to": TensorProto.INT32},
        "same": {"to": TensorProto.FLOAT},
        **{out: {"to": TensorProto.DOUBLE} for out in ("wide_score", "wide_scaled", "wide_merged")},
        **{out: {"to": TensorProto.FLOAT} for out in ("calibrated", "factor_part")},
    }
    nodes = [
        helper.make_node(kind, inputs, [out], **attributes.get(out if kind == "Cast" else kind, {}))
        for kind, inputs, out in steps
    ]
    kinds = {"ids": TensorProto.INT64, "fields": TensorProto.INT64, "values": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, ["n_rows", "n_entries"]) for name, kind in kinds.items()]
    for name, array in (constants or {}).items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n_rows"])]
    graph = helper.make_graph(nodes, "factorization_machine", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


# ------------------------------------------------------------------------------------------- the graph ----


def _graph_of(model: FMModel) -> tuple[Constants, list[OnnxStep]]:
    """Constants by name, and the steps in order."""
    table = model.table
    parts = [_rows(model.vocabulary), _linear_part(table)]
    if table.layout.n_factors:
        parts += [_vectors(table), _family_part(model)]
    parts.append(_prediction(model))
    constants: Constants = {"entries": np.array([1], _INT), "last": np.array([-1], _INT)}
    steps: list[OnnxStep] = []
    for own, following in parts:
        constants |= own
        steps += following
    return constants, steps


def _rows(vocabulary: Vocabulary) -> OnnxPart:
    """From "ids" and "fields" to "row" int32[n_rows, n_entries] of the parameters: that of the index, else of its
    field's rare bucket. Padding and what nobody knows point beyond the last row, where all is zero.
    """
    n_features = vocabulary.n_features
    found, steps = _places(vocabulary)
    constants = {
        **found,
        "rare_row": np.where(vocabulary.rare >= 0, vocabulary.rare, n_features).astype(_INT32),
        "no_row": np.array(n_features, _INT32),
        "first_row": np.array(0, _INT32),
        "zero": np.array(0, _INT),
    }
    return constants, [
        ("Less", ["ids", "zero"], "is_padding"),
        ("Max", ["ids", "zero"], "indices"),
        *steps,
        ("Gather", ["row_of_place", "place"], "known"),
        ("Gather", ["rare_row", "fields"], "pooled"),
        ("Less", ["known", "first_row"], "is_unknown"),
        ("Where", ["is_unknown", "pooled", "known"], "any_row"),
        ("Where", ["is_padding", "no_row", "any_row"], "row"),
    ]


def _places(vocabulary: Vocabulary) -> OnnxPart:
    """From "indices" to "place" int32[n_rows, n_entries], that of the index among all in order; -1 where it is not.

    In its bucket a bisection finds the last index that is not larger. Whatever follows the bucket is larger.
    """
    order = np.argsort(vocabulary.ids)
    ids, hash_bits = vocabulary.ids[order].astype(_INT32), vocabulary.hash_bits
    width = 1 << max(0, hash_bits - len(ids).bit_length())
    sizes = np.bincount(ids // width, minlength=-(-(1 << hash_bits) // width))
    strides = [1 << bit for bit in reversed(range(int(sizes.max(initial=1) - 1).bit_length()))]
    constants = {
        "bucket_width": np.array(width, _INT),
        "bucket_start": (np.cumsum(sizes) - sizes).astype(_INT32),
        "sorted_ids": np.append(ids, np.full(sum(strides) + 1, np.iinfo(_INT32).max, _INT32)),
        "row_of_place": np.append(order, -1).astype(_INT32),  # the last one is that of place -1
        "nowhere": np.array(-1, _INT32),
        **{f"stride_{stride}": np.array(stride, _INT32) for stride in strides},
    }
    steps: list[OnnxStep] = [
        ("Div", ["indices", "bucket_width"], "bucket"),
        ("Gather", ["bucket_start", "bucket"], "place_0"),
        ("Cast", ["indices"], "index"),
    ]
    for before, stride in enumerate(strides):
        steps += _bisection(before, stride)
    at = f"place_{len(strides)}"
    return constants, [
        *steps,
        ("Gather", ["sorted_ids", at], "found"),
        ("Equal", ["found", "index"], "is_it"),
        ("Where", ["is_it", at, "nowhere"], "place"),
    ]


def _bisection(number: int, stride: int) -> list[OnnxStep]:
    """From "place_NUMBER" to the next one: `stride` further, unless that index is too large."""
    return [
        ("Add", [f"place_{number}", f"stride_{stride}"], f"further_{number}"),
        ("Gather", ["sorted_ids", f"further_{number}"], f"there_{number}"),
        ("LessOrEqual", [f"there_{number}", "index"], f"fits_{number}"),
        ("Where", [f"fits_{number}", f"further_{number}", f"place_{number}"], f"place_{number + 1}"),
    ]


def _linear_part(table: ParameterTable) -> OnnxPart:
    """From "row" to "linear_part" float32[n_rows]."""
    return {"w": np.append(table.linear_weights, _FLOAT(0))}, [
        ("Gather", ["w", "row"], "weights"),
        ("Mul", ["weights", "values"], "weighted"),
        ("ReduceSum", ["weighted", "entries"], "linear_part"),
    ]


def _vectors(table: ParameterTable) -> OnnxPart:
    """From "row" to "factor_row", "scaled" and "merged", as `Family.onnx` takes them.

    A feature that stands twice in a row has no pair with itself: its values are summed, as they are in training.
    """
    zeros = np.zeros((1, table.layout.row_factors), _FLOAT)
    constants = {
        "V": np.vstack([table.factor_weights, zeros]),
        "no_factors": np.array(table.n_factored, _INT32),
    }
    return constants, [
        ("Min", ["row", "no_factors"], "factor_row"),
        ("Gather", ["V", "factor_row"], "vectors"),
        ("Unsqueeze", ["values", "last"], "value_column"),
        ("Mul", ["vectors", "value_column"], "scaled"),
        ("Unsqueeze", ["row", "last"], "row_column"),
        ("Unsqueeze", ["row", "entries"], "row_line"),
        ("Equal", ["row_column", "row_line"], "is_same"),
        ("Cast", ["is_same"], "same"),
        ("MatMul", ["same", "value_column"], "summed_column"),
        ("Mul", ["vectors", "summed_column"], "merged"),
    ]


def _family_part(model: FMModel) -> OnnxPart:
    """From vectors to "factor_part", as the family of the model says."""
    table, fields = model.table, model.vocabulary.fields
    own = {block.name: table.values(block) for block in table.layout.shared}
    family, fields = family_of(table.layout.family), fields[: table.n_factored]
    if family.has_groups:
        groups = np.array(table.layout.groups, np.uint16)
        fields = groups[fields] if groups.size else np.zeros_like(fields)
    return family.onnx(own, fields, table.layout)


def _prediction(model: FMModel) -> OnnxPart:
    """From the parts of the score to "prediction": by the link of the loss, and within the range if there is one."""
    link, clip = _LINKS[model.objective.info.link], model.clip
    constants: Constants = {"bias": np.array([model.table.bias_value], _FLOAT)}
    steps: list[OnnxStep] = [("Add", ["linear_part", "bias"], "linear_score")]
    score = "linear_score"
    if model.table.layout.n_factors:
        steps.append(("Add", ["linear_score", "factor_part"], "score"))
        score = "score"
    if model.calibration is not None:
        known, following = _calibrated(model.calibration, score)
        constants |= known
        steps += following
        score = "calibrated"
    steps.append((link, [score], "prediction" if clip is None else "unclipped"))
    if clip is not None:
        constants |= {name: np.array(bound, _FLOAT) for name, bound in zip(("low", "high"), clip, strict=True)}
        steps.append(("Clip", ["unclipped", "low", "high"], "prediction"))
    return constants, steps


def _calibrated(calibration: Calibration, score: str) -> OnnxPart:
    """From the score to "calibrated", piece by piece; in float64, as `predict` does it."""
    names = "piece_low", "piece_high", "piece_from", "piece_slope"
    constants = dict(zip(names, calibration.pieces, strict=True))
    return {**constants, "calibrated_from": np.array(calibration.logits[0])}, [
        ("Cast", [score], "wide_score"),
        ("Unsqueeze", ["wide_score", "last"], "score_column"),
        ("Max", ["score_column", "piece_low"], "above_low"),
        ("Min", ["above_low", "piece_high"], "within"),
        ("Sub", ["within", "piece_from"], "run"),
        ("MatMul", ["run", "piece_slope"], "risen"),
        ("Add", ["risen", "calibrated_from"], "wide_calibrated"),
        ("Cast", ["wide_calibrated"], "calibrated"),
    ]
