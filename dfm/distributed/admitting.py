"""The checks of a job against its input, before a cluster is there: by a training and by whoever plans one."""

from __future__ import annotations

from dfm.distributed.calibrating import check_calibration
from dfm.distributed.choosing import check_choice
from dfm.model.warm_start import Start, find_start
from dfm.training.inputs import Inputs
from dfm.training.order import Order
from dfm.training.publish import check_shards


def admitted(order: Order, inputs: Inputs) -> Order:
    """The order of rows with the fields of this input. SettingsError where shards lie in the output, the family does
    not suit the fields, or rows to validate on are wanted and there are none.
    """
    check_shards(order.job, [*inputs.train, *inputs.validation])
    check_choice(order.job, inputs)
    check_calibration(order.job, inputs)
    return order.of_fields(inputs.schema)


def start_of(order: Order, inputs: Inputs) -> Start | None:
    """The model that training goes on from, or None. ModelError or SettingsError as `find_start` raises them."""
    loss = None if order.objective.is_plain else order.objective.info.to_dict()
    return find_start(order.job, inputs.schema, loss)
