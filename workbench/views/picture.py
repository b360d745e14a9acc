"""A picture in cells that can be clicked: layers and heads, tokens of a frame."""

import base64
import io
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image

from workbench.views.style import escape

_SCRIPT = """
function render({ model, el }) {
  const img = document.createElement("img");
  img.draggable = false;
  let url = null;
  const show = () => {
    const old = url;
    url = URL.createObjectURL(new Blob([model.get("image")], { type: "image/jpeg" }));
    img.onload = () => { if (old) URL.revokeObjectURL(old); };
    img.src = url;
  };
  const dress = () => {
    img.alt = model.get("label");
    img.tabIndex = model.get("clickable") ? 0 : -1;
    img.style.cssText = "display:block;max-width:100%;height:auto;border-radius:6px;image-rendering:auto;width:"
      + model.get("width_px") + "px;cursor:" + (model.get("clickable") ? "pointer" : "default");
  };
  const pick = (row, column) => {
    const clip = (v, n) => Math.min(n - 1, Math.max(0, v));
    model.set("picked", [clip(row, model.get("rows")), clip(column, model.get("columns"))]);
    model.save_changes();
  };
  img.onclick = (event) => {
    if (!model.get("clickable")) return;
    const box = img.getBoundingClientRect();
    pick(Math.floor((event.clientY - box.top) / box.height * model.get("rows")),
         Math.floor((event.clientX - box.left) / box.width * model.get("columns")));
  };
  img.onkeydown = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !model.get("clickable")) return;
    event.preventDefault();
    const [row, column] = model.get("picked");
    pick(row + step[0], column + step[1]);
  };
  model.on("change:image", show);
  for (const name of ["label", "clickable", "width_px"]) model.on("change:" + name, dress);
  dress();
  show();
  el.appendChild(img);
  return () => { if (url) URL.revokeObjectURL(url); };
}
export default { render };
"""


def jpeg(frame: np.ndarray, *, quality: int = 90) -> bytes:
    """One frame uint8 (H, W, 3) as JPEG, colours at full resolution: fast enough to be sent at every step."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


class Picture(anywidget.AnyWidget):
    """A JPEG of ``rows`` x ``columns`` equal cells; a click or an arrow key sets ``picked`` to [row, column]."""

    _esm = _SCRIPT
    image = traitlets.Bytes(b"").tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    rows = traitlets.Int(1, min=1).tag(sync=True)
    columns = traitlets.Int(1, min=1).tag(sync=True)
    picked = traitlets.List(traitlets.Int(), [0, 0], minlen=2, maxlen=2).tag(sync=True)
    clickable = traitlets.Bool(True).tag(sync=True)
    width_px = traitlets.Int(448, min=16).tag(sync=True)

    @traitlets.validate("picked")
    def _inside(self, proposal: Any) -> list[int]:
        row, column = proposal["value"]
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            raise traitlets.TraitError(f"picked={[row, column]} is not one of {self.rows} x {self.columns} cells")
        return [row, column]


def still_picture(image: bytes, label: str, width_px: int) -> str:
    """The same picture as HTML that needs nothing."""
    source = base64.b64encode(image).decode()
    return (
        f'<img alt="{escape(label)}" width="{width_px}" style="max-width:100%;height:auto;border-radius:6px;'
        f'display:block" src="data:image/jpeg;base64,{source}">'
    )
