from .baselines import fit_baselines
from .comparison import Comparison, compare
from .evaluate import Report
from .metrics import auc, calibration, log_loss
from .plots import metric_bars

__all__ = ["Comparison", "Report", "auc", "calibration", "compare", "fit_baselines", "log_loss", "metric_bars"]
