"""``RESULTS.md``: one section per benchmark, replaced when it is run again."""

import re
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
_HEAD = "# Measured results\n\nWritten by `make bench`; each section names its script, versions and date.\n"


def write_section(title: str, lines: Sequence[str], path: Path = RESULTS) -> None:
    """Put ``lines`` under ``## title``, in place of what stood there."""
    text = (path.read_text(encoding="utf-8") if path.exists() else "") or _HEAD
    section = f"## {title}\n\n" + "\n".join(lines).rstrip() + "\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    text = pattern.sub(lambda _: section + "\n", text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
