"""The three dashboards a notebook shows: compare runs, look at maps, page through errors."""

from workbench.views.attention_view import AttentionView
from workbench.views.comparison_view import ComparisonView
from workbench.views.error_view import ErrorView

__all__ = ["AttentionView", "ComparisonView", "ErrorView"]
