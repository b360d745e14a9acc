"""A real browser, and servers for it to visit: JupyterLab on a folder of notebooks, and Voila."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

REPO = Path(__file__).resolve().parents[2]
SHOTS = REPO / "reports" / "screenshots"
TIMEOUT = 120_000
"""Milliseconds: a kernel that imports torch, on a machine that runs other tests beside."""


# pytest-playwright keeps one Playwright, and so a running event loop, to the end of the session; whatever then starts a
# loop of its own in the same process fails. Here both end with the module.
@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def browser(playwright: Any, browser_type_launch_args: dict[str, Any]) -> Iterator[Any]:
    opened = playwright.chromium.launch(**browser_type_launch_args)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def browser_type_launch_args(chromium: str) -> dict[str, Any]:
    """Of pytest-playwright: the system's Chromium."""
    return {"executable_path": chromium, "args": ["--no-sandbox", "--disable-gpu"]}


@pytest.fixture(scope="session")
def browser_context_args() -> dict[str, Any]:
    """Of pytest-playwright."""
    return {"viewport": {"width": 1280, "height": 1000}}


class Visit:
    """A page and what went wrong in it."""

    def __init__(self, page: Any) -> None:
        self.page, self.trouble = page, list[str]()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda m: self._note(f"{m.text} ({m.location})") if m.type == "error" else None)
        page.on("pageerror", lambda error: self._note(str(error)))

    def _note(self, text: str) -> None:
        # What a server's own page asks of the network or of itself is not ours: a style sheet of icons, an icon.
        if not re.search(r"ERR_NAME_NOT_RESOLVED|ERR_INTERNET_DISCONNECTED|favicon\.ico|status of 404", text):
            self.trouble.append(text)

    def shot(self, name: str) -> None:
        """What is on screen, for a person to look at."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"))

    def serious(self) -> list[str]:
        """What axe-core finds wrong in our widgets and takes for serious or critical."""
        from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

        found = Axe().run(self.page, context=".wb-view").response["violations"]
        return [
            f"{rule['id']}: {node['html'][:200]}"
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]


@pytest.fixture
def visit(page: Any) -> Visit:
    return Visit(page)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serving(command: list[str], folder: Path, url: str) -> Iterator[str]:
    """Run a server until the fixture ends; its address once it answers."""
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    log = folder / "server.log"
    with open(log, "wb") as out:
        server = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}
        )
    try:
        until = time.monotonic() + TIMEOUT / 1000
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.HTTPError:  # it answers, and wants a token
                break
            except OSError:
                time.sleep(0.3)
        yield url
    finally:
        kernels = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(timeout=20)
        for left in kernels:  # a server that was asked to end does not always end these
            with contextlib.suppress(psutil.NoSuchProcess):
                left.terminate()


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where JupyterLab looks for notebooks."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def lab(lab_folder: Path) -> Iterator[str]:
    """The address of a JupyterLab without a token, which lets a test run its commands."""
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={lab_folder}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    yield from serving(command, lab_folder, f"http://127.0.0.1:{port}/lab")
