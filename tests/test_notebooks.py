"""The rules a notebook keeps, read from its source. That it runs is nbmake's part: `make notebooks`."""

import ast
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

REPO = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
MAY_SKIP_CELLS: dict[str, str] = {}  # notebook -> why some of its cells carry `skip-execution`
NETWORK = re.compile(
    r"https?://|\brequests\b|\burllib\b|\bhttpx\b|snapshot_download|hf_hub_download|load_dataset\(|[!%]\s*(pip|conda|wget|curl)\b"
)


def code_lines(source: str) -> int:
    """Lines that are neither blank nor only a comment."""
    return sum(1 for line in source.splitlines() if line.strip() and not line.strip().startswith("#"))


def asserts(source: str) -> list[ast.Assert]:
    """The asserts that can fail: not ``assert True``, not ``x is not None``."""
    plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    found = [node for node in ast.walk(ast.parse(plain)) if isinstance(node, ast.Assert)]
    return [a for a in found if not isinstance(a.test, ast.Constant) and "is not None" not in ast.unparse(a.test)]


def stored_state(book: nbformat.NotebookNode) -> list[str]:
    """What a run leaves behind and the repository must not hold."""
    left = ["metadata.widgets"] if "widgets" in book.metadata else []
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            left.append(f"cell {number}: outputs or an execution count")
        left += [f"cell {number}: attachment" for _ in cell.get("attachments", {})]
    return left


def size_problems(book: nbformat.NotebookNode, sources: list[str]) -> list[str]:
    """At most 40 cells, 150 code lines, 15 to a cell and 6 to the median one; a definition of at most ten lines."""
    sizes = [code_lines(source) for source in sources]
    problems = [f"a code cell of {size} lines (at most 15)" for size in sizes if size > 15]
    if len(book.cells) > 40:
        problems.append(f"{len(book.cells)} cells (at most 40)")
    if sum(sizes) > 150:
        problems.append(f"{sum(sizes)} code lines (at most 150)")
    if sizes and median(sizes) > 6:
        problems.append(f"a median code cell of {median(sizes)} lines (at most 6)")
    for source in sources:
        plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(plain)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 10:
                    problems.append(f"{node.name} has {length} lines (at most 10); move it to workbench/")
    return problems


def check_problems(book: nbformat.NotebookNode) -> list[str]:
    """``## Checks`` comes last but for closing text, and asserts at least three things."""
    heads = [
        n
        for n, cell in enumerate(book.cells)
        if cell.cell_type == "markdown" and re.match(r"##\s+Checks\b", cell.source)
    ]
    if len(heads) != 1:
        return [f"{len(heads)} sections called '## Checks' (exactly 1)"]
    after = book.cells[heads[0] + 1 :]
    count = sum(len(asserts(cell.source)) for cell in after if cell.cell_type == "code")
    later = [c for c in after if c.cell_type == "markdown" and re.match(r"#{1,2}\s", c.source)]
    problems = [f"{count} asserts in Checks (at least 3)"] if count < 3 else []
    if later and any(c.cell_type == "code" for c in after[after.index(later[0]) :]):
        problems.append("code after the Checks section; it must come last")
    return problems


def violations(book: nbformat.NotebookNode, name: str = "") -> list[str]:
    """Every rule that the notebook breaks, one line each."""
    problems = stored_state(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    run = [c for c in code if "skip-execution" not in c.metadata.get("tags", []) and code_lines(c.source)]
    if not run:
        problems.append("executes no code cell")
    if len(run) < len([c for c in code if code_lines(c.source)]) and name not in MAY_SKIP_CELLS:
        problems.append("skips a cell and is not on the list MAY_SKIP_CELLS")
    forgiving = [c for c in code if "raises-exception" in c.metadata.get("tags", [])]
    if forgiving or book.metadata.get("execution", {}).get("allow_errors"):
        problems.append("lets a cell fail (tag raises-exception or allow_errors)")
    if sum("parameters" in c.metadata.get("tags", []) for c in code) != 1:
        problems.append("has no single cell tagged `parameters`")
    if not book.cells or book.cells[0].cell_type != "markdown" or not book.cells[0].source.startswith("# "):
        problems.append("does not open with a text cell under a `# ` title")
    problems += [f"uses the network: {m.group()}" for c in code if (m := NETWORK.search(c.source))]
    return problems + size_problems(book, [c.source for c in code]) + check_problems(book)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path: Path):
    assert violations(nbformat.read(path, as_version=4), path.stem) == []


def test_there_is_a_notebook_and_every_one_is_seen():
    not_ours = {".venv", "build", "reports", "runs", ".ipynb_checkpoints"}
    everywhere = {path for path in REPO.rglob("*.ipynb") if not not_ours & set(path.relative_to(REPO).parts)}
    assert NOTEBOOKS
    assert everywhere == set(NOTEBOOKS)


def good() -> nbformat.NotebookNode:
    v4 = nbformat.v4
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# What is shown\nIn one minute."),
            v4.new_code_cell("import workbench as wb"),
            v4.new_code_cell("epochs = 2", metadata={"tags": ["parameters"]}),
            v4.new_code_cell("x = epochs + 1\nx"),
            v4.new_markdown_cell("## Checks"),
            v4.new_code_cell("assert x == 3\nassert epochs < x\nassert x > 0"),
            v4.new_markdown_cell("## What we did not show"),
        ]
    )


def test_violations_passes_a_good_notebook():
    assert violations(good()) == []


def _plant(book: nbformat.NotebookNode, case: str) -> None:
    v4, cells = nbformat.v4, book.cells
    match case:
        case "output":
            cells[1].outputs = [v4.new_output("stream", text="x")]
        case "count":
            cells[1].execution_count = 3
        case "widgets":
            book.metadata["widgets"] = {}
        case "cells":
            cells[1:1] = [v4.new_markdown_cell("x")] * 34
        case "long cell":
            cells[3].source = "\n".join(f"y{i} = x" for i in range(16))
        case "long book":
            cells[3:3] = [v4.new_code_cell("x = 1\n" * 5)] * 30
        case "long function":
            cells[3].source = "def f():\n" + "    x = 1\n" * 10
        case "median":
            cells[3:3] = [v4.new_code_cell("x = 1\n" * 8)] * 5
        case "no parameters":
            cells[2].metadata = {}
        case "no title":
            cells[0].source = "Welcome"
        case "no checks":
            cells[4].source = "## Summary"
        case "two asserts":
            cells[5].source = "assert x == 3\nassert epochs < x\nassert True\nassert x is not None"
        case "code after checks":
            cells.append(v4.new_code_cell("x"))
        case "network":
            cells[3].source = "!pip install x"
        case "skips a cell":
            cells[3].metadata = {"tags": ["skip-execution"]}
        case "forgiving":
            cells[3].metadata = {"tags": ["raises-exception"]}


PLANTED = {
    "output": "cell 1: outputs", "count": "cell 1: outputs", "widgets": "metadata.widgets", "cells": "41 cells",
    "long cell": "a code cell of 16 lines", "long book": "code lines (at most 150)", "long function": "f has 11 lines",
    "median": "a median code cell", "no parameters": "tagged `parameters`", "no title": "does not open with",
    "no checks": "0 sections called", "two asserts": "2 asserts", "code after checks": "it must come last",
    "network": "uses the network", "skips a cell": "MAY_SKIP_CELLS", "forgiving": "lets a cell fail",
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_violations_flags(case: str):
    """The checker sees each fault that it is there for, and only that one."""
    book = good()
    _plant(book, case)
    problems = violations(book)
    assert len(problems) == 1
    assert PLANTED[case] in problems[0]


def test_violations_flags_a_notebook_that_executes_nothing():
    book = good()
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.metadata.setdefault("tags", []).append("skip-execution")
    assert "executes no code cell" in violations(book)
