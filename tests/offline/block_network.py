"""Lets a process talk to itself and its neighbours on this machine, and to nothing else."""

import ipaddress
import socket
from typing import Any

_LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost"}


class NetworkBlockedError(RuntimeError):
    """Something in an offline test reached for the network.

    Not an OSError on purpose: a library that falls back quietly when the network fails must not hide the attempt.
    """


def is_local(host: object) -> bool:
    """Whether ``host`` (a name or an address) is this machine; needs no lookup."""
    if host is None:
        return True
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name.lower() in _LOCAL_NAMES or name == socket.gethostname():
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _check(host: object) -> None:
    if not is_local(host):
        raise NetworkBlockedError(f"the tests are offline, and this reached for {host!r}")


def install() -> None:
    """Replace ``socket``'s ways out; a second call does nothing."""
    if getattr(socket, "_workbench_offline", False):
        return
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    getaddrinfo = socket.getaddrinfo

    def address_host(sock: socket.socket, address: Any) -> object:
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    def local_connect(self: socket.socket, address: Any) -> None:
        _check(address_host(self, address))
        return connect(self, address)

    def local_connect_ex(self: socket.socket, address: Any) -> int:
        _check(address_host(self, address))
        return connect_ex(self, address)

    def local_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        _check(address_host(self, rest[-1]))
        return sendto(self, data, *rest)

    def local_getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        try:
            ipaddress.ip_address(host)  # an address needs no lookup; connect checks it
        except ValueError:
            _check(host)
        return getaddrinfo(host, *rest, **options)

    socket.socket.connect = local_connect  # type: ignore[method-assign, assignment]
    socket.socket.connect_ex = local_connect_ex  # type: ignore[method-assign, assignment]
    socket.socket.sendto = local_sendto  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = local_getaddrinfo
    socket._workbench_offline = True  # type: ignore[attr-defined]
