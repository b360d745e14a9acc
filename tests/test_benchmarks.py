import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "results.py"


def write_section(title: str, lines: list[str], path: Path) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_results", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_section(title, lines, path)


def test_write_section_replaces_its_own_section_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for title, line in (("One", "first"), ("Two", "second"), ("One", r"new \1 first")):
        write_section(title, [line], path)
    text = path.read_text()
    assert text.startswith("# Measured results")
    assert text.count("## One") == 1 and text.index("## One") < text.index("## Two")
    assert r"new \1 first" in text and "second" in text and "\nfirst" not in text
