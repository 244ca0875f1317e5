"""How those wait who follow a run: what they ask, a store or an API server, may be away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from dfm.errors import DfmError

Given = ParamSpec("Given")
Answer = TypeVar("Answer")
PAUSE = 1.0
"""Seconds between two questions to somebody who is away."""


class Patient:
    """Asks questions in the course of a long wait. An error that is `sat_out` is told once and is no answer.

    eager: kinds of error that are sat out though nothing was ever answered: a server that is not there proves nothing,
    while one that refuses the first question is right. answered: whether somebody else has had an answer just now.
    """

    def __init__(
        self, on_event: Callable[[dict[str, Any]], None], eager: tuple[type[DfmError], ...] = (), answered: bool = False
    ) -> None:
        self._on_event, self._eager = on_event, eager
        self._since, self._answered = 0.0, answered

    def ask(self, question: Callable[Given, Answer], *given: Given.args, **named: Given.kwargs) -> Answer | None:
        """The answer to a call; None where there is none at present, its error where that lasts."""
        try:
            answer = question(*given, **named)
        except DfmError as error:
            if not error.sat_out or not (self._answered or self._since or isinstance(error, self._eager)):
                raise
            now = time.monotonic()
            if not self._since:
                self._since = now
                self._on_event({"event": "waiting", "reason": str(error)})
            if now - self._since > error.sat_out:
                raise
            return None
        self._since, self._answered = 0.0, True
        return answer

    def insist(self, question: Callable[Given, Answer], *given: Given.args, **named: Given.kwargs) -> Answer:
        """The answer to a call, asked again until there is one; its error where there is none for long."""
        told: list[Answer] = []

        def once() -> bool:
            told.append(question(*given, **named))
            return True

        while not self.ask(once):
            time.sleep(PAUSE)
        return told[0]
