"""Video Transfer Workbench: which way of transferring a pretrained video transformer to your clips works, and why.

``import workbench as wb`` loads nothing heavy; each verb below is imported the first time it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for editors and type checkers; a test holds the two lists together
    from workbench.analysis.balance_front import balance_front as balance_front
    from workbench.analysis.compare import compare as compare
    from workbench.analysis.comparing.front import pareto as pareto
    from workbench.analysis.errors import errors as errors
    from workbench.analysis.evaluate import evaluate as evaluate
    from workbench.analysis.explain import explain as explain
    from workbench.analysis.explaining.influence import influence as influence
    from workbench.analysis.explaining.looking import token_attention as token_attention
    from workbench.analysis.faithfulness import explanation_report as explanation_report
    from workbench.analysis.label_study import label_study as label_study
    from workbench.analysis.map_comparison import compare_classes as compare_classes
    from workbench.analysis.map_comparison import compare_maps as compare_maps
    from workbench.analysis.mistakes.calibration import calibration as calibration
    from workbench.analysis.mistakes.embedding import embedding as embedding
    from workbench.analysis.mistakes.embedding import neighbours as neighbours
    from workbench.analysis.mistakes.label_errors import label_errors as label_errors
    from workbench.analysis.mistakes.marks import Marks as Marks
    from workbench.analysis.mistakes.properties import clip_properties as clip_properties
    from workbench.analysis.mistakes.slices import slices as slices
    from workbench.analysis.multitask import multitask_report as multitask_report
    from workbench.analysis.multitask import task_affinity as task_affinity
    from workbench.analysis.operating_point import choose_threshold as choose_threshold
    from workbench.analysis.operating_point import realised_rate as realised_rate
    from workbench.analysis.robustness import robustness as robustness
    from workbench.analysis.screening import screen as screen
    from workbench.analysis.stress.domain import domain_shift as domain_shift
    from workbench.analysis.stress.temporal import temporal_probes as temporal_probes
    from workbench.analysis.timeline import screen_video as screen_video
    from workbench.analysis.transferability import transferability as transferability
    from workbench.data.clips import ClipDecodeError as ClipDecodeError
    from workbench.data.clips import read_clip as read_clip
    from workbench.data.clips import read_views as read_views
    from workbench.data.combine import concat as concat
    from workbench.data.frames import Sampling as Sampling
    from workbench.data.layouts import open_clips as open_clips
    from workbench.data.protocol import Protocol as Protocol
    from workbench.data.sources.shards import shard_order as shard_order
    from workbench.data.sources.shards import write_shards as write_shards
    from workbench.data.splits import few_labels as few_labels
    from workbench.data.synthetic.ladder import quality_ladder as quality_ladder
    from workbench.data.synthetic.playground import playground as playground
    from workbench.data.synthetic.playground import playground_example as playground_example
    from workbench.data.synthetic.playground import playground_truth as playground_truth
    from workbench.data.tables import ClipTable as ClipTable
    from workbench.data.tables import Task as Task
    from workbench.data.tasks import label_sets as label_sets
    from workbench.models.backbones import load_backbone as load_backbone
    from workbench.training.checking.findings import Finding as Finding
    from workbench.training.checking.rate_finder import find_lr as find_lr
    from workbench.training.export import export as export
    from workbench.training.finetune import fine_tune as fine_tune
    from workbench.training.launch import Launched as Launched
    from workbench.training.launch import find_jobs as find_jobs
    from workbench.training.launch import launch as launch
    from workbench.training.layer_conflict import layer_conflict as layer_conflict
    from workbench.training.predict import predict as predict
    from workbench.training.probing.features import features_of as features_of
    from workbench.training.probing.probes import probes as probes
    from workbench.training.recipes import recipe as recipe
    from workbench.training.recipes import recipe_sources as recipe_sources
    from workbench.training.runs import Run as Run
    from workbench.training.runs import find_runs as find_runs
    from workbench.training.runs import load_run as load_run
    from workbench.training.setup import Setup as Setup
    from workbench.training.sweep import sweep as sweep
    from workbench.views.attention_view import AttentionView as AttentionView
    from workbench.views.comparison_view import ComparisonView as ComparisonView
    from workbench.views.contact_sheet import ContactSheet as ContactSheet
    from workbench.views.error_view import ErrorView as ErrorView
    from workbench.views.head_grid import HeadGridView as HeadGridView
    from workbench.views.launch_panel import LaunchPanel as LaunchPanel
    from workbench.views.map_export import export_maps as export_maps
    from workbench.views.players import ClipPlayer as ClipPlayer
    from workbench.views.robustness_plots import robustness_curves as robustness_curves
    from workbench.views.robustness_plots import robustness_map as robustness_map
    from workbench.views.robustness_plots import temporal_plot as temporal_plot
    from workbench.views.side_view import SideBySideView as SideBySideView
    from workbench.views.token_view import TokenView as TokenView
    from workbench.views.tradeoff_view import TradeoffView as TradeoffView
    from workbench.views.training_plots import conflict_curves as conflict_curves
    from workbench.views.training_plots import layer_conflict_plot as layer_conflict_plot

__version__ = "0.1.0"

_PUBLIC = {
    "ClipTable": "data.tables",
    "Task": "data.tables",
    "Protocol": "data.protocol",
    "ClipDecodeError": "data.clips",
    "open_clips": "data.layouts",
    "Sampling": "data.frames",
    "read_clip": "data.clips",
    "read_views": "data.clips",
    "concat": "data.combine",
    "write_shards": "data.sources.shards",
    "shard_order": "data.sources.shards",
    "playground": "data.synthetic.playground",
    "playground_truth": "data.synthetic.playground",
    "playground_example": "data.synthetic.playground",
    "load_backbone": "models.backbones",
    "Setup": "training.setup",
    "Run": "training.runs",
    "fine_tune": "training.finetune",
    "export": "training.export",
    "sweep": "training.sweep",
    "load_run": "training.runs",
    "predict": "training.predict",
    "evaluate": "analysis.evaluate",
    "compare": "analysis.compare",
    "errors": "analysis.errors",
    "explain": "analysis.explain",
    "ClipPlayer": "views.players",
    "AttentionView": "views.attention_view",
    "ComparisonView": "views.comparison_view",
    "ErrorView": "views.error_view",
    "label_study": "analysis.label_study",
    "transferability": "analysis.transferability",
    "few_labels": "data.splits",
    "find_lr": "training.checking.rate_finder",
    "recipe": "training.recipes",
    "recipe_sources": "training.recipes",
    "Finding": "training.checking.findings",
    "probes": "training.probing.probes",
    "influence": "analysis.explaining.influence",
    "explanation_report": "analysis.faithfulness",
    "compare_maps": "analysis.map_comparison",
    "compare_classes": "analysis.map_comparison",
    "features_of": "training.probing.features",
    "label_sets": "data.tasks",
    "choose_threshold": "analysis.operating_point",
    "realised_rate": "analysis.operating_point",
    "multitask_report": "analysis.multitask",
    "task_affinity": "analysis.multitask",
    "balance_front": "analysis.balance_front",
    "screen": "analysis.screening",
    "screen_video": "analysis.timeline",
    "ContactSheet": "views.contact_sheet",
    "SideBySideView": "views.side_view",
    "HeadGridView": "views.head_grid",
    "TokenView": "views.token_view",
    "token_attention": "analysis.explaining.looking",
    "export_maps": "views.map_export",
    "TradeoffView": "views.tradeoff_view",
    "quality_ladder": "data.synthetic.ladder",
    "layer_conflict": "training.layer_conflict",
    "conflict_curves": "views.training_plots",
    "layer_conflict_plot": "views.training_plots",
    "calibration": "analysis.mistakes.calibration",
    "label_errors": "analysis.mistakes.label_errors",
    "slices": "analysis.mistakes.slices",
    "clip_properties": "analysis.mistakes.properties",
    "embedding": "analysis.mistakes.embedding",
    "neighbours": "analysis.mistakes.embedding",
    "Marks": "analysis.mistakes.marks",
    "pareto": "analysis.comparing.front",
    "robustness": "analysis.robustness",
    "temporal_probes": "analysis.stress.temporal",
    "domain_shift": "analysis.stress.domain",
    "robustness_curves": "views.robustness_plots",
    "robustness_map": "views.robustness_plots",
    "temporal_plot": "views.robustness_plots",
    "launch": "training.launch",
    "Launched": "training.launch",
    "find_jobs": "training.launch",
    "LaunchPanel": "views.launch_panel",
    "find_runs": "training.runs",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it offers {sorted(_PUBLIC)}")
    value = getattr(importlib.import_module(f"workbench.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
