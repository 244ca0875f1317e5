"""Several hosts on one machine: network namespaces behind a bridge, whose links can be cut. Needs root and `ip`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class NotAllowed(Exception):
    """Why there are no network namespaces here."""


def ip(*arguments: str, check: bool = True) -> None:
    """Run `ip ARGUMENTS`."""
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


@dataclass(frozen=True)
class Network:
    """A bridge with hosts behind it: `hosts[name]` is the address of namespace `prefix`-name."""

    prefix: str
    gateway: str
    """Address of this machine on the bridge."""
    hosts: dict[str, str]

    def inside(self, host: str) -> list[str]:
        """What to put before a command that is to run on a host."""
        return ["ip", "netns", "exec", f"{self.prefix}-{host}"]

    def cut(self, host: str) -> None:
        """Take the host's link down: packets vanish."""
        ip("link", "set", self.link(host), "down")

    def mend(self, host: str) -> None:
        """Take it up again."""
        ip("link", "set", self.link(host), "up")

    def link(self, host: str) -> str:
        """The name of the host's link on the bridge."""
        return f"{self.prefix}{host[0]}{host[-1]}"


@contextlib.contextmanager
def network_of(names: Sequence[str]) -> Iterator[Network]:
    """Hosts of these names (first and last letter together tell them apart), for the block. Raises NotAllowed."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        raise NotAllowed("needs root and the command ip")
    prefix, third = f"d{uuid.uuid4().hex[:5]}", 100 + os.getpid() % 100
    hosts = {name: f"10.213.{third}.{number}" for number, name in enumerate(names, 2)}
    found = Network(prefix, f"10.213.{third}.1", hosts)
    try:
        try:
            ip("link", "add", f"{prefix}br", "type", "bridge")
            ip("addr", "add", f"{found.gateway}/24", "dev", f"{prefix}br")
            ip("link", "set", f"{prefix}br", "up")
            for name, address in hosts.items():
                _add(found, name, address)
        except subprocess.CalledProcessError as error:
            raise NotAllowed(f"network namespaces are not allowed here: {error.stderr!r}") from error
        yield found
    finally:
        for name in hosts:
            ip("netns", "del", f"{prefix}-{name}", check=False)
        ip("link", "del", f"{prefix}br", check=False)


def _add(network: Network, name: str, address: str) -> None:
    prefix, outside = network.prefix, network.link(name)
    inside = f"{prefix}i{name[0]}{name[-1]}"
    ip("netns", "add", f"{prefix}-{name}")
    ip("link", "add", outside, "type", "veth", "peer", "name", inside)
    ip("link", "set", outside, "master", f"{prefix}br", "up")
    ip("link", "set", inside, "netns", f"{prefix}-{name}")
    for words in (
        ["addr", "add", f"{address}/24", "dev", inside],
        ["link", "set", inside, "up"],
        ["link", "set", "lo", "up"],
    ):
        subprocess.run([*network.inside(name), "ip", *words], check=True, capture_output=True)
