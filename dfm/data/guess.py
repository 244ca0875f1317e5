"""A job file for data that nobody has described: each column's role by its type, its name and a sample, with what
speaks for it in comments. It is a first draft for people to read: where it doubts, it says so.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dfm.data.canonical import value_text
from dfm.data.facts import PLACEHOLDERS, SEPARATORS, ColumnFacts, DataFacts, facts_of
from dfm.data.labels import positive_of
from dfm.data.parquet import find_shards
from dfm.data.schema import CATEGORY_KINDS
from dfm.settings.arguments import texts
from dfm.settings.toml import toml_value

MARK = "# Made by dfm guess"
"""The begin of a job file that dfm wrote and may write again."""
NO_LABEL = '# label = "…"  # to be named: see above'
LABEL_NAMES = (
    *("label", "target", "y", "click", "clicked", "is_click", "is_clicked", "click_flag", "converted", "conversion"),
    *("is_conversion", "purchase", "purchased", "bought", "response", "outcome", "liked", "like", "rating", "stars"),
    *("churn", "churned", "class", "labels"),
)
"""Names that a label has, the more telling first."""
TIME_NAMES = ("time", "timestamp", "ts", "date", "day", "datetime", "event_time", "created_at", "dt", "hour")
WEIGHT_NAMES = ("weight", "sample_weight", "importance", "weights")
GROUP_NAMES = ("group", "qid", "query_id", "session_id", "session", "user_id", "user", "impression_id", "request_id")
_EPOCHS = ((5e8, 4e9), (5e11, 4e12), (5e14, 4e15), (5e17, 4e18))
"""Moments since 1970 in s, ms, µs and ns, of the years 1985 to 2096."""
_FEWEST_UNIQUE = 20
"""Rows from which on a column of distinct values is taken for an index."""
_MOST_LABELS = 100
"""Distinct whole numbers of a label by name that are taken for degrees and not for an index."""
_LONG_TEXT = 60
"""Mean characters of values that are taken for sentences."""
_SHARE_OF_LISTS = 0.3
"""The share of the distinct values of a column from which on a sign parts elements."""
_DATE = re.compile(r"^(\d{1,2}[./-]\d{1,2}[./-]\d{4}|\d{4}[./-]\d{1,2}[./-]\d{1,2})\b")
"""Begin of a moment, in whatever form."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
"""A number with a decimal point or none."""
_COMMA = re.compile(r"[+-]?[\d.]+(,\d+)?")
"""A number, maybe with a decimal comma."""
_DAYS = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
"""A day as a whole number, YYYYMMDD."""
_LONGEST_SHOWN = 24
"""Characters of a value that a note quotes."""
_BAD = 'bad rows, which data.on_bad_rows = "skip" leaves out'
_LOAD = 0.1
_BUCKETS = 40
"""Features of a numeric column, about."""


@dataclass
class _Draft:
    """Roles so far, and what is to be said of columns; notes come before all tables."""

    facts: DataFacts
    label: str = ""
    label_positive: str = ""
    is_regression: bool = False
    time: str = ""
    validation_from: str = ""
    weight: str = ""
    categorical: list[str] = field(default_factory=list)
    numeric: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    separator: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def guess(
    data: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    output: str = "results",
    storage_options: Mapping[str, Any] | None = None,
    missing: str | Sequence[str] = (),
) -> str:
    """A commented job file (TOML) for Parquet data: paths, folders, globs or URLs.

    It is made of all footers and of up to 200,000 rows, the same text for the same data. Where a label was found the
    job runs as it stands; otherwise the label is left for the reader to name. output: the directory of its results.
    missing: a text, or texts, that mean no value wherever these rows come from, beside those that look so. DataError
    where there is no Parquet, which says how text becomes that; SettingsError where a path is empty.
    """
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    places = [os.fspath(path) for path in paths]
    draft = _Draft(facts_of(find_shards(places, storage_options), storage_options), missing=texts("missing", missing))
    _find_label(draft)
    _find_time(draft)
    _find_weight(draft)
    _find_features(draft)
    return "".join(f"{_one_line(line)}\n" for line in _written(draft, places, output, dict(storage_options or {})))


# ------------------------------------------------------------------------------------------------- roles ----


def _by_name(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of the columns that are called so, in the order of the names."""
    known = {column.rpartition(".")[2].lower(): column for column in reversed([*columns])}
    return [known[name] for name in names if name in known]


def _two_values(facts: ColumnFacts) -> tuple[str, ...]:
    """The two labels among the values of a column; empty where it has another number of them."""
    if facts.kind == "list" or facts.moments:
        return ()
    if facts.are_numbers and not facts.n_words:
        numbers = np.unique(facts.numbers)
        return tuple(str(value_text(number)) for number in numbers.tolist()) if len(numbers) == 2 else ()
    passed = facts.placeholders if facts.n_distinct > 2 else ()
    found = {*facts.top}.difference(passed)
    return tuple(sorted(found)) if len(found) == facts.n_distinct - len(passed) == 2 else ()


def _gaps(facts: ColumnFacts) -> float:
    """The share of rows in which a column that can be learnt has no label."""
    known = len(facts.numbers) + facts.n_words
    return facts.missing if facts.n_distinct == 2 else 1 - known / max(facts.n_rows, 1)


def _is_binary(facts: ColumnFacts) -> bool:
    """Whether each row has one of two values that are opposites."""
    labels = _two_values(facts)
    is_full = facts.n_distinct == 2 and not (facts.n_missing or facts.n_nan)
    return is_full and (labels == ("0", "1") or bool(positive_of(labels)))


def _is_label(facts: ColumnFacts) -> bool:
    """Whether a column of a telling name can be learnt where it has a value: two of them, or numbers throughout."""
    if _two_values(facts):
        return True
    numbers = facts.are_numbers and not facts.n_words and facts.numbers[0] < facts.numbers[-1]
    is_index = facts.kind == "int" and facts.n_distinct == facts.n_present and facts.n_distinct > _MOST_LABELS
    return numbers and not is_index and facts.moments is None


def _find_label(draft: _Draft) -> None:
    columns = draft.facts.columns
    called = _by_name(columns, LABEL_NAMES)
    named = [name for name in called if _is_label(columns[name])]
    passed = [name for name in called if name not in named]
    none = "No other column" if passed else "No column"
    if passed:
        draft.notes.append(f"Called like a label, but not of two values or of numbers that repeat: {_named(passed)}.")
    binary = [name for name, facts in columns.items() if _is_binary(facts) and name not in draft.facts.set_aside]
    candidates = list(dict.fromkeys([*named, *binary]))
    if named or len(binary) == 1:
        _take_label(draft, candidates[0])
    elif binary:
        draft.notes.append(
            f"{none} is called like a label, and {len(binary)} have two values: {_named(binary)}. Name one "
            "of them as the label."
        )
    else:
        draft.notes.append(_no_label(draft, none))
    if draft.label and len(candidates) > 1:
        draft.notes.append(
            f"Other columns could be the label: {_named(candidates[1:])}. As features they may tell what is to be "
            "predicted: take out what is not known beforehand."
        )


def _named(columns: Sequence[str]) -> str:
    """Some columns, and of many the first, for a note."""
    return ", ".join(columns[:8]) + (", …" if len(columns) > 8 else "")


def _no_label(draft: _Draft, none: str) -> str:
    """The note of data without a label that could be told from features: which columns have two values."""
    pairs = {name: _two_values(facts) for name, facts in draft.facts.columns.items()}
    told = [
        f"{name} ({', '.join(repr(value[:_LONGEST_SHOWN]) for value in pair)})"
        for name, pair in pairs.items()
        if pair and name not in draft.facts.set_aside
    ]
    if not told:
        return "No column looks like a label (0 or 1, two values, or a telling name). Name one."
    return (
        f"{none} is called like a label. Two values each have: {'; '.join(told[:8])}. If one of them is the label, "
        "name it, and in label_positive the value that counts as 1."
    )


def _take_label(draft: _Draft, name: str) -> None:
    facts, labels = draft.facts.columns[name], _two_values(draft.facts.columns[name])
    draft.label = name
    if labels and labels != ("0", "1"):
        draft.label_positive = positive_of(labels) or labels[-1]
        draft.said[name] = f"two values, {labels[0]} and {labels[1]}; {draft.label_positive} is taken for 1"
    elif labels:
        draft.said[name] = f"{_share(facts.numbers.mean())} are 1"
    else:
        draft.is_regression = True
        low, high = facts.numbers[0], facts.numbers[-1]
        draft.said[name] = f"numbers from {low:g} to {high:g}, {facts.n_distinct:,} distinct: a regression"
        draft.said[name] += "; classes would need a job each" if _are_few(facts) else ""
    if gaps := _gaps(facts):
        draft.said[name] += f"; {_share(gaps)} have none: {_BAD}"


def _are_few(facts: ColumnFacts) -> bool:
    """Whether labels are whole numbers of which there are few, which may be names of classes."""
    return facts.are_whole and facts.n_distinct <= _BUCKETS


def _find_time(draft: _Draft) -> None:
    columns = {name: facts for name, facts in draft.facts.columns.items() if name != draft.label}
    folders = {name for shard in draft.facts.shards for name, _ in shard.partition}
    moments = [name for name, facts in columns.items() if facts.moments and not (facts.n_missing or facts.placeholders)]
    called = _by_name(columns, TIME_NAMES)
    moments += [name for name, facts in columns.items() if name in {*called, *folders} and _are_days(facts)]
    epochs = [name for name in called if name not in moments and _is_epoch(columns[name])]
    found = sorted(moments, key=lambda name: (name not in called, name not in folders)) + epochs
    if not found:
        return
    draft.time = found[0]
    facts = columns[draft.time]
    first, at_tenth, at_twentieth, last = facts.moments or tuple(
        f"{facts.numbers[int(share * (len(facts.numbers) - 1))]:.0f}" for share in (0, 0.9, 0.95, 1)
    )
    has_days = len(last) == len("2026-11-20") if facts.moments else _are_days(facts)
    begin = at_twentieth if has_days else at_tenth
    draft.validation_from = begin if begin > first else ""
    draft.said[draft.time] = f"from {first} to {last}"
    if len(found) > 1:
        draft.notes.append(f"Other columns hold moments: {', '.join(found[1:])}; {draft.time} orders the rows.")


def _are_days(facts: ColumnFacts) -> bool:
    """Whether all values are whole numbers that are days: 20261120."""
    if facts.n_missing or facts.n_words or not len(facts.numbers) or not facts.are_whole:
        return False
    return all(_DAYS.fullmatch(f"{number:.0f}") for number in np.unique(facts.numbers))


def _is_epoch(facts: ColumnFacts) -> bool:
    numbers = facts.numbers
    if facts.n_missing or facts.n_words or not len(numbers) or not facts.are_whole:
        return False
    return any(low <= numbers[0] and numbers[-1] <= high for low, high in _EPOCHS)


def _find_weight(draft: _Draft) -> None:
    for name in _by_name(draft.facts.columns, WEIGHT_NAMES):
        facts = draft.facts.columns[name]
        is_weight = facts.are_numbers and not (facts.n_missing or facts.n_words or facts.n_nan or facts.n_infinite)
        if name not in (draft.label, draft.time) and is_weight and facts.numbers[0] >= 0 and not draft.weight:
            draft.weight = name
            draft.said[name] = f"from {facts.numbers[0]:g} to {facts.numbers[-1]:g}: taken by its name"


def _find_features(draft: _Draft) -> None:
    for name, facts in draft.facts.columns.items():
        if name in (draft.label, draft.time, draft.weight):
            continue
        why = draft.facts.set_aside.get(name) or _why_not(facts)
        if why:
            draft.left_out[name] = why
        else:
            _take_feature(draft, facts)
    if not (draft.categorical or draft.numeric or draft.lists):
        draft.notes.append("No column is left as a feature: name some below [schema].")
    elif not (draft.categorical or draft.numeric) and draft.left_out:
        draft.notes.append(
            "[schema] names lists alone: dfm then takes other columns by their types, those that are left out here "
            "too. Name a categorical or a numeric column, or drop the others from the data."
        )


def _why_not(facts: ColumnFacts) -> str:
    """The reason to leave a column out; empty where it is a feature."""
    if facts.moments or facts.kind not in (*CATEGORY_KINDS, "float", "list"):
        return f"it holds {_kind_left_out(facts)}"
    if facts.n_distinct == 0 or (facts.n_distinct == 1 and not facts.n_missing):
        return "it has no value" if not facts.n_distinct else f"it has one value, {facts.top[0]}"
    if why := _why_no_category(facts):
        return why
    is_unique = facts.n_distinct == facts.n_present and facts.n_rows >= _FEWEST_UNIQUE
    if is_unique and facts.kind != "list" and not _is_measure(facts):
        return f"each row has a value of its own, as an index has{_commas(facts)}"
    return ""


def _kind_left_out(facts: ColumnFacts) -> str:
    """The kind of a column that is no feature as it is, and what makes one of it."""
    if facts.moments:
        is_text = facts.kind in CATEGORY_KINDS
        return f"{'moments' if is_text else facts.kind}; a derived hour or weekday may help"
    if facts.kind.startswith(("time32", "time64")):
        hour = toml_value(f"hour({facts.name})")
        return f"times of day; as a category, or by [schema.derive] hour = {hour}, it may help"
    return facts.kind


def _why_no_category(facts: ColumnFacts) -> str:
    """The reason why text is no category: moments that are not written as such, sentences."""
    if facts.kind not in ("string", "dictionary"):
        return ""
    if _DATE.search(facts.top[0]):
        return (
            f'it looks like moments in a form of its own ("{facts.no_moment}"): written as 2026-11-20T10:00:00 they '
            "could order the rows, and give an hour and a weekday"
        )
    if facts.mean_characters > _LONG_TEXT and max(facts.parts.values(), default=0.0) < _SHARE_OF_LISTS:
        return (
            f"sentences, of {facts.mean_characters:.0f} characters on average; lists = [{toml_value(facts.name)}] with "
            'list_separator = " " makes a feature of each word'
        )
    return ""


def _is_measure(facts: ColumnFacts) -> bool:
    """Whether a column is a number: by its type, or by text of numbers that are not whole. Floats of whole numbers that
    are called like codes are none: a frame with missing values makes such floats of integers.
    """
    if facts.kind == "float":
        return not (facts.are_whole and _is_called_code(facts.name))
    return facts.are_numbers and not facts.are_whole


def _take_feature(draft: _Draft, facts: ColumnFacts) -> None:
    name = facts.name
    if facts.kind == "list":
        draft.lists.append(name)
        draft.said[name] = f"{facts.length:.1f} elements a row, {_about(facts)} distinct"
        return
    separator = next((sign for sign in SEPARATORS if facts.parts.get(sign, 0.0) >= _SHARE_OF_LISTS), "")
    if separator and draft.separator in ("", separator):
        draft.separator = separator
        draft.lists.append(name)
        draft.said[name] = f'text with {separator} between elements: "{facts.top[0][:40]}"'
        return
    is_count = facts.are_numbers and facts.kind != "bool" and _looks_counted(facts)
    draft.said[name] = f"{_about(facts)} distinct{_missing(facts)}"
    if _is_measure(facts) or is_count:
        draft.numeric.append(name)
        draft.said[name] += f", {facts.numbers[0]:g} to {facts.numbers[-1]:g}"
        draft.said[name] += "; whole numbers" if facts.kind == "float" and facts.are_whole else ""
        draft.said[name] += (
            f"; {_share(facts.n_infinite / facts.n_rows)} are infinite: {_BAD}" if facts.n_infinite else ""
        )
        draft.said[name] += "" if _is_measure(facts) else "; counted, it seems: categorical if these are codes"
        return
    draft.categorical.append(name)
    if facts.are_numbers and facts.kind != "bool" and facts.n_distinct > _MOST_LABELS and not _is_called_code(name):
        draft.said[name] += "; codes, it seems: numeric if these are amounts"
    if separator:
        draft.said[name] += f"; text with {separator} between elements, but list_separator is {draft.separator}"
        draft.said[name] += ": lists if it is written as such"
    draft.said[name] += _commas(facts)


def _commas(facts: ColumnFacts) -> str:
    """A word about text of numbers that have commas where a point is read."""
    if facts.kind not in ("string", "dictionary") or not all(map(_COMMA.fullmatch, facts.top)):
        return ""
    example = next((text for text in facts.top if "," in text), "")
    return f'; numbers with commas, it seems ("{example}"): numeric if they are written with points' if example else ""


def _is_called_code(name: str) -> bool:
    return name.lower().endswith(("id", "code", "key", "zip", "no", "idx", "index"))


def _looks_counted(facts: ColumnFacts) -> bool:
    """Whether whole numbers are amounts rather than codes: most are small beside the largest, and small ones are dense.

    A name that ends like one of a code decides against it.
    """
    if not facts.are_whole or _is_called_code(facts.name):
        return False
    numbers = facts.numbers
    if facts.n_distinct <= _BUCKETS or numbers[0] < 0:
        return facts.n_distinct > 2 and bool(numbers[0] < 0)
    middle = float(np.median(numbers))
    return middle * 4 < numbers[-1] and (numbers[0] == 0 or middle * 10 < numbers[-1])


def _about(facts: ColumnFacts) -> str:
    return f"about {facts.n_values:,}" if facts.n_values > facts.n_distinct else f"{facts.n_values:,}"


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def _missing(facts: ColumnFacts) -> str:
    return f", {_share(facts.missing)} missing" if facts.n_missing else ""


# ----------------------------------------------------------------------------------------------- writing ----


def _written(draft: _Draft, places: Sequence[str], output: str, options: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the job file."""
    facts = draft.facts
    yield f"{MARK} of {facts.n_rows:,} rows in {len(facts.shards):,} shards: a draft, to be read before it is run."
    for note in draft.notes:
        yield from textwrap.wrap(note, 110, initial_indent="# ", subsequent_indent="#   ")
    yield ""
    yield "[data]"
    yield f"train = {toml_value(places[0] if len(places) == 1 else list(places))}"
    if draft.validation_from:
        yield f"validation_from = {toml_value(draft.validation_from)}  # rows from this time on validate"
    if options:
        yield f"storage_options = {toml_value(options)}"
    yield from _schema_lines(draft)
    yield from ("", "[model]")
    if draft.is_regression:
        yield 'task = "regression"'
    features = _n_features(draft)
    yield f"hash_bits = {hash_bits(features)}  # for about {features:,} features"
    n_rows = facts.n_rows
    yield from ("", "[training]", f"n_replicas = {max(1, min(8, n_rows // 1000))}")
    yield from ("", "[output]", f"directory = {toml_value(output)}")


def _one_line(line: str) -> str:
    """A line of the file, whatever the data have put into it: what is not printed, such as the end of a line, stands
    as TOML escapes it, which is the same value in a string and harmless in a comment.
    """
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in line)


def _escape(sign: str) -> str:
    return f"\\u{ord(sign):04x}" if ord(sign) < 1 << 16 else f"\\U{ord(sign):08x}"


def _schema_lines(draft: _Draft) -> Iterator[str]:
    yield from ("", "[schema]")
    yield f"label = {_with_note(draft, draft.label)}" if draft.label else NO_LABEL
    if draft.label_positive:
        yield f"label_positive = {toml_value([draft.label_positive])}"
    for key, name in (("time", draft.time), ("weight", draft.weight)):
        if name:
            yield f"{key} = {_with_note(draft, name)}"
    for name in () if draft.is_regression else _groups(draft):
        yield f"# group = {toml_value(name)}  # rows of one {name} would be judged, or ranked, among each other"
    for role in ("categorical", "numeric", "lists"):
        yield from _role_lines(draft, role)
    if draft.separator:
        yield f"list_separator = {toml_value(draft.separator)}"
    if missing := _missing_texts(draft):
        yield f"missing = {toml_value(missing)}  # {_missing_note(draft)}"
    if any(draft.facts.columns[name].n_nan for name in draft.numeric):
        yield 'nan = "missing"  # there is NaN among the numbers'
    for name, why in draft.left_out.items():
        yield f"# left out: {name}: {why}"
    yield from _derived_lines(draft)


def _with_note(draft: _Draft, name: str) -> str:
    return f"{toml_value(name)}  # {draft.said[name]}"


def _role_lines(draft: _Draft, role: str) -> Iterator[str]:
    names = getattr(draft, role)
    if names:
        yield f"{role} = ["
        yield from (f"    {toml_value(name)},  # {draft.said[name]}" for name in names)
        yield "]"


def _groups(draft: _Draft) -> list[str]:
    """The first column that is called like a group and has several rows a value."""
    columns = draft.facts.columns
    named = _by_name(columns, GROUP_NAMES)
    return [
        name for name in named if name in draft.categorical and columns[name].n_distinct * 2 < columns[name].n_rows
    ][:1]


def _missing_texts(draft: _Draft) -> list[str]:
    used = [*draft.categorical, *draft.numeric]
    of_label = draft.facts.columns[draft.label].placeholders if draft.label else ()
    labels = _two_values(draft.facts.columns[draft.label]) if draft.label else ()
    tops = [
        draft.facts.columns[name].top for name in used if draft.facts.columns[name].kind in ("string", "dictionary")
    ]
    found = [text for text in PLACEHOLDERS if any(text in top for top in tops)]
    among_numbers = {text for name in draft.numeric for text in draft.facts.columns[name].placeholders}
    found += [text for text in of_label if text not in labels]
    return list(dict.fromkeys([*draft.missing, *found, *sorted(among_numbers)]))


def _missing_note(draft: _Draft) -> str:
    """A word about the texts; where a conversion was told of one that is a number, that numbers are not meant."""
    kinds = {draft.facts.columns[name].kind for name in (*draft.categorical, *draft.numeric)}
    number = next((text for text in draft.missing if _NUMBER.fullmatch(text)), "")
    if number and not kinds.isdisjoint(("int", "float")):
        return f"as text: of rows to be scored, a number {number} is one like any other, and None is missing"
    return "texts that look like no value"


def _derived_lines(draft: _Draft) -> Iterator[str]:
    """Derived features of the time, as comments: an hour where the moments have one; none that is a column already."""
    moments = draft.facts.columns[draft.time].moments if draft.time else None
    words = ["hour"] * (moments is not None and len(moments[-1]) > len("2026-11-20")) + ["weekday"]
    words = [word for word in words if word not in draft.facts.columns]
    if moments and words:
        yield "# [schema.derive]  # features that the time could give"
        yield from (f"# {word} = {toml_value(f'{word}({draft.time})')}" for word in words)


def _n_features(draft: _Draft) -> int:
    columns = draft.facts.columns
    return sum(columns[name].n_values for name in (*draft.categorical, *draft.lists)) + _BUCKETS * len(draft.numeric)


def hash_bits(n_features: int) -> int:
    """Bits of a hash table of which so many features fill a tenth at most: 16 to 28."""
    return min(max(16, math.ceil(math.log2(max(n_features, 1) / _LOAD))), 28)
