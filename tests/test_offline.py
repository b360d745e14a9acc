"""The suite's own fence: nothing leaves this machine, from no process."""

import socket
import subprocess
import sys
import threading

import pytest

REACH_OUT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"  # TEST-NET-1, never routed


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "2001:db8::1"])
def test_connect_refuses_another_machine(host: str):
    with pytest.raises(RuntimeError, match="the tests are offline"):
        socket.create_connection((host, 80), timeout=1)


def test_sendto_refuses_another_machine():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(RuntimeError, match="the tests are offline"),
    ):
        sock.sendto(b"x", ("192.0.2.1", 9))


def test_child_process_is_fenced_too():
    done = subprocess.run([sys.executable, "-c", REACH_OUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "NetworkBlockedError: the tests are offline" in done.stderr


def test_loopback_stays_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"))
        thread.start()
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client:
            assert client.recv(5) == b"hello"
        thread.join()
