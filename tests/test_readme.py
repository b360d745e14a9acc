"""What the README tells a newcomer to type is run, or at least understood, by the program."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import workbench
from workbench.cli import _parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_readme_uses_only_public_verbs() -> None:
    names = {
        node.attr
        for block in PYTHON
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "wb"
    }
    assert len(names) >= 8
    assert names <= set(workbench.__all__)


def test_readme_commands_parse() -> None:
    commands = [shlex.split(line, comments=True) for line in SHELL if line.startswith("workbench ")]
    assert len(commands) >= 5
    for command in commands:
        assert callable(_parser().parse_args(command[1:]).act)


def test_readme_make_targets_exist() -> None:
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in SHELL if line.startswith("make ")]
    assert targets == ["demo", "lab"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M)


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if not (Path(__file__).resolve().parents[1] / link).exists()]
    assert links and not missing


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_readme_notebook_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = PYTHON
    space: dict = {}
    exec(block.replace("epochs=6", "epochs=2"), space)  # the README's own code, with less to wait for
    assert list(space["runs"]) == ["scratch", "linear", "full"]
    assert space["maps"].values.shape == (8, 4, 8, 8)
