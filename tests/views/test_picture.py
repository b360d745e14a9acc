"""The clickable picture in a real browser: its script against a model that stands in for the kernel's."""

import base64
import json
import shutil

import numpy as np
import pytest

from workbench.views.picture import Picture, jpeg

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]
HARNESS = """
async ({ script, image, label }) => {
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const state = { image: bytes(image), label, rows: 4, columns: 8, picked: [0, 0], clickable: true, width_px: 320 };
  const heard = {};
  window.saved = [];
  window.model = {
    get: (name) => state[name], on: (event, call) => { heard[event] = call; },
    set: (name, value) => { state[name] = value; }, save_changes: () => window.saved.push([...state.picked]),
    tell: (name, value) => { state[name] = value; heard["change:" + name](); },
  };
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const widget = (await import(url)).default;
  widget.render({ model: window.model, el: document.body });
}
"""


def test_picture_sends_the_cell_that_was_clicked_or_reached_by_keys() -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    image = base64.b64encode(jpeg(np.zeros((160, 320, 3), np.uint8))).decode()
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 800, "height": 600})
        page.set_content('<body style="margin:0"></body>')
        script = Picture._esm if isinstance(Picture._esm, str) else str(Picture._esm)
        page.evaluate(HARNESS, {"script": script, "image": image, "label": "<b>cells</b>"})
        picture = page.locator("img")
        page.wait_for_function("() => document.querySelector('img').naturalWidth === 320")
        assert picture.get_attribute("alt") == "<b>cells</b>" and page.locator("b").count() == 0
        picture.click(position={"x": 7.5 * 40, "y": 2.5 * 40})  # the middle of row 2, column 7
        picture.press("ArrowRight")  # at the edge already
        picture.press("ArrowUp")
        assert json.loads(page.evaluate("() => JSON.stringify(window.saved)")) == [[2, 7], [2, 7], [1, 7]]
        page.evaluate("() => window.model.tell('clickable', false)")
        picture.click(position={"x": 20, "y": 20})
        assert page.evaluate("() => window.saved.length") == 3
        browser.close()
