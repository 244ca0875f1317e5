"""Notes on the columns of a fit: which become no feature, which say nothing; and on the unit of its labels.

Each is logged once in a process, for a search fits the same columns many times.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence

from dfm.data.footers import HOLDS
from dfm.data.hashing import expected_collisions
from dfm.data.schema import ResolvedSchema
from dfm.data.transforms import NumberStatistics
from dfm.data.vocabulary import Vocabulary
from dfm.errors import SettingsError
from dfm.settings.tables import ModelSettings, Schema
from dfm.training.diagnosis import column_findings, count_fields
from dfm.training.executor import Event

logger = logging.getLogger(__name__)
_KNOBS = "|".join(rf"{table.table}\.(?=(?:{'|'.join(table.knobs())})\b)" for table in (Schema, ModelSettings))
_TABLE = re.compile(rf"""(?<![\w'"/.])(?:{_KNOBS})""")
"""The table of a knob, which parameters of estimators have none of; in names of columns and paths it stays."""
_HOLDS_MOMENTS = (f"{HOLDS}date", f"{HOLDS}time")
_WORSE = -0.01
"""The explained share of the variance below which a fit is worse than a constant by more than noise."""
_MOST_NAMED = 20
_MOST_REMEMBERED = 1_000


@contextlib.contextmanager
def naming_parameters() -> Iterator[None]:
    """A context: a SettingsError of the block names parameters of estimators, and no knobs of tables."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(_TABLE.sub("", str(error)).replace(" in [schema]", "")) from error


def tell_left_out(left_out: Mapping[str, str]) -> None:
    """Name columns that become no feature, with the reason and the way to make some of them."""
    if not left_out:
        return
    shown = ", ".join(f"{name!r} ({why})" for name, why in list(left_out.items())[:_MOST_NAMED])
    more = f" and {len(left_out) - _MOST_NAMED} more" if len(left_out) > _MOST_NAMED else ""
    moment = next((name for name, why in left_out.items() if why.startswith(_HOLDS_MOMENTS)), None)
    hint = f', or make features of moments: derive={{"hour": "hour({moment})"}}' if moment else ""
    _log_once(f"columns that become no feature: {shown}{more}; name them in categorical={hint}")


def tell_what_says_nothing(
    schema: ResolvedSchema, statistics: Mapping[str, NumberStatistics], vocabulary: Vocabulary, min_count: int
) -> None:
    """Name columns of one value, and those whose values are nearly all their own, like the id of a row."""
    collided_share = expected_collisions(vocabulary.n_features, vocabulary.hash_bits)
    counts = count_fields(vocabulary, [entry.name for entry in schema.fields])
    for finding in column_findings(schema, statistics, counts, min_count, collided_share):
        _log_once(_TABLE.sub("", f"{finding.message} ({', '.join(finding.knobs)})"))


def tell_worse_than_mean(history: Sequence[Event], deviation: float, remedy: str) -> None:
    """Say where the squared error of no epoch was less than that of always answering the mean, of rows that are held
    out or else of those that train, whose labels have this deviation. Of the latter the losses of the first epoch, and
    of a first iteration, tell of the start.
    """
    explained = [
        1.0 - (record["train_rmse"] / deviation) ** 2 if record.get("r2") is None else record["r2"]
        for record in history[1:]
        if "train_rmse" in record
    ]
    if explained and max(explained) < _WORSE:
        _log_once(
            f"the fit is worse than always answering the mean label (r2 {max(explained):.3g} at best); scale the "
            f"columns (standardize), or try {remedy}"
        )


def tell(told: str) -> None:
    """Log what was found of the data; nothing where that is ""."""
    if told:
        _log_once(_TABLE.sub("", told))


@functools.lru_cache(_MOST_REMEMBERED)
def _log_once(message: str) -> None:
    logger.warning("%s", message)
