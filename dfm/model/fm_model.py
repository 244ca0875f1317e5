"""A trained factorization machine: raw column values in, probabilities (or numbers) out; saved without pickle.

A model is a folder. `model.json` is its manifest: it holds the schema, the hashing, the settings and the metrics, names
the other files with their checksums, and is written last, in one step. The others carry their checksum in their name,
so a reader of an old manifest never meets the parameters of a new one.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import io
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dfm.data import row_encoder
from dfm.data.canonical import is_plain, texts_of_numbers
from dfm.data.encoding import Encoded, encode_batch
from dfm.data.hashed_rows import HashedRows
from dfm.data.hashing import HASH_NAME
from dfm.data.matrices import Scaling, is_sparse, is_vector, matrix_rows
from dfm.data.partition import SparsePartition
from dfm.data.row_lookup import RowLookup
from dfm.data.schema import SHORTEST, ResolvedSchema
from dfm.data.scoring_rows import scoring_partition
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import ABSENT, Vocabulary
from dfm.errors import DataError, ModelError, SettingsError
from dfm.events import to_json
from dfm.kernels.cpu import backend as numba_cpu
from dfm.kernels.families.registry import DEFAULT as DEFAULT_FAMILY
from dfm.kernels.families.registry import FAMILIES
from dfm.kernels.tables import ParameterTable, allocate
from dfm.model.calibration import Calibration
from dfm.model.drift import N_BINS, Watcher
from dfm.model.entries import check_good
from dfm.model.explain import Explanation, explain
from dfm.model.figures import notebook_html
from dfm.model.manifest import (
    MOST_GOLDEN_BYTES,
    MOST_GOLDEN_ROWS,
    MOST_MANIFEST_BYTES,
    check_arrays,
    check_manifest,
    layout_of,
    parse_manifest,
)
from dfm.model.misnamed import remedy
from dfm.model.objective import LossInfo, Objective
from dfm.model.outputs import NUMPY, check_output, handed_out
from dfm.model.ranking import Candidates, Ranking, vectors
from dfm.model.rows import batches_of as batches_of
from dfm.model.rows import in_columns, numeric_of, one_row
from dfm.model.tokens import Tokens
from dfm.solvers.posterior import Draws, intervals, mean_scores
from dfm.storage import files, ownership
from dfm.storage.arrays import array_bytes, parse_arrays

logger = logging.getLogger(__name__)
_LONGEST_REASON = 500
"""Characters of another error, or of a manifest, that a message quotes."""
_OWN_FILE = re.compile(r"(parameters|golden|seen)-[0-9a-f]{16}\.(safetensors|parquet)")
MANIFEST = "model.json"
BRIEF = ("log_loss", "loss", "rmse", "group_auc", "auc", "r2")
"""Metrics that say in a line what a model is worth, as far as it has them."""
FORMAT = 9
"""The newest that this dfm reads: 1 is of the task's default loss, 2 names another, 3 says how numbers compare too, 4
names another family than the default, 5 says how values are read, or the range that predictions stay in, 6 which
columns are integers whatever their zeros, 7 which group each field is in, 8 how its logits are calibrated, and 9 has
draws."""
GOLDEN_ROWS = 64
GOLDEN_COLUMN = "dfm_prediction"
_GOLDEN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class FMModel:
    """A factorization machine with everything that it needs to score raw rows.

    `table` has no optimizer state; its rows are the features of `vocabulary`. `metadata` (JSON-ready) says how it
    came about: settings, validation metrics, row account, versions. `loss` None is the default loss of the task.
    """

    schema: ResolvedSchema
    task: str
    vocabulary: Vocabulary
    table: ParameterTable
    statistics: Mapping[str, NumberStatistics] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss: LossInfo | None = None
    clip: tuple[float, float] | None = None
    """The range that predictions stay in; None: any."""
    calibration: Calibration | None = None
    """The function of logits that predictions are made of; None: the logits themselves."""
    draws: Draws | None = None
    """Draws from the posterior, whose V `table` has side by side (`dfm.solvers.posterior`); predictions are the mean of
    theirs. None: `table` is the model."""

    @functools.cached_property
    def lookup(self) -> RowLookup:
        """From hashed indices to rows of the table."""
        return RowLookup(self.vocabulary)

    @functools.cached_property
    def _row_encoder(self) -> row_encoder.RowEncoder:
        return row_encoder.RowEncoder(self.schema, self.vocabulary.hash_bits, self.statistics)

    @functools.cached_property
    def watcher(self) -> Watcher:
        """The sorting of values into known, rare, missing and never seen ones."""
        return Watcher.of(self.vocabulary, self.schema, self.lookup)

    @functools.cached_property
    def tokens(self) -> Tokens:
        """The hashing of single values."""
        return Tokens(self.schema, self.vocabulary.hash_bits, self.statistics)

    @functools.cached_property
    def _kernel(self) -> numba_cpu.Scores:
        return numba_cpu.compile_scores(self.table.layout)

    def _score_rows(self, rows: SparsePartition) -> NDArray[np.float32]:
        """Raw scores of rows whose indices are rows of the table, float32[n_rows]."""
        if self.draws is None:
            return self._kernel(rows, self.table)
        return mean_scores(rows, self.table, self.draws, self.task)

    @functools.cached_property
    def objective(self) -> Objective:
        """The objective that the model was trained for, which makes predictions of scores."""
        found = Objective.of_info(self.task, self.loss)
        return dataclasses.replace(found, clip=self.clip, calibration=self.calibration)

    def __repr__(self) -> str:
        """One line: kind, sizes, and what it was worth when it was trained."""
        worth: Mapping[str, Any] = self.metadata.get("validation", {})
        metrics = "".join(f", {name} {worth[name]:.5f}" for name in BRIEF if isinstance(worth.get(name), float))
        n_fields, name, layout = len(self.schema.fields), self.objective.info.name, self.table.layout
        vectors = f"{len(layout.degrees)} x " if len(layout.degrees) > 1 else ""
        draws = f" of {self.draws.number} draws" if self.draws is not None and self.draws.number > 1 else ""
        return (
            f"FMModel({layout.family}, {name}, {n_fields} field{'s' if n_fields > 1 else ''}, "
            f"{self.vocabulary.n_features:,} features, {self.table.n_factored:,} with {vectors}{layout.n_factors} "
            f"factors{draws}{metrics})"
        )

    def _repr_html_(self) -> str:
        """The view in a notebook: the line, learning and calibration curves, metrics of the rows that validated."""
        return notebook_html(repr(self), self.metadata)

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: look-up and kernels are made again where the model arrives."""
        return {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}

    def predict(self, data: Any, output: str = NUMPY) -> Any:
        """Probability of a click of every row (regression: the predicted number), float32[n_rows].

        A model of another loss predicts as its link says; a margin is no probability: above 0 means 1.

        data: a pyarrow Table or RecordBatch, a pandas or polars DataFrame, a relation of DuckDB or whatever else has
        the PyCapsule interface of Arrow, a dict of column to list, a list of dicts, or one row: a dict of column to
        value, a pandas Series. Columns that the model does not use are ignored; fields of structs have dotted names. A
        model of a numeric matrix takes such matrices too, from NumPy or scipy.sparse. output: "numpy", or "arrow",
        "pandas", "polars" for a column of that library. DataError where a column is missing or a number is not finite.
        """
        check_output(output)
        return handed_out(self.objective.predict(self.decision_function(data)), output, data)

    def predict_one(self, row: Any) -> float:
        """The prediction of one row, a dict of column to value or a pandas Series, as a number of Python."""
        found = self.predict(one_row(row, self.schema))
        if len(found) != 1:
            raise DataError(f"{len(found)} rows where one is expected; `predict` takes several")
        return float(found[0])

    def decision_function(self, data: Any) -> NDArray[np.float32]:
        """Raw scores: logits for classification, before a calibration; float32[n_rows]."""
        if isinstance(data, np.ndarray) or is_sparse(data):
            return self._score_matrix(data)
        few = self._few_rows(data)
        if few is None:
            data = in_columns(data, self.schema)
            few = self._few_rows(data)
        if few is not None:
            return few
        parts = [self._scores(batch) for batch in batches_of(data, self.schema.columns, numeric_of(self.schema))]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _few_rows(self, data: Any) -> NDArray[np.float32] | None:
        """Scores of a dict of short lists, the way of serving; None where the general path has to take them."""
        if not isinstance(data, Mapping) or not self._row_encoder.usable:
            return None
        try:
            # Anything but plain lists may look rows up by label (a pandas Series) or hold something else (a string).
            if any(type(data[column]) not in (list, tuple) for column in self._row_encoder.columns):
                return None
            lengths = {len(data[column]) for column in self._row_encoder.columns}
            n_rows = lengths.pop() if len(lengths) == 1 else 0
            if not 0 < n_rows <= row_encoder.MOST_ROWS:
                return None
            rows = self._row_encoder.encode(data, n_rows)
        except (KeyError, TypeError, row_encoder.NotPlain):
            return None
        return self._score_rows(scoring_partition(rows, self.lookup))

    @functools.cached_property
    def _scaling(self) -> Scaling | None:
        return Scaling.from_statistics(self.statistics, self.schema.columns)

    def _score_matrix(self, matrix: Any) -> NDArray[np.float32]:
        """Scores of a matrix whose columns are the model's, in order."""
        return self._score_rows(scoring_partition(self.encode_matrix(matrix), self.lookup))

    def encode_matrix(self, matrix: Any) -> HashedRows:
        """The rows of a matrix of NumPy or scipy.sparse, [n_rows, n_columns], as the model sees them. DataError where
        the model takes none, or one of another shape, or a number is not finite.
        """
        columns = self.schema.columns
        if not is_vector(self.schema):
            raise DataError(f"this model hashes columns by name: pass a table or a dict with {', '.join(columns)}")
        if matrix.ndim != 2 or matrix.shape[1] != len(columns):
            raise DataError(f"the matrix has shape {matrix.shape}; the model takes [n_rows, {len(columns)}]")
        return matrix_rows(matrix, self._scaling)

    def predict_interval(self, data: Any, coverage: float = 0.9) -> NDArray[np.float32]:
        """Bounds that hold the number of a row with this probability, float32[n_rows, 2]: the spread of the draws, and
        that of the numbers around their scores. data: as `predict` takes it. Models of numbers, of solver mcmc, have
        it; SettingsError of others.
        """
        if self.draws is None or self.task != "regression":
            raise SettingsError(
                'predict_interval needs draws of numbers: train with model.task = "regression" and training.solver = '
                f'"mcmc" (this is a {self.task}' + (" without draws)" if self.draws is None else ")")
            )
        if not 0 < coverage < 1:
            raise SettingsError(f"coverage = {coverage} is not legal: expected a number between 0 and 1, such as 0.9")
        if isinstance(data, np.ndarray) or is_sparse(data):
            parts = [scoring_partition(self.encode_matrix(data), self.lookup)]
        else:
            batches = batches_of(in_columns(data, self.schema), self.schema.columns, numeric_of(self.schema))
            parts = [scoring_partition(self._good(batch).rows, self.lookup) for batch in batches]
        found = [np.zeros((0, 2), np.float32), *(intervals(rows, self.table, self.draws, coverage) for rows in parts)]
        bounds = np.concatenate(found)
        return bounds if self.clip is None else np.clip(bounds, np.float32(self.clip[0]), np.float32(self.clip[1]))

    def check_is_machine(self, what: str) -> None:
        """SettingsError where no single machine has the model's scores: where they are of mean probabilities."""
        if self.draws is not None and self.task == "classification":
            several = f"the mean probability of {self.draws.number} machines"
            gives = several if self.draws.number > 1 else "the probability of a probit, which is no logit"
            raise SettingsError(
                f"{what} needs the score of one machine as a logit, and this model gives {gives} "
                '(training.solver = "mcmc" or "als"): use a model of solver = "sgd"'
            )

    def weights(self, column: str, values: Iterable[Any]) -> NDArray[np.float32]:
        """The weight w of each value of a field, float32[n_values]: logits that it adds to a score.

        column: of categories, lists (a value is an element) or numbers, or the name of a cross ("site&ad", whose values
        are tuples). A rare or unseen value has the weight of its field's rare bucket, or 0 where there is none; of a
        number that is taken as it is, w is for one unit. SettingsError where there is no such field.
        """
        rows = self.parameter_rows(column, values)
        return np.where(rows >= 0, self.table.linear_weights[rows], 0.0).astype(np.float32)

    def factors(self, column: str, values: Iterable[Any]) -> NDArray[np.float32]:
        """The factors V of each value of a field, float32[n_values, n_factors]; zeros where it has none.

        Of a family with several vectors float32[n_values, n_vectors * n_factors]: group by group, or order by order.
        """
        rows = self.parameter_rows(column, values)
        found = np.zeros((len(rows), self.table.layout.row_factors), np.float32)
        has_factors = (rows >= 0) & (rows < self.table.n_factored)
        found[has_factors] = self.table.factor_weights[rows[has_factors]]
        return found

    def parameter_rows(self, column: str, values: Iterable[Any]) -> NDArray[np.int64]:
        """Row of `table` of each value of a field, int64[n_values]; -1 where it has no parameters."""
        ids = self.tokens.ids(column, values)
        fields = np.full(len(ids), self.tokens.field(column).index, np.uint16)
        rows = self.lookup.rows(ids, fields)
        return np.where(rows == ABSENT, -1, rows.astype(np.int64))

    def encode(self, batch: pa.RecordBatch, task: str | None = None) -> Encoded:
        """The rows as the model sees them; with `task` the label is read as well."""
        return encode_batch(batch, self.schema, self.vocabulary.hash_bits, self.statistics, task)

    def score(self, encoded: Encoded) -> NDArray[np.float32]:
        """Raw scores of encoded rows, float32[n_rows]."""
        return self._score_rows(scoring_partition(encoded.rows, self.lookup))

    def _scores(self, batch: pa.RecordBatch) -> NDArray[np.float32]:
        return self.score(self._good(batch))

    def _good(self, batch: pa.RecordBatch) -> Encoded:
        encoded = self.encode(batch)
        check_good(encoded)
        return encoded

    # ------------------------------------------------------------------------------------- term by term ----

    def explain(self, row: Any) -> Explanation:
        """The score of one row term by term: of each value, and of each pair of them, by column and value.

        row: a dict of column to value, a Series, or a table of one row.
        """
        self.check_is_machine("explain")
        return explain(self, one_row(row, self.schema))

    def candidates(self, items: Any) -> Candidates:
        """Rows to be ranked, with their share of the sums made once: see `rank`.

        items: rows in any form that `predict` takes, with the columns that belong to a candidate.
        """
        self.check_is_machine("rank")
        return Candidates.of(self, items)

    def rank(self, context: Any, candidates: Any, top: int = 10) -> Ranking:
        """The best candidates for a request, best first, by the score that `predict` gives context and candidate.

        context: one row, a dict of column to value, with the model's other columns. candidates: of `candidates`, which
        pays where they serve several requests, or rows. DataError where a column is in neither, or in both.
        """
        known = candidates if isinstance(candidates, Candidates) else self.candidates(candidates)
        return known.rank(self, context, top)

    def vectors(self, contexts: Any, items: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors of contexts float32[n_contexts, d] and items float32[n_items, d], for an index of nearest neighbours.

        Their inner products are the scores, but for a number that is the same for all items of a context. Values of
        contexts and items that share an index of the hash table are the exception. SettingsError where a cross has
        columns of both.
        """
        self.check_is_machine("vectors")
        return vectors(self, contexts, items)

    # ------------------------------------------------------------------------------------------ on disk ----

    def save(self, url: str, golden: pa.Table | None = None, options: files.Options = None) -> str:
        """Publish the model as a folder at a path or URL; returns the sha256 (hex) of its parameters.

        golden: some raw rows; they are stored with their predictions, and every load checks that it gives the same.
        """
        check_place(url, options)
        contents = {"parameters": ("safetensors", array_bytes(self._arrays()))}
        if memory := self._memory():
            contents["seen"] = ("safetensors", array_bytes(memory))
        if golden is not None and golden.num_rows:
            data = _golden_bytes(self, golden)
            if len(data) <= MOST_GOLDEN_BYTES:  # rows of a few columns; one may hold megabytes of text
                contents["golden"] = ("parquet", data)
        listed = {}
        for kind, (suffix, data) in contents.items():
            digest = hashlib.sha256(data).hexdigest()
            name = f"{kind}-{digest[:16]}.{suffix}"
            files.write_bytes(files.join(url, name), data, options)
            listed[kind] = {"name": name, "bytes": len(data), "sha256": digest}
        previous = _manifest_in_place(url, options)
        current = {str(entry["name"]) for entry in listed.values()}
        files.remove_abandoned(url, {MANIFEST, *current, *_names(previous)})
        superseded = _names(previous) - current
        manifest = {**self._manifest(listed), "superseded": sorted(superseded)}
        files.write_bytes(files.join(url, MANIFEST), to_json(manifest, indent=1).encode(), options)
        for name in set(previous.get("superseded", ())) - superseded - current:
            _remove_superseded(url, str(name), options)
        return self.parameters_sha256()

    def check_golden(self, rows: pa.Table) -> None:
        """ModelError where rows do not come back from Parquet with the predictions that they have now: every load of
        a model with these golden rows would fail.
        """
        data = _golden_bytes(self, rows)
        if rows.num_rows and len(data) <= MOST_GOLDEN_BYTES:
            _check_golden(self, data, "(not published yet)")

    def parameters_sha256(self) -> str:
        """Fingerprint (hex) of the parameters and the features that they belong to."""
        digest = hashlib.sha256()
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode() + str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "ids": self.vocabulary.ids,
            "counts": self.vocabulary.counts,
            "fields": self.vocabulary.fields,
            "rare": self.vocabulary.rare,
            **{block.name: np.ascontiguousarray(self.table.values(block)) for block in self.table.layout.blocks},
            **({} if self.draws is None else self.draws.arrays()),
        }

    def _memory(self) -> dict[str, NDArray[Any]]:
        """The arrays that tell of training rows, as far as there are any."""
        known = {"seen": self.vocabulary.seen, "sights": self.vocabulary.sights}
        return {name: array for name, array in known.items() if array is not None}

    @property
    def _format(self) -> int:
        """The oldest format that can say what the model is."""
        needs = {
            9: self.draws is not None,
            8: self.calibration is not None,
            7: bool(self.table.layout.groups),
            6: bool(self.schema.integers),
            5: self.schema.reads_values_specially or self.clip is not None,
            4: not self._is_of_old,
            3: self.schema.numbers == SHORTEST,
            2: not self.objective.is_plain,
        }
        return next((version for version, is_needed in needs.items() if is_needed), 1)

    def _manifest(self, files: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": self._format,
            **({} if self.objective.is_plain else {"loss": self.objective.info.to_dict()}),
            **({} if self._is_of_old else {"family": self.table.layout.family}),
            **({"groups": list(self.table.layout.groups)} if self.table.layout.groups else {}),
            **({"order": self.table.layout.order} if self.table.layout.order else {}),
            **({} if self.clip is None else {"clip": list(self.clip)}),
            **({} if self.calibration is None else {"calibration": self.calibration.to_dict()}),
            **({} if self.draws is None else {"draws": self.draws.number}),
            "task": self.task,
            "hashing": {
                "hash": HASH_NAME,
                "hash_bits": self.vocabulary.hash_bits,
                "seed": "xxh64(column name)",
            },
            "n_factors": self.table.layout.n_factors,
            "n_features": self.vocabulary.n_features,
            "n_factored": self.table.n_factored,
            "schema": self.schema.to_dict(),
            "statistics": {name: dataclasses.asdict(known) for name, known in self.statistics.items()},
            "files": dict(files),
            "metadata": dict(self.metadata),
        }

    @property
    def _is_of_old(self) -> bool:
        """Whether it is of the family that there was first; of that a manifest says nothing."""
        return self.table.layout.family == DEFAULT_FAMILY

    @classmethod
    def load(cls, url: str, options: files.Options = None, check_golden: bool = True) -> FMModel:
        """The model of a folder. ModelError where it is missing, damaged, too new or scores its golden rows wrong."""
        manifest = read_manifest(url, options)
        try:
            check_manifest(manifest)
            arrays, _ = parse_arrays(np.frombuffer(_checked_bytes(url, manifest, "parameters", options), np.uint8))
            model = _from_arrays(manifest, arrays, _memory_of(url, manifest, options))
            check_arrays(manifest, arrays)
            has_golden = check_golden and "golden" in manifest["files"]
            golden = _checked_bytes(url, manifest, "golden", options) if has_golden else b""
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"the model at {url} is damaged ({_short(error)}); publish it again") from error
        if has_golden:
            _check_golden(model, golden, url)
        return model


def check_place(url: str, options: files.Options = None) -> None:
    """SettingsError where a model would replace a model.json that dfm did not write."""
    ownership.check_replaceable(files.join(url, MANIFEST), lambda *_: bool(_manifest_in_place(url, options)), options)


def read_manifest(url: str, options: files.Options = None) -> dict[str, Any]:
    """The manifest of a model folder."""
    try:
        if files.size_of(files.join(url, MANIFEST), options) > MOST_MANIFEST_BYTES:
            raise ValueError(f"it has more than {MOST_MANIFEST_BYTES} bytes")
        manifest = parse_manifest(files.read_bytes(files.join(url, MANIFEST), options))
        known = int(manifest["format"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(f"no model at {url}: {remedy(url, MANIFEST, options)}") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{files.join(url, MANIFEST)} is no model manifest ({_short(error)}); publish the model again"
        ) from error
    family = manifest.get("family", DEFAULT_FAMILY)
    if known <= FORMAT and family not in FAMILIES:
        raise ModelError(
            f"the model at {url} is of family {_short(family)!r}; dfm knows {', '.join(FAMILIES)}: install a newer one"
        )
    if known > FORMAT:
        raise ModelError(f"the model at {url} has format {known}; this dfm reads up to {FORMAT}: install a newer dfm")
    return dict(manifest)


def _short(cause: object) -> str:
    """The words of an error or a manifest; those of a damaged file may be all of it."""
    text = str(cause)
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " …"


def _checked_name(name: str, url: str) -> str:
    """The name of a file of the model. ModelError where it points elsewhere."""
    if "/" in name or "\\" in name or name.startswith("."):
        raise ModelError(
            f"the manifest of {url} names a file outside the model: {_short(name)!r}; do not trust this model"
        )
    return name


def _checked_bytes(url: str, manifest: Mapping[str, Any], kind: str, options: files.Options) -> bytes:
    """A file of the model, after its name, size and checksum were found to be what the manifest says."""
    entry = manifest["files"][kind]
    name = _checked_name(str(entry["name"]), url)
    try:
        # A file of another size is not even read.
        fits = files.size_of(files.join(url, name), options) == entry["bytes"]
        data = files.read_bytes(files.join(url, name), options) if fits else b""
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG) and not isinstance(error, FileNotFoundError):
            raise
        raise ModelError(f"the model at {url} lacks {_short(name)}; publish it again") from error
    if not fits or len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ModelError(f"{name} of the model at {url} is damaged: its checksum differs; publish the model again")
    return data


def _memory_of(url: str, manifest: Mapping[str, Any], options: files.Options) -> dict[str, NDArray[Any]]:
    """The arrays that tell of training rows; none where the model does not say."""
    if "seen" not in manifest["files"]:
        return {}
    arrays, _ = parse_arrays(np.frombuffer(_checked_bytes(url, manifest, "seen", options), np.uint8))
    n_bits, n_fields = int(manifest["hashing"]["hash_bits"]), len(manifest["schema"]["fields"])
    shapes = {"seen": ("uint8", (1 << n_bits >> 3,)), "sights": ("int64", (n_fields, N_BINS))}
    found = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    if any(shapes.get(name) != each for name, each in found.items()):
        raise ValueError("what it tells of training rows does not fit it")
    return dict(arrays)


def _from_arrays(
    manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], memory: Mapping[str, NDArray[Any]]
) -> FMModel:
    schema = ResolvedSchema.from_dict(manifest["schema"])
    hash_bits, layout = int(manifest["hashing"]["hash_bits"]), layout_of(manifest)
    if manifest["hashing"]["hash"] != HASH_NAME:
        raise ModelError(f"the model hashes with {_short(manifest['hashing']['hash'])!r}; this dfm knows {HASH_NAME}")
    ids, rare, n_factored = arrays["ids"], arrays["rare"], int(manifest["n_factored"])
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    n_features, n_fields = len(ids), len(schema.fields)
    of_draws = Draws.shapes(int(manifest["draws"]), n_features) if "draws" in manifest else {}
    if n_factored > n_features or shapes != {
        "ids": ("uint32", (n_features,)),
        "counts": ("int64", (n_features,)),
        "fields": ("uint16", (n_features,)),
        "rare": ("int64", (n_fields,)),
        **{block.name: ("float32", block.value_shape(n_features, n_factored, n_fields)) for block in layout.blocks},
        **{name: ("float32", shape) for name, shape in of_draws.items()},
    }:
        raise ValueError("its arrays do not fit each other")
    table = allocate(layout, n_features, n_factored, n_fields)
    if len(ids) and (int(ids.max()) >> hash_bits or int(rare.max(initial=-1)) >= len(ids)):
        raise ValueError("a feature is out of range")
    for block in layout.blocks:
        table.values(block)[...] = arrays[block.name]
    vocabulary = Vocabulary(ids, arrays["counts"], arrays["fields"], rare, n_factored, hash_bits, **memory)
    statistics = {
        name: NumberStatistics(tuple(known["boundaries"]), known["mean"], known["stdev"])
        for name, known in manifest["statistics"].items()
    }
    loss = LossInfo.from_dict(manifest["loss"], str(manifest["task"])) if "loss" in manifest else None
    low, high = manifest.get("clip", (None, None))
    clip = None if low is None else (float(low), float(high))
    calibration = Calibration.from_dict(manifest["calibration"]) if "calibration" in manifest else None
    known = manifest["metadata"]
    draws = Draws(*(arrays[name] for name in of_draws)) if of_draws else None
    return FMModel(schema, str(manifest["task"]), vocabulary, table, statistics, known, loss, clip, calibration, draws)


def _golden_name(columns: list[str]) -> str:
    """The name of the predictions, the last column of the golden rows: one that no column of the data has."""
    name = GOLDEN_COLUMN
    while name in columns:
        name += "_"
    return name


def _golden_bytes(model: FMModel, golden: pa.Table) -> bytes:
    golden = golden.select(list(model.schema.columns))
    predictions = pa.array(model.predict(golden), pa.float32())
    sink = io.BytesIO()
    pq.write_table(golden.append_column(_golden_name(golden.column_names), predictions), sink)
    return sink.getvalue()


def _check_golden(model: FMModel, data: bytes, url: str) -> None:
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            if file.metadata.num_rows > MOST_GOLDEN_ROWS:
                raise ValueError(f"{file.metadata.num_rows} rows")
            golden = file.read()
        expected = golden.column(golden.num_columns - 1).to_numpy()
        difference = np.max([np.abs(found - expected) for found in _golden_predictions(model, golden)], axis=0)
    except (pa.ArrowException, DataError, ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(
            f"the golden rows of the model at {url} are damaged ({_short(error)}); publish it again"
        ) from error
    if not np.all(difference <= _GOLDEN_TOLERANCE * np.maximum(1.0, np.abs(expected))):
        raise ModelError(
            f"the model at {url} scores its golden rows differently than when it was trained (by up to "
            f"{difference.max():.3g}); it does not belong to this version of dfm, or was changed: publish it again"
        )


def _golden_predictions(model: FMModel, golden: pa.Table) -> list[NDArray[np.float32]]:
    """Predictions of golden rows as stored and, where a model promises it, as a service sends them and as text."""
    if model.schema.numbers != SHORTEST:
        return [model.predict(golden)]
    plain = [name for name in model.schema.columns if is_plain(golden.schema.field(name).type)]
    served = {name: golden.column(name).to_pylist() for name in plain}
    others = {name: golden.column(name) for name in model.schema.columns if name not in served}
    written = {name: texts_of_numbers(golden.column(name)) for name in plain}
    few = range(0, golden.num_rows, row_encoder.MOST_ROWS)
    rows = [{name: column[i : i + row_encoder.MOST_ROWS] for name, column in {**others, **served}.items()} for i in few]
    return [
        model.predict(golden),
        np.concatenate([model.predict(row) for row in rows]),
        model.predict({**others, **written}),
    ]


def _manifest_in_place(url: str, options: files.Options) -> dict[str, Any]:
    """The manifest that is about to be replaced; empty where there is none that can be read."""
    try:
        found = read_manifest(url, options)
    except ModelError:
        return {}
    return found if {"files", "hashing", "schema"} <= found.keys() else {}


def _remove_superseded(url: str, name: str, options: files.Options) -> None:
    """Delete a file that the manifest before the last one listed, if its name is of a model: anybody may have written
    the manifest. The model is published by now, so a file that cannot be deleted is told in a warning.
    """
    try:
        if _OWN_FILE.fullmatch(_checked_name(name, url)):
            files.remove(files.join(url, name), options)
    except Exception as error:
        logger.warning("a file of an earlier model at %s stays: %s", url, error)


def _names(manifest: Mapping[str, Any]) -> set[str]:
    """The files that a manifest lists. They outlive it by one generation: a reader may still be loading them."""
    return {str(entry["name"]) for entry in manifest.get("files", {}).values()}
