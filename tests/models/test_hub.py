"""On the way to a hub: one question where nothing is cached, none where it is, and one line if it fails."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as constants
import pytest

from workbench.models.backbones import load_backbone
from workbench.models.hub import locate

COMMIT = "0" * 40


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template[len(constants.ENDPOINT) :])
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As on a machine that may use the network, with an empty cache and a hub where nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    huggingface_hub.close_session()
    return tmp_path / "hub"


@pytest.fixture
def hub(online: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that has nothing; what it was asked for."""
    asked: list[str] = []

    class Empty(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Empty)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def cached_config(cache: Path, name: str) -> None:
    """Leave ``config.json`` where a download would."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


def test_load_backbone_without_network_says_so_at_once_and_once(
    online: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("time.sleep", lambda _s: pytest.fail("it waits to try again"))
    with pytest.raises(OSError, match=r"'owner/name' as a hub id .*no connection to 127.0.0.1:9") as error:
        load_backbone("owner/name")
    assert len(str(error.value).splitlines()) == 1
    assert "Retrying" not in caplog.text and not caplog.records


def test_locate_asks_a_hub_once_and_leaves_its_no_to_the_library(hub: list[str]) -> None:
    assert locate("owner/name") == "owner/name"
    assert hub == ["/owner/name/resolve/main/config.json"]
    with pytest.raises(OSError, match="cannot load backbone 'owner/name' as a hub id"):
        load_backbone("owner/name")


def test_locate_does_not_ask_for_what_is_cached(online: Path, hub: list[str]) -> None:
    cached_config(online, "owner/name")
    assert locate("owner/name") == "owner/name"
    assert hub == []


def test_locate_does_not_ask_in_offline_mode(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/name") == "owner/name"
    assert hub == []
