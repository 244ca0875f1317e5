"""The checks of a job against its input, before a cluster is there: by a training and by whoever plans one."""

from __future__ import annotations

from dfm.data.column_types import check_types
from dfm.data.parquet import Shard, feature_schema
from dfm.distributed.calibrating import check_calibration
from dfm.distributed.choosing import check_choice
from dfm.errors import DataError
from dfm.kernels.losses import is_paired
from dfm.model.warm_start import Start, find_start
from dfm.training.inputs import Inputs
from dfm.training.order import Order
from dfm.training.publish import check_shards


def admitted(order: Order, inputs: Inputs) -> Order:
    """The order of rows with the fields of this input. SettingsError where shards lie in the output, the family does
    not suit the fields, or rows to validate on are wanted and there are none; DataError where columns are of types that
    cannot be what the schema makes of them.
    """
    check_shards(order.job, [*inputs.train, *inputs.validation])
    for shards, judges in ((inputs.train, inputs.split.is_needed), (inputs.validation, True)):
        _check_types(order, inputs, next((shard for shard in shards if shard.n_rows), None), judges)
    check_choice(order.job, inputs)
    check_calibration(order.job, inputs)
    return order.of_fields(inputs.schema)


def _check_types(order: Order, inputs: Inputs, shard: Shard | None, judges: bool) -> None:
    """DataError where the columns of a shard cannot be what the job makes of them. judges: whether some of its rows
    validate, whose groups are read.
    """
    if shard is None:
        return
    schema, split = order.job.schema, inputs.split
    group = schema.group if judges or is_paired(order.job.model.loss) else ""
    time = schema.time if split.bound else split.time
    columns = feature_schema(shard, order.job.data.storage_options)
    try:
        check_types(inputs.schema, columns, group, time, split.bound)
    except DataError as error:
        raise DataError(f"{shard.url}: {error}") from error


def start_of(order: Order, inputs: Inputs) -> Start | None:
    """The model that training goes on from, or None. ModelError or SettingsError as `find_start` raises them."""
    loss = None if order.objective.is_plain else order.objective.info.to_dict()
    return find_start(order.job, inputs.schema, loss)
