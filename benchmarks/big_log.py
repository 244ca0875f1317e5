"""A large synthetic log that is made once and kept, and the job that trains on it."""

from __future__ import annotations

from pathlib import Path

from dfm.data.synthetic import generate, read_truth
from dfm.errors import DataError

_JOB = """\
[data]
train = "{folder}/clicks"
validation_from = "2026-11-21"
[schema]
time = "day"
categorical = ["C*"]
numeric = ["I*"]
[model]
n_factors = 8
hash_bits = 22
[cluster]
cache = "{folder}/cache"
[output]
directory = "{folder}/run"
"""


def prepare_log(folder: Path, rows: int) -> Path:
    """The folder's job file, after the log of `rows` rows was made (eight days, the last one validates)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = read_truth(folder / "clicks").rows == rows
    except DataError:
        made = False
    if not made:
        generate(folder / "clicks", rows=rows, days=8, shards_per_day=8, processes=2, overwrite=True)
    job = folder / "job.toml"
    job.write_text(_JOB.format(folder=folder.resolve().as_posix()))
    return job
