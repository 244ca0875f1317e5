"""The log and the cluster that tests of training share. Their rounds are tasks, as on clusters of several machines."""

import pytest

from dfm.distributed import loops
from tests.support.shared_log import client as client
from tests.support.shared_log import log as log
from tests.support.shared_log import two_workers as two_workers


@pytest.fixture(autouse=True)
def rounds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round of the trainings in a test is tasks of its own. `test_stretches` is about the others."""
    monkeypatch.setattr(loops, "rounds_together", lambda _run, _prepared, _n_blocks: 1)
