"""Ranking: the best of many candidates for one request, whose own part of the sums is made once.

A score of context c and item i is bias + alone_c + alone_i + <first_c, second_i> (see `Sums`): candidates are summed
when they are made known, a request when it comes, and what is left is one product of a matrix and a vector. A model
with terms of more than two features has no such sums: its candidates are scored as whole rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dfm.data.arrow_types import root_of
from dfm.data.row_encoder import RowEncoder
from dfm.data.schema import Field
from dfm.errors import DataError, SettingsError
from dfm.model.entries import (
    Entries,
    Scorer,
    Sums,
    batches_with,
    entries_of,
    entries_of_row,
    fields_of,
    is_pairwise,
    names_of,
    narrowed,
    sides,
    sums_of,
)
from dfm.model.rows import one_row


class Ranking(NamedTuple):
    """The best candidates, best first. positions int64[n]: which rows they are; scores, predictions float32[n]."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]
    predictions: NDArray[np.float32]


@dataclass(frozen=True)
class _Context:
    """The fields of contexts. is_whole: scores are of whole rows, since terms have features of both sides."""

    fields: tuple[Field, ...]
    is_whole: bool
    encoder: RowEncoder


@dataclass(frozen=True)
class Candidates:
    """Items of a model, summed. alone float32[n_items], sides float32[n_items, d]."""

    fields: tuple[Field, ...]
    alone: NDArray[np.float32]
    sides: NDArray[np.float32]
    entries: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
    """Features, ascending, the items that have them and their x: where a context has one too, that is no pair."""
    data: pa.Table
    """Their columns, for models whose crosses have columns of contexts and items."""
    _contexts: dict[tuple[str, ...], _Context] = field(default_factory=dict, repr=False, compare=False)
    """The makings of contexts of some columns, by their names."""

    @classmethod
    def of(cls, model: Scorer, items: Any) -> Candidates:
        """DataError where no field of the model can be made of the items' columns; of no items there may be none."""
        fields, none_given = fields_of(model.schema, names_of(items)), isinstance(items, list | tuple) and not items
        if not fields and not none_given:
            raise DataError(f"the candidates have no column of the model, which has {', '.join(model.schema.columns)}")
        data, entries, sums = _summed(model, items, fields) if fields else _of_none(model, fields)
        order = np.argsort(entries.features, kind="stable")
        by_feature = entries.features[order], entries.rows[order], entries.values[order]
        alone, second = sums.alone.astype(np.float32), np.ascontiguousarray(sums.second, np.float32)
        return cls(fields, alone, second, by_feature, data)

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.alone)

    def rank(self, model: Scorer, context: Any, top: int = 10) -> Ranking:
        """See `FMModel.rank`."""
        if not isinstance(top, int | np.integer) or top < 1:
            raise DataError(f"top = {top!r}; expected a whole number, at least 1")
        scores = self.scores(model, context)
        best = np.argsort(-scores, kind="stable")[:top]
        return Ranking(best, scores[best], model.objective.predict(scores[best]))

    def scores(self, model: Scorer, context: Any) -> NDArray[np.float32]:
        """Score of every candidate in a context, float32[n_items]."""
        if not self.fields:  # those of an empty list, which names no columns
            return self.alone
        if isinstance(context, list | tuple) and not context:
            raise _not_one(0)
        mine = self._context(model, tuple(names_of(context)))
        if mine.is_whole:
            return self._one_by_one(model, context, mine.fields)
        entries = entries_of_row(model, context, mine.encoder, mine.fields)
        if entries is None:
            context = one_row(context, narrowed(model.schema, mine.fields))
            entries = _summed(model, context, mine.fields)[1]
        entries = entries.merged()
        sums = sums_of(model, entries)
        if entries.n_rows != 1:
            raise _not_one(entries.n_rows)
        scores = self.sides @ sums.first[0].astype(np.float32)
        scores += self.alone + np.float32(float(model.table.bias_value) + sums.alone[0])
        self._without_shared(model, entries, scores)
        return scores

    def _context(self, model: Scorer, names: tuple[str, ...]) -> _Context:
        if names not in self._contexts:
            fields, mixed = context_fields(model, names, self.fields)
            encoder = RowEncoder(narrowed(model.schema, fields), model.vocabulary.hash_bits, model.statistics)
            self._contexts[names] = _Context(fields, bool(mixed) or not is_pairwise(model), encoder)
        return self._contexts[names]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again where they arrive."""
        return {**self.__dict__, "_contexts": {}}

    def _without_shared(self, model: Scorer, context: Entries, scores: NDArray[np.float32]) -> None:
        """Take the pairs of a feature with itself out of scores, in place: it has none."""
        features, items, values = self.entries
        starts, stops = (np.searchsorted(features, context.features, side) for side in ("left", "right"))
        for at in np.flatnonzero(starts < stops):
            first, second = sides(model, context.features[at : at + 1])
            found = slice(starts[at], stops[at])
            amounts = float(first[0] @ second[0]) * context.values[at] * values[found]
            scores[items[found]] -= amounts.astype(np.float32)

    def _one_by_one(self, model: Scorer, context: Any, mine: Sequence[Field]) -> NDArray[np.float32]:
        """Whole rows, where some of their features are of both sides."""
        if not mine:
            return model.decision_function(self.data)
        batches = batches_with(model, one_row(context, narrowed(model.schema, mine)), mine)
        if (n_rows := sum(batch.num_rows for batch in batches)) != 1:
            raise _not_one(n_rows)
        (batch,) = batches
        columns = {name: self.data.column(name) for name in self.data.column_names}
        alike = pa.array(np.zeros(len(self), np.int64))
        columns |= {name: batch.column(name).take(alike) for name in batch.schema.names if name not in columns}
        return model.decision_function(pa.table(columns))


def _not_one(n_rows: int) -> DataError:
    return DataError(f"{n_rows} rows of context where one is expected")


def context_fields(
    model: Scorer, names: Sequence[str], items: Sequence[Field]
) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """The fields that contexts have by themselves, and crosses of columns of both sides.

    DataError where a column of the model is on neither side, or on both.
    """
    schema, taken = model.schema, {entry.name for entry in items}
    of_items = set(itertools.chain(*(schema.sources(entry.columns) for entry in items)))
    of_contexts = fields_of(schema, names)
    both = sorted(of_items & set(itertools.chain(*(schema.sources(entry.columns) for entry in of_contexts))))
    if both:
        raise DataError(f"column {both[0]!r} is in the context and in the candidates; pass it in one of them")
    known = taken | {entry.name for entry in of_contexts}
    there = [*names, *of_items]
    rest = [entry for entry in schema.fields if entry.name not in known]
    missing = [column for entry in rest for column in schema.sources(entry.columns) if root_of(column, there) is None]
    if missing:
        raise DataError(f"column {missing[0]!r} is neither in the context nor in the candidates; the model needs it")
    return of_contexts, tuple(rest)


def _summed(model: Scorer, data: Any, fields: Sequence[Field]) -> tuple[pa.Table, Entries, Sums]:
    """The columns of some fields, their merged entries and their sums."""
    if not fields:
        return pa.table({"": pa.nulls(1)}), _no_entries(1), sums_of(model, _no_entries(1))
    batches = batches_with(model, data, fields)
    if not batches:
        return _of_none(model, fields)
    table = pa.Table.from_batches(batches).combine_chunks()
    (batch,) = table.to_batches()
    entries = entries_of(model, batch, fields)
    return table, entries.merged(), sums_of(model, entries)


def _of_none(model: Scorer, fields: Sequence[Field]) -> tuple[pa.Table, Entries, Sums]:
    """The same of no rows."""
    columns = {name: pa.nulls(0) for name in narrowed(model.schema, fields).columns}
    return pa.table(columns), _no_entries(0), sums_of(model, _no_entries(0))


def _no_entries(n_rows: int) -> Entries:
    nothing = np.zeros(0, np.int64)
    return Entries(n_rows, nothing, nothing, nothing, np.zeros(0), nothing)


def vectors(model: Scorer, contexts: Any, items: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """See `FMModel.vectors`."""
    if not is_pairwise(model):
        raise SettingsError(
            f'a model of family "{model.table.layout.family}" has terms of more than two features, so that no '
            "vector of an item says all; use `rank`, which then scores whole rows"
        )
    of_items = fields_of(model.schema, names_of(items))
    of_contexts, mixed = context_fields(model, names_of(contexts), of_items)
    if mixed:
        raise SettingsError(
            f"the cross {mixed[0].name!r} has columns of contexts and of items, so that no vector of an item says all; "
            "train without it, or use `rank`, which then scores whole rows"
        )
    ours, theirs = _summed(model, contexts, of_contexts)[2], _summed(model, items, of_items)[2]
    queries = np.column_stack([ours.first, np.ones(len(ours.alone))]).astype(np.float32)
    return queries, np.column_stack([theirs.second, theirs.alone]).astype(np.float32)
