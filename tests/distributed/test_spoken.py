"""What a scheduler's port speaks is told to those who ask in another protocol, and a wrong address soon."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from distributed.versions import VersionMismatchWarning

from dfm.cli import runs
from dfm.distributed.cluster import remote
from dfm.distributed.cluster.remote import spoken_at
from dfm.errors import ClusterError
from dfm.settings.tables import ClusterSettings


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=dfm"]
    try:
        subprocess.run([*command, "-out", cert, "-keyout", key], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("certificates are made with openssl")
    return cert, key


@pytest.fixture(params=["asks nobody", "asks for certificates"])
def tls_port(certificate: tuple[str, str], request: pytest.FixtureRequest) -> Iterator[str]:
    """HOST:PORT of a server that speaks TLS, with or without certificates of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if request.param == "asks for certificates":
        context.load_verify_locations(certificate[0])
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # the refusal comes while hands are shaken
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server, context), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def serve(server: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        try:
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)
        except OSError:
            connection.close()


def test_a_port_tells_what_it_speaks(tls_port: str, client: Client, tmp_path: Path) -> None:
    assert spoken_at(tls_port) == "tls"
    assert spoken_at(client.scheduler.address.removeprefix("tcp://")) == "tcp"
    assert spoken_at("127.0.0.1:9") == spoken_at("no.such.host.invalid:1") == spoken_at("nothing") == ""


def test_who_asks_in_another_protocol_is_told_which_it_is(
    tls_port: str, client: Client, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_TRY", 1.0)
    begun = time.monotonic()
    with (
        pytest.raises(ClusterError, match=rf"tcp://{tls_port}: that port speaks TLS only; say tls://{tls_port}; cert"),
        remote.remote_client(ClusterSettings(scheduler=f"tcp://{tls_port}", worker_timeout=60)),
    ):
        pass
    plain = client.scheduler.address.removeprefix("tcp://")
    own = {"tls_ca": certificate[0], "tls_cert": certificate[0], "tls_key": certificate[1]}
    with (
        pytest.raises(ClusterError, match=rf"tls://{plain}: that port speaks no TLS; say tcp://{plain}$"),
        remote.remote_client(ClusterSettings(scheduler=f"tls://{plain}", worker_timeout=60, **own)),
    ):
        pass
    assert time.monotonic() - begun < 30


def test_a_scheduler_that_comes_later_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []

    def connected(address: str, security: object, timeout: float) -> None:
        tries.append(timeout)
        raise OSError("refused")

    monkeypatch.setattr(remote, "_connected", connected)
    with (
        pytest.raises(ClusterError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9 \(refused\); check the address"),
        remote.remote_client(ClusterSettings(scheduler="tcp://127.0.0.1:9", worker_timeout=60)),
    ):
        pass
    assert sum(tries) == 60


def test_a_process_too_busy_to_start_an_event_loop_tries_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []
    start = Client.start

    def late_at_first(self: Client, **options: object) -> None:
        tries.append(self)
        assert len(tries) > 1
        start(self, **options)

    monkeypatch.setattr(Client, "start", late_at_first)
    with remote.remote_client(ClusterSettings(scheduler=client.scheduler.address)) as own:
        assert own.submit(int, 5).result() == 5
    assert len(tries) == 2


@pytest.mark.parametrize(
    "error",
    [
        ValueError("IOStream is not idle"),
        AssertionError("a word that is none of a scheduler"),
        OSError("refused"),
        TypeError("no number of frames"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_client_that_could_not_be_made_leaves_nothing_to_a_garbage_collector(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It would close the client at any moment: also where its thread holds the lock that closing waits for."""
    tried: list[Client] = []

    async def in_vain(self: Client, timeout: object = None) -> None:
        tried.append(self)
        raise error

    monkeypatch.setattr(Client, "_ensure_connected", in_vain)
    before = set(threading.enumerate())
    with (
        pytest.raises(ClusterError),
        remote.remote_client(ClusterSettings(scheduler=client.scheduler.address, worker_timeout=5)),
    ):
        pass
    assert [each.status for each in tried] == ["closed"] * len(tried)
    assert {each.rpc.status.name for each in tried} == {"closed"}, "its connections too"
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name == "IO loop"] == []


def test_a_client_that_does_not_close_well_either_is_told_as_it_failed_and_left_alone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Client] = []

    async def in_vain(self: Client, timeout: object = None) -> None:
        tried.append(self)
        raise ValueError("IOStream is not idle")

    def refuses(self: Client, timeout: object = None) -> None:
        raise RuntimeError("closing in vain")

    monkeypatch.setattr(Client, "_ensure_connected", in_vain)
    monkeypatch.setattr(remote._ImpatientClient, "close", refuses)
    with pytest.raises(ClusterError, match="IOStream is not idle"):
        remote.remote_client(ClusterSettings(scheduler=client.scheduler.address, worker_timeout=5)).__enter__()
    assert [each.status for each in tried] == ["closed"]


def test_versions_are_compared_by_dfm_and_not_told_by_dask_as_well(
    client: Client, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    class Warning_(Client):
        def __init__(self, *arguments: object, **options: object) -> None:
            warnings.warn(VersionMismatchWarning("Mismatched versions found: pandas None"), stacklevel=1)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(remote, "Client", Warning_)
    with remote.remote_client(ClusterSettings(scheduler=client.scheduler.address)) as own:
        assert own.submit(int, 5).result() == 5
    assert [found for found in recwarn if issubclass(found.category, VersionMismatchWarning)] == []


def test_questions_about_runs_wait_less_than_ten_seconds() -> None:
    assert runs._PATIENCE + remote._LISTENING <= 10
