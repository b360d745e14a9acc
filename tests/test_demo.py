import re
from pathlib import Path

import pytest

from workbench.demo import demo


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_writes_a_report_that_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = demo(report=tmp_path / "out" / "report.html", runs_dir=tmp_path / "runs", clips=60, epochs=1, device="cpu")
    page = path.read_text(encoding="utf-8")
    for name in ("scratch", "linear", "full", "rollout", "ntegrated gradients", "action", "safety", "quality"):
        assert name in page, name
    outside = re.findall(r"""<(?:script|img|link|video|source|iframe)[^>]+(?:src|href)=["'](?!data:)([^"']+)""", page)
    assert outside == []
    assert page.count("data:video/mp4") >= 8
    assert path.stat().st_size < 12 * 2**20
    assert "Done in" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 3
