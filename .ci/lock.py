"""Write requirements.lock: every package that pyproject.toml asks for, directly or not, at the installed version.

Run it as ``make lock`` after installing or upgrading something in ``.venv``. It reads package metadata only; it never
downloads. Packages that happen to be installed but that nothing asks for are left out.
"""

import os
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# Written by `make lock` on Python {python}; do not edit by hand.
# The exact set that the tests run on: pyproject.toml's dependencies with the extra `dev`, and all that they need.
# Install torch first (its build, CPU or CUDA, is your platform's), then the rest; `make setup` does both:
#   pip install {torch} && pip install -r requirements.lock
"""
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")  # the first of each, so also a distribution's older 3.11.2
PLATFORM_ONLY = {"appnope": "0.1.4"}  # needed on macOS only (by IPython's kernel), so never installed where this runs
_PLATFORM = re.compile(r"\b(sys_platform|platform_system|platform_machine|os_name)\b")


def asked_for(pyproject: dict) -> list[Requirement]:
    """The requirements that pyproject.toml names: build, run and the extra ``dev``; other extras are the user's."""
    project = pyproject["project"]
    extra = project["optional-dependencies"]["dev"]
    named = [*pyproject["build-system"]["requires"], *project["dependencies"], *extra]
    return [Requirement(line) for line in named]


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether the requirement's marker holds on this machine, for any of the wanted extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def closure(roots: list[Requirement]) -> dict[str, set[str]]:
    """Canonical name of each needed package -> the platform markers of the requirements that name it ("" for none)."""
    markers: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    queue = list(roots)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        marker = str(requirement.marker or "")
        platform = marker if _PLATFORM.search(marker) and "extra" not in marker else ""
        markers.setdefault(name, set()).add(platform)
        key = (name, ",".join(sorted(requirement.extras)))
        if key in seen:
            continue
        seen.add(key)
        try:
            children = distribution(name).requires or []
        except PackageNotFoundError:
            raise SystemExit(
                f"{requirement} is not installed; run `.venv/bin/pip install '{requirement}'` first"
            ) from None
        queue += [child for line in children if applies(child := Requirement(line), set(requirement.extras))]
    return markers


def lock_lines(pyproject: dict) -> list[str]:
    """One ``name==version[; marker]`` per package, sorted by name."""
    roots = asked_for(pyproject)
    away = [str(r) for r in roots if not applies(r, set())]
    if away:
        raise SystemExit(f"write the lock on Linux x86-64: here it would lose {', '.join(away)}")
    lines = {name: f'{name}=={version}; sys_platform == "darwin"' for name, version in PLATFORM_ONLY.items()}
    for name, markers in closure(roots).items():
        found = distribution(name)
        version = Version(found.version).public  # without a build tag such as +cpu
        wanted = found.metadata.get_all("Requires-Python", [""])[0]
        if not all(SpecifierSet(wanted).contains(python) for python in PYTHONS):
            raise SystemExit(f"{name} {version} needs Python {wanted}, so not all of {PYTHONS}; install an older one")
        marker = "" if "" in markers else " or ".join(f"({m})" for m in sorted(markers))
        lines[name] = f"{name}=={version}" + (f"; {marker}" if marker else "")
    return [lines[name] for name in sorted(lines)]


def main() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = lock_lines(pyproject)
    torch = next(line for line in lines if line.startswith("torch=="))
    text = HEADER.format(python=".".join(map(str, sys.version_info[:2])), torch=torch) + "\n".join(lines) + "\n"
    target = ROOT / "requirements.lock"
    part = target.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)
    print(f"{target.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
