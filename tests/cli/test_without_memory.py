"""A command that has no memory left: it says so, and ends with the exit code of trouble of the cluster."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from rich.console import Console

from dfm.cli import app
from dfm.errors import ClusterError, DataError, want_of_memory


def end(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a command that raises the error."""

    def fail(**_options: Any) -> None:
        raise error

    monkeypatch.setattr(app.cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_allocation_that_failed_is_trouble_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert end(monkeypatch, MemoryError("no 8 GiB")) == ClusterError.exit_code
    err = " ".join(capfd.readouterr().err.split())
    assert err.startswith("error: this process has no more memory")
    assert "no 8 GiB" in err


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(errno.ENOMEM, "no memory")])
def test_so_are_a_thread_and_a_mapping_that_failed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert end(monkeypatch, error) == ClusterError.exit_code


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("another")])
def test_another_error_is_raised_as_it_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        end(monkeypatch, error)


def test_an_error_that_is_its_own_cause_is_looked_at_once() -> None:
    error = ValueError("round and round")
    error.__cause__ = error
    assert want_of_memory(error) is None


@pytest.mark.parametrize("lack", [MemoryError(), ImportError("failed to map segment: Cannot allocate memory")])
def test_the_last_words_need_no_memory(
    lack: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def without_memory(*_: Any, **__: Any) -> None:
        raise lack

    monkeypatch.setattr(Console, "print", without_memory)
    assert end(monkeypatch, DataError("line 3 of [data]\nis torn")) == DataError.exit_code
    assert capfd.readouterr().err == "error: line 3 of [data] is torn\n"


def test_a_message_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert end(monkeypatch, DataError("the column [red]:smile: is missing")) == DataError.exit_code
    assert "[red]:smile: is missing" in " ".join(capfd.readouterr().err.split())
