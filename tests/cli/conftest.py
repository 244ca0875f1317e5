"""The command `dfm` within this process."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from dfm.cli.app import main
from dfm.events import faults_of
from tests.support.command_line import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(logging.getLogger("dfm"), "handlers", [])

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dfm", *[str(argument) for argument in arguments]])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        answer = capsys.readouterr()
        assert isinstance(exited.value.code, int)
        for line in answer.out.splitlines():
            if line.startswith('{"event"'):
                assert not faults_of(json.loads(line)), line
        return exited.value.code, answer.out, answer.err

    return call
