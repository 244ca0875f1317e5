"""The log and the cluster that tests of training share. Their rounds are tasks, as on clusters of several machines."""

from tests.support.shared_log import client as client
from tests.support.shared_log import log as log
from tests.support.shared_log import rounds_of_their_own as rounds_of_their_own
from tests.support.shared_log import two_workers as two_workers
