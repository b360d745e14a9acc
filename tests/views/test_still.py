"""Figures as inline SVG: bands, colours of heat maps, and a clear word where a trace cannot be drawn."""

import math
import re

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.views.still import still


def test_still_fills_a_band_in_its_colour_without_a_legend_entry() -> None:
    fig = go.Figure()
    outline = {"x": [0, 1, 2, 2, 1, 0], "y": [0, 1, None, 3, 2, 1]}
    fig.add_scatter(
        **outline, fill="toself", mode="lines", line_width=0, fillcolor="rgba(213,94,0,0.25)", name="hidden"
    )
    fig.add_scatter(x=[0, 2], y=[1, 2], mode="lines", name="seen", showlegend=True, marker_color="#0072B2")
    drawn = still(fig)
    assert re.search(r"fill: #d55e00; (fill-)?opacity: 0\.25", drawn), drawn[:2000]
    assert "seen" in drawn and "hidden" not in drawn and "_band" not in drawn


def test_still_refuses_a_fill_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="fill='toself', not 'tozeroy'"):
        still(go.Figure(go.Scatter(x=[0, 1], y=[0, 1], fill="tozeroy", mode="lines")))
    with pytest.raises(ValueError, match="not 'bar'"):
        still(go.Figure(go.Bar(x=[0, 1], y=[0, 1])))


def inks(drawn: str) -> dict[str, str]:
    """Colour of each text by what it says."""
    found = {}
    for style, text in re.findall(r'<text[^>]*style="([^"]*)"[^>]*>([^<]*)</text>', drawn):
        colour = re.search(r"fill: ([#\w]+)", style)
        found[text] = colour.group(1) if colour else "default"
    return found


def test_still_writes_on_a_heat_map_in_ink_that_its_colours_carry() -> None:
    cells = {"z": [[-1.0, 0.0, 1.0, math.nan]], "text": [["low", "mid", "high", "none"]]}
    scale = [[0, "#67001f"], [0.5, "#f7f7f7"], [1, "#053061"]]
    ink = inks(still(go.Figure(go.Heatmap(**cells, colorscale=scale, zmin=-1, zmax=1))))
    assert ink["low"] == ink["high"] == "#ffffff" and ink["mid"] != "#ffffff"
    assert ink["none"] == "currentColor"
    counts = inks(still(go.Figure(go.Heatmap(z=[[0, 40, 80]], text=[["a", "b", "c"]], zmin=0, zmax=80))))
    assert counts["a"] != "#ffffff" and counts["c"] == "#ffffff"


def test_still_keeps_twenty_thousand_points_small_and_few_sharp() -> None:
    rng = np.random.default_rng(0)
    for kind in (go.Scatter, go.Scattergl):
        fig = go.Figure(kind(x=rng.random(20_000), y=rng.random(20_000), mode="markers", marker_color="#0072B2"))
        drawn = still(fig)
        assert "data:image/png" in drawn and len(drawn) < 600_000
    few = still(go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="markers", marker_color="#0072B2")))
    assert "data:image/png" not in few


def test_still_writes_large_numbers_at_their_ticks() -> None:
    drawn = still(go.Figure(go.Scatter(x=[0, 2_000_000], y=[0, 1], mode="markers", marker_color="#0072B2")))
    assert "1e6" not in drawn and ">1 M<" in drawn and ">2 M<" in drawn
