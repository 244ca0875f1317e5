"""A job's settings: constraints of single values, the tables of a job file, the job.

Imports storage, and light records whose names and ranges it takes.
"""

from __future__ import annotations

from dfm.settings.job import Job, KnobDescription, describe, load_job, read_tables
from dfm.settings.tables import (
    ClusterSettings,
    DataSettings,
    KubernetesSettings,
    ModelSettings,
    OutputSettings,
    Schema,
    TrainingSettings,
)

__all__ = [
    "ClusterSettings",
    "DataSettings",
    "Job",
    "KnobDescription",
    "KubernetesSettings",
    "ModelSettings",
    "OutputSettings",
    "Schema",
    "TrainingSettings",
    "describe",
    "load_job",
    "read_tables",
]
