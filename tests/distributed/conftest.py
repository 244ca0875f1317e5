"""The log and the cluster that tests of training share."""

from tests.support.shared_log import client as client
from tests.support.shared_log import log as log
from tests.support.shared_log import two_workers as two_workers
