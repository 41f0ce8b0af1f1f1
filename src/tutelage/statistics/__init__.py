"""Numbers with honest intervals, agreement, calibration: NumPy and SciPy only, the one copy in the house."""

from tutelage.statistics.agreement import (
    Kappa,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    kendall_w,
    krippendorff_alpha,
    krippendorff_interval,
    label_ceiling,
    pairwise_agreement,
)
from tutelage.statistics.best_of_n import best_of_n_kl_bound, best_of_n_unbiased, pass_at_k
from tutelage.statistics.calibration import (
    ReliabilityBin,
    brier,
    expected_calibration_error,
    fitted_temperature,
    reliability_curve,
)
from tutelage.statistics.crowd_bt import CrowdBT, PairVote, crowd_bt
from tutelage.statistics.dawid_skene import DawidSkene, dawid_skene, dawid_skene_accuracy
from tutelage.statistics.discrimination import auc, auc_interval
from tutelage.statistics.intervals import (
    Interval,
    clopper_pearson,
    cluster_bootstrap,
    cluster_mean,
    cluster_share,
    needed_for_half_width,
    needed_to_tell,
    paired_difference,
    wilson,
)
from tutelage.statistics.ratings import matched_length_win_rate, win_rate
from tutelage.statistics.weighted import gwet_ac2, weighted_kappa

__all__ = [
    "CrowdBT",
    "DawidSkene",
    "Interval",
    "Kappa",
    "PairVote",
    "ReliabilityBin",
    "auc",
    "auc_interval",
    "best_of_n_kl_bound",
    "best_of_n_unbiased",
    "brier",
    "clopper_pearson",
    "cluster_bootstrap",
    "cluster_mean",
    "cluster_share",
    "cohen_kappa",
    "crowd_bt",
    "dawid_skene",
    "dawid_skene_accuracy",
    "expected_calibration_error",
    "fitted_temperature",
    "fleiss_kappa",
    "gwet_ac1",
    "gwet_ac2",
    "kendall_w",
    "krippendorff_alpha",
    "krippendorff_interval",
    "label_ceiling",
    "matched_length_win_rate",
    "needed_for_half_width",
    "needed_to_tell",
    "paired_difference",
    "pairwise_agreement",
    "pass_at_k",
    "reliability_curve",
    "weighted_kappa",
    "wilson",
    "win_rate",
]
