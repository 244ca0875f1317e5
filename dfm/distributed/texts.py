"""Columns of text that Dask made of objects of pandas: of true and false with gaps, and of lists.

As categories they are others than what they were made of, so that a model of the one says nothing of the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from typing import Any

from dfm.data.schema import ResolvedSchema
from dfm.data.vocabulary import Vocabulary
from dfm.errors import DataError
from dfm.model.tokens import Tokens

TRUTHS, LISTS = "truths", "lists"
"""Objects whose texts are known by their looks."""
WAY_OUT = 'Dask makes text of such columns. Make the frame under dask.config.set({"dataframe.convert-string": False})'
_TEXTS_OF_TRUTHS = ("True", "False")
_LIST = re.compile(r"\[(['\d-].*)?\]", re.DOTALL)
"""The text of a list, or of an array."""


def text_columns(frame: Any) -> set[str]:
    """The columns of strings of a frame of Dask, or of pandas, by its types."""
    return {str(name) for name, kind in frame.dtypes.items() if type(kind).__name__ == "StringDtype"}


def refuse_text_for_lists(frame: Any, schema: ResolvedSchema) -> None:
    """DataError where a frame of Dask, or of pandas, has text for lists that are never text."""
    lists = set() if schema.list_separator else {entry.name for entry in schema.fields if entry.kind == "list"}
    _refuse(text_columns(frame) & lists, "holds text in place of lists")


def truths_among(frame: Any, tokens: Tokens, vocabulary: Vocabulary) -> frozenset[str]:
    """The columns of text of a frame of Dask of which true or false was learnt, and none of their texts. DataError as
    of `refuse_text_for_lists`.
    """
    refuse_text_for_lists(frame, tokens.schema)
    texts, categorical = text_columns(frame), {each.name for each in tokens.schema.fields if each.kind == "categorical"}
    return frozenset(
        column
        for column in texts & categorical
        if _learnt(tokens, vocabulary, column, [True, False])
        and not _learnt(tokens, vocabulary, column, _TEXTS_OF_TRUTHS)
    )


def _learnt(tokens: Tokens, vocabulary: Vocabulary, column: str, values: Sequence[Any]) -> bool:
    """Whether there are parameters for one of these values of a field."""
    return any(bool((vocabulary.ids == hashed).any()) for hashed in tokens.ids(column, values))


def refuse_truths(frame: Any, columns: Set[str]) -> None:
    """DataError where a frame of pandas, part of one of Dask, has texts of truths in one of these columns."""
    found = {column for column in columns if _column(frame, column).isin(_TEXTS_OF_TRUTHS).any()}
    _refuse(found, "holds the texts True and False, and the model learnt true and false")


def _refuse(columns: Set[str], why: str) -> None:
    if columns:
        raise DataError(f"column {min(columns)!r} of the frame {why}: {WAY_OUT}")


def told_of_truths(column: str) -> str:
    """The warning of a column of text that looks like truths, where it is to be learnt from."""
    return (
        f"column {column!r} of the frame holds the texts True and False, which are other categories than true and "
        f"false: {WAY_OUT}, unless the rows to score are such texts, too"
    )


def told_of_lists(column: str) -> str:
    """The warning of a column of text that looks like lists, where it is to be learnt from."""
    return (
        f"column {column!r} of the frame holds texts that look like lists, and each of them is one category: "
        f"{WAY_OUT}, unless they are texts themselves"
    )


def _column(frame: Any, name: str) -> Any:
    """The column of a frame of pandas whose name has this text."""
    return frame.iloc[:, [str(each) for each in frame.columns].index(name)]


def objects_of(frame: Any, column: str) -> str | None:
    """TRUTHS or LISTS, where a column of a frame of pandas looks like nothing but texts of these; "" of others, and
    None where all of it is missing.
    """
    texts = _column(frame, column).dropna()
    if not len(texts):
        return None
    first = str(texts.iloc[0])
    if first in _TEXTS_OF_TRUTHS:
        return TRUTHS if texts.isin(_TEXTS_OF_TRUTHS).all() else ""
    if not first.startswith("["):
        return ""
    return LISTS if texts.astype(str).map(lambda text: bool(_LIST.fullmatch(text))).all() else ""
