"""The score of a row, term by term: the bias, a term of each value and one of each pair of values add up to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dfm.data.columns import feature_column, list_column
from dfm.data.matrices import is_vector
from dfm.data.schema import CROSS_SIGN
from dfm.errors import DataError
from dfm.model.entries import Entries, Scorer, batches_with, entries_of, is_pairwise, linear_terms, pair_terms
from dfm.model.tokens import MISSING, shown
from dfm.pages.numbers import number_form, number_text

_SHOWN = 12
"""Terms that a printed explanation shows."""


@dataclass(frozen=True)
class Term:
    """A part of a score: of one value ("site=a.example"), or of two, which `names` then holds both."""

    names: tuple[str, ...]
    amount: float

    @property
    def name(self) -> str:
        """The value, or the two with a cross between them."""
        return " x ".join(self.names)


@dataclass(frozen=True)
class Explanation:
    """A score taken apart: bias + the sum of all amounts + higher = score, in logits where the model predicts clicks.

    linear: of each value that has a weight, in the order of the fields. pairs: of each two that have factors, greatest
    amount first, either sign. higher: what more values make together, of families that have such terms (all that
    vectors make, of one whose products are of sums).
    """

    score: float
    prediction: float
    bias: float
    linear: tuple[Term, ...]
    pairs: tuple[Term, ...]
    higher: float = 0.0

    def terms(self) -> list[Term]:
        """All terms but the bias, greatest amount first, either sign."""
        return sorted((*self.linear, *self.pairs), key=lambda term: -abs(term.amount))

    def frame(self) -> Any:
        """A DataFrame of pandas: first, second ("" of a single value), amount."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("a frame of an explanation needs pandas: pip install pandas") from error
        higher = [("higher", "", self.higher)] if self.higher else []
        rows = [("bias", "", self.bias), *higher, *((*(*term.names, "")[:2], term.amount) for term in self.terms())]
        return pd.DataFrame(rows, columns=["first", "second", "amount"])

    def __repr__(self) -> str:
        """The greatest terms, a line each."""
        terms = self.terms()
        parts = [(self.bias, "bias"), *([(self.higher, "several values together")] if self.higher else [])]
        parts += [(term.amount, term.name) for term in terms[:_SHOWN]]
        if terms[_SHOWN:]:
            parts.append((sum(term.amount for term in terms[_SHOWN:]), f"{len(terms) - _SHOWN} more terms"))
        form = number_form([amount for amount, _ in parts], "+.5f")
        lines = [f"score {number_text(self.score)}, prediction {number_text(self.prediction)}"]
        return "\n".join([*lines, *(f"{amount:{form}}".rjust(9) + f"  {name}" for amount, name in parts)])


def explain(model: Scorer, row: Any) -> Explanation:
    """The terms of one row's score. DataError where there are more rows, or the row is bad."""
    fields = model.schema.fields
    batches = batches_with(model, row, fields)
    if sum(batch.num_rows for batch in batches) != 1:
        raise DataError(f"{sum(batch.num_rows for batch in batches)} rows where one is expected; explain one at a time")
    (batch,) = (batch for batch in batches if batch.num_rows)
    entries = entries_of(model, batch, fields)
    names = [_name(model, batch, entries, at) for at in range(len(entries.rows))]
    linear = tuple(Term((name,), float(term)) for name, term in zip(names, linear_terms(model, entries), strict=True))
    pairs = _pairs(model, entries, names)
    bias = float(model.table.bias_value)
    score = of_pairs = bias + sum(term.amount for term in (*linear, *pairs))
    if not is_pairwise(model):
        score = float(model.decision_function(batch)[0])
    prediction = float(model.objective.predict(np.array([score], np.float32))[0])
    return Explanation(score, prediction, bias, linear, pairs, score - of_pairs)


def _pairs(model: Scorer, entries: Entries, names: Sequence[str]) -> tuple[Term, ...]:
    amounts = pair_terms(model, entries)
    has_factors = entries.features < model.table.n_factored
    of_two = has_factors[:, None] & has_factors & (entries.features[:, None] != entries.features)
    found = [
        Term((names[i], names[j]), float(amounts[i, j])) for i, j in zip(*np.nonzero(np.triu(of_two, 1)), strict=True)
    ]
    return tuple(sorted(found, key=lambda term: (-abs(term.amount), term.names)))


def _name(model: Scorer, batch: pa.RecordBatch, entries: Entries, at: int) -> str:
    """An entry by column and value: of a list the element, "(missing)" for all that means no value."""
    entry, number = model.schema.fields[entries.fields[at]], int(entries.elements[at])
    if is_vector(model.schema):
        column = model.schema.columns[int(model.vocabulary.ids[entries.features[at]])]
        return f"{column}={shown(batch.column(column)[0].as_py())}"
    parts = [_values(model, batch, column) for column in entry.columns]
    # Of a cross of lists every element on the left stands beside all on the right, as the encoder pairs them.
    places = np.unravel_index(number, [len(part) for part in parts])
    return f"{entry.name}={CROSS_SIGN.join(part[place] for part, place in zip(parts, places, strict=True))}"


def _values(model: Scorer, batch: pa.RecordBatch, column: str) -> list[str]:
    """Names of the values that a row has in a column: of a list its elements, of a derived one what it is made of."""
    schema = model.schema
    if any(entry.name == column and entry.kind == "list" for entry in schema.fields):
        return [shown(value) for value in list_column(batch, column, schema).elements.to_pylist()] or [MISSING]
    sources = schema.sources([column])
    arrays = [feature_column(batch, source, schema)[0] for source in sources]
    return [CROSS_SIGN.join(shown(array[0].as_py()) for array in arrays)]
