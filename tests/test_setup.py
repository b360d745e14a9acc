"""pyproject.toml, requirements.lock, environment.yml and the Makefile say the same thing."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
# What the lock holds; the other extras are for users who want them.
NAMED = [
    Requirement(line)
    for lines in (
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        PROJECT["project"]["optional-dependencies"]["dev"],
    )
    for line in lines
]
MACHINES = {  # the values that markers are evaluated with
    "linux-x86_64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-aarch64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
}


def parse_lock(text: str) -> dict[str, Requirement]:
    """Canonical name -> requirement; raises where a line is not ``name==version[; marker]`` or a name comes twice."""
    locked: dict[str, Requirement] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if not re.fullmatch(r"==[0-9][^+*,]*", str(requirement.specifier)) or requirement.url or requirement.extras:
            raise ValueError(f"not a plain pin: {line}")
        if name in locked:
            raise ValueError(f"pinned twice: {name}")
        locked[name] = requirement
    return locked


LOCK = parse_lock((REPO / "requirements.lock").read_text(encoding="utf-8"))


def pin(name: str) -> Version:
    return Version(next(iter(LOCK[canonicalize_name(name)].specifier)).version)


def holds(requirement: Requirement, machine: str) -> bool:
    """Whether the requirement is wanted on that machine."""
    environment = {**MACHINES[machine], "extra": ""}  # over the values of the machine that this runs on
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize(
    "line", ["torch>=2.6", "torch==2.13.0+cpu", "a @ file:///x.whl", "a==1.*", "--extra-index-url x"]
)
def test_parse_lock_refuses_what_is_not_a_pin(line: str):
    with pytest.raises(ValueError, match=r"not a plain pin|Expected|Invalid|parse"):
        parse_lock(line)


def test_lock_is_sorted_and_has_no_accelerator_packages():
    assert list(LOCK) == sorted(LOCK)
    assert [n for n in LOCK if n.startswith(("nvidia", "cuda", "triton", "pytorch-triton"))] == []


@pytest.mark.parametrize("requirement", NAMED, ids=lambda r: r.name)
def test_lock_satisfies_pyproject(requirement: Requirement):
    assert canonicalize_name(requirement.name) in LOCK, f"{requirement} is not in the lock; install it and `make lock`"
    assert requirement.specifier.contains(pin(requirement.name), prereleases=True)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("requirement", NAMED, ids=lambda r: r.name)
def test_lock_and_pyproject_want_a_package_on_the_same_machines(requirement: Requirement, machine: str):
    assert holds(LOCK[canonicalize_name(requirement.name)], machine) == holds(requirement, machine)


def test_decord_is_wanted_only_where_it_has_a_wheel():
    assert {machine for machine in MACHINES if holds(LOCK["decord"], machine)} == {"linux-x86_64", "windows"}


def test_lock_is_closed_and_is_what_runs_here():
    """Every locked package that applies here is installed at its pin, and everything it needs is locked too."""
    if Path(sys.prefix) != REPO / ".venv":
        pytest.skip("not running in the repository's .venv, so other versions are allowed")
    installed = {str(canonicalize_name(d.metadata["Name"])): d for d in distributions()}
    for name, requirement in LOCK.items():
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        assert name in installed, f"{name} is locked but not installed; run `make setup`"
        version = Version(installed[name].version)
        assert Version(version.public) == pin(name), f"{name} {version} is installed; run `make setup` or `make lock`"
        pythons = SpecifierSet(installed[name].metadata.get_all("Requires-Python", [""])[0])
        assert pythons.contains("3.11.0"), f"{name} {version} needs Python {pythons}; lock an older one"
        for line in installed[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                if needed.name.startswith(("nvidia", "triton", "cuda")):  # come with a CUDA build of torch
                    continue
                assert canonicalize_name(needed.name) in LOCK, f"{name} needs {needed}, which is not locked"
                assert needed.specifier.contains(pin(needed.name), prereleases=True), f"{name} needs {needed}"


def test_conda_environment_installs_the_lock():
    """A conda user gets Python by conda, then torch at the lock's version and the lock itself, and the package."""
    environment = yaml.safe_load((REPO / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (by_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert {re.split(r"[=<> ]", entry)[0] for entry in conda} == {"python", "pip"}, "all else comes from the lock"
    (python,) = (entry.split("=")[1] for entry in conda if entry.startswith("python="))
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python)
    assert by_pip == [f"torch=={pin('torch')}", "-r requirements.lock", "-e ."]


def test_makefile_installs_torch_at_the_locks_version_first():
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", "setup"],
        cwd=REPO, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    installs = [line.split("install", 1)[1] for line in dry.splitlines() if " -m pip install" in line]
    assert len(installs) == 3
    assert installs[0].endswith(f" torch=={pin('torch')}")
    assert installs[1].endswith("-r requirements.lock")
    assert installs[2].endswith("-e .")
    assert "--no-deps" in installs[2]


def test_makefile_says_so_when_python_is_too_old(tmp_path: Path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 0\n')
    old.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((REPO / name).read_bytes())
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "Python 3.9.1" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_console_script_names_a_function():
    module, _, function = PROJECT["project"]["scripts"]["workbench"].partition(":")
    path = REPO / module.replace(".", "/") / "__init__.py"
    names = {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}
    assert function in names


def test_wheel_holds_every_module_and_the_checkpoint(tmp_path: Path):
    """Built from a copy, offline: what a user installs is what lies in ``workbench/``."""
    source = tmp_path / "source"
    copytree(REPO / "workbench", source / "workbench", ignore=ignore_patterns("__pycache__", ".*", "*.part"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((REPO / name).read_bytes())
    want = {path.relative_to(source).as_posix() for path in (source / "workbench").rglob("*") if path.is_file()}
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "-w", tmp_path, source], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    have = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("workbench/")}
    assert have == want
    assert "workbench/py.typed" in have


def test_licence_is_the_whole_apache_text():
    text = " ".join((REPO / "LICENSE").read_text(encoding="utf-8").split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in text
    assert all(f" {n}. " in text for n in range(1, 10))
