"""Waiting for a partition of the log, in the triggerer: no worker slot is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, conf

from dfm.airflow.runtime import options_of
from dfm.airflow.triggers import PartitionTrigger, is_complete


class DfmPartitionSensor(BaseSensorOperator):
    """Succeeds once a partition is complete.

    :param partition: folder or URL of the partition
    :param marker: file that its writer leaves last
    :param min_rows: wait for so many rows instead of the marker, counted in the footers of the shards
    :param storage_options: options of the filesystem, without secrets
    :param deferrable: wait in the triggerer
    """

    template_fields: Sequence[str] = ("partition", "storage_options")

    def __init__(
        self,
        *,
        partition: str,
        marker: str = "_SUCCESS",
        min_rows: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.partition = partition
        self.marker = marker
        self.min_rows = min_rows
        self.storage_options = options_of(storage_options)
        self.deferrable = deferrable

    def poke(self, context: Any) -> bool:
        """Whether the partition is complete."""
        return is_complete(self.partition, self.marker, self.min_rows, options_of(self.storage_options))

    def execute(self, context: Any) -> None:
        """Wait here, or in the triggerer."""
        if not self.deferrable:
            super().execute(context)
        elif not self.poke(context):
            trigger = PartitionTrigger(
                self.partition, self.marker, self.min_rows, self.storage_options, float(self.poke_interval)
            )
            self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=float(self.timeout)))

    def execute_complete(self, context: Any, event: dict[str, Any]) -> None:
        """The partition is there."""
        self.log.info("%s is complete", event["partition"])
