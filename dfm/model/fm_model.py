"""A trained factorization machine: raw column values in, probabilities (or numbers) out; saved without pickle.

A model is a folder. `model.json` is its manifest: it holds the schema, the hashing, the settings and the metrics, names
the other files with their checksums, and is written last, in one step. The others carry their checksum in their name,
so a reader of an old manifest never meets the parameters of a new one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data import row_encoder
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
from dfm.kernels.tables import ParameterTable, allocate
from dfm.model.calibration import Calibration
from dfm.model.drift import N_BINS, Watcher
from dfm.model.entries import check_good
from dfm.model.explain import Explanation, explain
from dfm.model.figures import notebook_html
from dfm.model.folder import (
    MANIFEST,
    check_place,
    checked_bytes,
    manifest_in_place,
    names_in,
    read_manifest,
    remove_superseded,
    shortened,
)
from dfm.model.golden import check_golden_rows, golden_bytes
from dfm.model.manifest import (
    check_arrays,
    check_manifest,
    layout_of,
)
from dfm.model.objective import LossInfo, Objective
from dfm.model.outputs import NUMPY, check_output, handed_out
from dfm.model.ranking import Candidates, Ranking, vectors
from dfm.model.rows import batches_of as batches_of
from dfm.model.rows import in_columns, numeric_of, one_row
from dfm.model.tokens import Tokens
from dfm.pages.numbers import number_text
from dfm.solvers.posterior import Draws, intervals, mean_scores
from dfm.storage import files
from dfm.storage.arrays import array_bytes, parse_arrays

logger = logging.getLogger(__name__)
BRIEF = ("log_loss", "loss", "rmse", "group_auc", "auc", "r2")
"""Metrics that say in a line what a model is worth, as far as it has them."""


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
        return Watcher.of(self.vocabulary, self.schema, self.statistics, self.lookup)

    @functools.cached_property
    def tokens(self) -> Tokens:
        """The hashing of single values."""
        return Tokens(self.schema, self.vocabulary.hash_bits, self.statistics)

    @property
    def is_probit(self) -> bool:
        """Whether predictions are means of probabilities of probits, and not links of scores."""
        return self.draws is not None and self.task == "classification"

    @property
    def n_factors(self) -> int:
        """Numbers of a vector; of draws, which `table` has side by side, of one of them."""
        return self.table.layout.n_factors // (1 if self.draws is None else self.draws.number)

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
        metrics = "".join(
            f", {name} {number_text(worth[name])}" for name in BRIEF if isinstance(worth.get(name), float)
        )
        n_fields, name, layout = len(self.schema.fields), self.objective.info.name, self.table.layout
        vectors = f"{len(layout.degrees)} x " if len(layout.degrees) > 1 else ""
        draws = f" in each of {self.draws.number} draws" if self.draws is not None and self.draws.number > 1 else ""
        return (
            f"FMModel({layout.family}, {name}, {n_fields} field{'s' if n_fields > 1 else ''}, "
            f"{self.vocabulary.n_features:,} features, {self.table.n_factored:,} with {vectors}{self.n_factors} "
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
        batches = batches_of(data, self.schema.columns, numeric_of(self.schema), self.schema.missing)
        parts = [self._scores(batch) for batch in batches]
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
            schema = self.schema
            batches = batches_of(in_columns(data, schema), schema.columns, numeric_of(schema), schema.missing)
            parts = [scoring_partition(self._good(batch).rows, self.lookup) for batch in batches]
        found = [np.zeros((0, 2), np.float32), *(intervals(rows, self.table, self.draws, coverage) for rows in parts)]
        bounds = np.concatenate(found)
        return bounds if self.clip is None else np.clip(bounds, np.float32(self.clip[0]), np.float32(self.clip[1]))

    def check_is_machine(self, what: str) -> None:
        """SettingsError where no single machine has the model's scores: where they are of mean probabilities."""
        if self.draws is not None and self.is_probit:
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

        Of a family with several vectors float32[n_values, n_vectors * n_factors]: group by group, or order by order; of
        draws float32[n_values, n_draws * n_factors]: draw by draw, each divided by sqrt(n_draws).
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

        golden: some raw rows; the first 4,096 of them are stored with their predictions, and every load checks that it
        gives the same. DataError where they lack a column of the model's, ModelError where they do not come back from
        Parquet with the predictions that they have now.
        """
        check_place(url, options)
        contents = {"parameters": ("safetensors", array_bytes(self._arrays()))}
        if memory := self._memory():
            contents["seen"] = ("safetensors", array_bytes(memory))
        if golden is not None and len(golden) and (data := golden_bytes(self, golden)):
            contents["golden"] = ("parquet", data)
        listed = {}
        for kind, (suffix, data) in contents.items():
            digest = hashlib.sha256(data).hexdigest()
            name = f"{kind}-{digest[:16]}.{suffix}"
            files.write_bytes(files.join(url, name), data, options)
            listed[kind] = {"name": name, "bytes": len(data), "sha256": digest}
        previous = manifest_in_place(url, options)
        current = {str(entry["name"]) for entry in listed.values()}
        files.remove_abandoned(url, {MANIFEST, *current, *names_in(previous)})
        superseded = names_in(previous) - current
        manifest = {**self._manifest(listed), "superseded": sorted(superseded)}
        files.write_bytes(files.join(url, MANIFEST), to_json(manifest, indent=1).encode(), options)
        for name in set(previous.get("superseded", ())) - superseded - current:
            remove_superseded(url, str(name), options)
        return self.parameters_sha256()

    def check_golden(self, rows: pa.Table) -> None:
        """ModelError where rows do not come back from Parquet with the predictions that they have now: every load of
        a model with these golden rows would fail. DataError where they lack a column.
        """
        golden_bytes(self, rows)

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
    def load(
        cls,
        url: str,
        options: files.Options = None,
        check_golden: bool = True,
        manifest: Mapping[str, Any] | None = None,
    ) -> FMModel:
        """The model of a folder. ModelError where it is missing, damaged, too new or scores its golden rows wrong.

        manifest: that of a moment before (`dfm.model.folder.read_manifest`), whose version is loaded, also where the
        next one has taken its place since; None: the present one.
        """
        manifest = read_manifest(url, options) if manifest is None else manifest
        try:
            check_manifest(manifest)
            arrays, _ = parse_arrays(np.frombuffer(checked_bytes(url, manifest, "parameters", options), np.uint8))
            model = _from_arrays(manifest, arrays, _memory_of(url, manifest, options))
            check_arrays(manifest, arrays)
            has_golden = check_golden and "golden" in manifest["files"]
            golden = checked_bytes(url, manifest, "golden", options) if has_golden else b""
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise ModelError(f"the model at {url} is damaged ({shortened(error)}); publish it again") from error
        if has_golden:
            check_golden_rows(model, golden, url)
        return model


def _memory_of(url: str, manifest: Mapping[str, Any], options: files.Options) -> dict[str, NDArray[Any]]:
    """The arrays that tell of training rows; none where the model does not say."""
    if "seen" not in manifest["files"]:
        return {}
    arrays, _ = parse_arrays(np.frombuffer(checked_bytes(url, manifest, "seen", options), np.uint8))
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
        other = shortened(manifest["hashing"]["hash"])
        raise ModelError(f"the model hashes with {other!r}; this dfm knows {HASH_NAME}")
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
