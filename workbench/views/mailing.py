"""What makes a notebook fit to be mailed: a view that is a cell's value leaves a page that needs no kernel."""

import os
from typing import Any

import ipywidgets

from workbench.views.style import Html

FREEZE = "WORKBENCH_FREEZE"
"""Set to 1 while a notebook is executed to be read elsewhere (nbconvert, Papermill): views then show frozen, too."""


class MailableBox(ipywidgets.VBox):
    """The base of every dashboard: live in a notebook; where ``WORKBENCH_FREEZE=1``, its :meth:`freeze` beside that.

    A widget is shown by its kernel; a page without one, such as nbconvert's, would show its name and nothing else. Such
    a page takes the HTML where there is no widget state. It is not made otherwise: freezing takes seconds and the
    notebook's file would grow by it.
    """

    def freeze(self) -> Html:
        """The view as it stands, as static HTML: nothing in it needs a kernel, a script or the network."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is read without a kernel; write freeze()")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        if os.environ.get(FREEZE) == "1":
            bundle["text/html"] = str(self.freeze())
        return bundle
