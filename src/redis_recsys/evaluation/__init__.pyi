from .baselines import fit_baselines
from .comparison import Comparison, Paired
from .evaluate import Report
from .metrics import auc, calibration, log_loss
from .plots import metric_bars

__all__ = ["Comparison", "Paired", "Report", "auc", "calibration", "fit_baselines", "log_loss", "metric_bars"]
