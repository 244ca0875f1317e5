"""Stores that are busy, throttle or restart are asked again, for `PATIENCE` seconds; then there is a StorageError."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from dfm.errors import StorageError
from dfm.storage.credentials import hidden

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
PATIENCE = 60.0
"""Seconds for which a failing store is asked again, beside what its own client repeats."""
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 10.0
_BUSY = {errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EPIPE, getattr(errno, "EREMOTEIO", errno.EBUSY)}
_CONNECTION_ERRORS = {
    *("HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead"),
    *("ServiceRequestError", "ServiceResponseError", "TransportError", "Timeout"),
}
"""Classes of botocore (its ConnectionError, of which its timeouts are, is no OSError), aiohttp, urllib3, requests,
Azure and Google's login, found by name: none of these packages is needed."""
_AT_ONCE = ("ConditionalRequestConflict",)
"""The answer of S3 to one of two conditional puts of one object at the same time; the next one is told who won."""
_NOT_KNOWN = 501
"""The status of a request that a store does not know, today or later."""
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}


def retrying(url: str, action: Callable[[], Answer]) -> Answer:
    """The result of `action`, which is called again while the store is busy.

    StorageError when patience is at an end, and at once where the store denies access.
    """
    started, delay = time.monotonic(), _FIRST_DELAY
    while True:
        try:
            return action()
        except Exception as error:
            if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
                raise StorageError(
                    f"{hidden(url)}: access denied ({first_line(error)}); check that this process finds credentials "
                    "(in its environment, a profile, or as the identity of the machine) and that they allow this"
                ) from error
            if not is_transient(error):
                raise
            if time.monotonic() - started + delay > PATIENCE:
                raise StorageError(
                    f"{hidden(url)} does not answer ({first_line(error)}), asked again for {PATIENCE:.0f} s; "
                    "check the store, its address and its limits, then run the same command again"
                ) from error
            logger.warning("%s: %s; asking again in %.1f s", hidden(url), first_line(error), delay)
        # Many workers were refused at the same moment; they must not come back at the same moment.
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(2 * delay, _LONGEST_DELAY)


def is_transient(error: BaseException) -> bool:
    """Whether a store may answer the same request later: throttling, its own failures, lost connections."""
    for cause in (error, error.__cause__):
        answer = getattr(cause, "response", None)
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, Mapping) else None
        status = status or getattr(cause, "status", None) or getattr(answer, "status_code", None)
        if isinstance(status, int):
            code = answer.get("Error", {}).get("Code") if isinstance(answer, Mapping) else None
            return (status >= 500 and status != _NOT_KNOWN) or status in (408, 429) or code in _AT_ONCE
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    by_name = {kind.__name__ for kind in type(error).__mro__} & _CONNECTION_ERRORS
    return bool(by_name) or (isinstance(error, OSError) and error.errno in _BUSY)


def first_line(error: BaseException) -> str:
    """The first line of an error's words, else its class."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
