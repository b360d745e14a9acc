from workbench.analysis.metrics import *  # TEMP
from workbench.analysis.metrics import main_metric, weighted_metrics
