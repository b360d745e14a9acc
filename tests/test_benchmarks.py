import argparse
import importlib
import importlib.util
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"part": "playgroun"}, "use some of playground, gestures"),
        ({"egogestar": Path("nowhere")}, "no folder nowhere"),
        ({"metrics": "road"}, "deletion_blur must be among them"),
    ],
)
def test_deletion_finds_out_what_is_missing_before_it_trains(
    changed: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    checked_parts = importlib.import_module("deletion").checked_parts
    asked = {"part": "playground,gestures", "egogestar": tmp_path, "metrics": "deletion_blur,road"}
    assert checked_parts(argparse.Namespace(**asked)) == ["playground", "gestures"]
    with pytest.raises(SystemExit, match=message):
        checked_parts(argparse.Namespace(**(asked | changed)))
