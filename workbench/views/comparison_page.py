"""A comparison as a page to mail: what the dashboard shows, without a kernel, a script library or a network."""

from pathlib import Path
from typing import Any

from workbench.views.comparison_view import ComparisonView
from workbench.views.page import page, section, write_page


def write_comparison_page(comparison: Any, path: str | Path) -> Path:
    """A comparison of runs as one HTML file that needs no network; returns its path."""
    view = ComparisonView(comparison, histories=comparison.sources)
    names = ", ".join(view.chosen)
    sections = [("Comparison", section("Comparison", view.freeze()))]
    text = page("Which setup is better?", f"{len(view.chosen)} run(s): {names}", sections, "", interactive=False)
    return write_page(Path(path), text)
