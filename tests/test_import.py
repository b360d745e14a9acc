"""``import workbench`` is light, and what it promises is there."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import workbench

HEAVY = ("torch", "transformers", "pandas", "numpy", "matplotlib", "plotly", "ipywidgets", "decord", "av", "captum")


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in ``sys.modules`` after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_import_workbench_loads_nothing_heavy():
    assert loaded_after("import workbench") & set(HEAVY) == set()


def test_import_data_tables_loads_no_torch():
    loaded = loaded_after("import workbench; workbench.ClipTable")
    assert "pandas" in loaded, "the probe sees what is loaded"
    assert loaded & {"torch", "transformers", "captum"} == set()


@pytest.mark.parametrize("name", sorted(workbench._PUBLIC))
def test_public_name_resolves(name: str):
    value = getattr(workbench, name)
    assert callable(value)
    assert getattr(workbench, name) is value
    assert name in dir(workbench)
    assert (value.__doc__ or "").strip(), f"workbench.{name} has no docstring"


@pytest.mark.parametrize("name", sorted(workbench._PUBLIC))
def test_public_name_is_defined_in_the_room_that_the_table_says(name: str):
    module = importlib.import_module(f"workbench.{workbench._PUBLIC[name]}")
    room = ".".join(module.__name__.split(".")[:2])
    assert getattr(module, name).__module__.startswith(f"{room}.")


def test_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'finetune'; it offers \[.*'fine_tune'"):
        _ = workbench.finetune


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(workbench.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {(n.names[0].name, n.module) for n in block.body if isinstance(n, ast.ImportFrom)}
    assert seen == {(name, f"workbench.{module}") for name, module in workbench._PUBLIC.items()}
