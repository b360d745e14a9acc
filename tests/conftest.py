"""Ground rules of the suite: offline, few threads, nothing written outside temporary folders."""

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
_OFFLINE = str(REPO / "tests" / "offline")

# Set before anything imports torch or numpy, and in the environment, so that kernels and spawned processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WORKBENCH_FAST", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PLATFORM_DIRS": "1", "MPLBACKEND": "agg"}
_python_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if _OFFLINE not in _python_path:
    os.environ["PYTHONPATH"] = os.pathsep.join([_OFFLINE, *filter(None, _python_path)])
sys.path.insert(0, _OFFLINE)
importlib.import_module("block_network").install()
sys.path.remove(_OFFLINE)

_scratch: Path | None = None


def pytest_configure(config: pytest.Config) -> None:
    """One scratch folder for the whole run; xdist workers and notebook kernels inherit it from the controller."""
    global _scratch
    if hasattr(config, "workerinput"):
        return
    _scratch = Path(tempfile.mkdtemp(prefix="workbench-tests-"))
    for variable, folder in (
        ("WORKBENCH_CACHE", "cache"),
        ("IPYTHONDIR", "ipython"),
        ("JUPYTER_RUNTIME_DIR", "jupyter"),
        ("JUPYTER_CONFIG_DIR", "jupyter-config"),
        ("MPLCONFIGDIR", "matplotlib"),
        ("HF_HOME", "huggingface"),
    ):
        (_scratch / folder).mkdir()
        os.environ[variable] = str(_scratch / folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _scratch is not None:
        shutil.rmtree(_scratch, ignore_errors=True)


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome to run headless: ``WORKBENCH_CHROMIUM``, else the first on PATH."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, saying why."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    browser = [item for item in items if item.get_closest_marker("browser")]
    if browser and find_chromium() is None:
        for item in browser:
            item.add_marker(pytest.mark.skip(reason="no Chromium on PATH; name one in WORKBENCH_CHROMIUM"))


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPO


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser for ``playwright.chromium.launch(executable_path=...)``."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on PATH; name one in WORKBENCH_CHROMIUM")
    return path


@pytest.fixture(scope="session")
def clips_root() -> Path:
    """Real clips (``egogestar``, ``fight_surv``, ``trouble``); they lie beside the repository, not in it."""
    folder = REPO.parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("no ../shared/clips beside the repository")
    return folder


# Fixtures that several rooms share, such as one built playground per run, belong here. WORKBENCH_CACHE is one folder
# for all workers, so what a build leaves there atomically is built once.
