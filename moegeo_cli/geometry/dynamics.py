r"""How routing changes between checkpoints of one run, on the same tokens of the same probe.

The input is a fixed sample of the probe's tokens; their logits are stored with every checkpoint.
The metrics that hold the router's input fixed use a smaller sample of router inputs.

Legend: M sampled tokens, N sampled router inputs (some of the M), C checkpoints,
E experts, K experts chosen per token, D router input width, G groups, B draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, missing
from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.geometry.simplex import distance, distance_max
from moegeo_cli.scorings import find_scoring

# Relative rounding error of logits, by which two replays of one checkpoint may differ.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12}
REPEATS = 3.0
# Estimates of a step with the router's input fixed; see `step_estimates`.
FIXED_INPUT = (
    "fisher_step", "fisher_step_root", "rms_fixed_input", "rms_total", "rms_moving_input",
    "diagonal_error",
)  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """One router at one checkpoint, on the sampled tokens.

    `group_M` is each token's group of sequences. `x_ND` are the router inputs of the tokens
    `input_rows_N`; both are None if no inputs were kept.
    """

    logits_ME: np.ndarray
    selected_MK: np.ndarray
    group_M: np.ndarray
    scoring: str
    weight_ED: np.ndarray
    bias_E: np.ndarray | None
    x_ND: np.ndarray | None
    input_rows_N: np.ndarray | None
    dtype: str = "float32"
    top_k: int | None = None
    selection_bias_E: np.ndarray | None = None

    @cached_property
    def probabilities_ME(self) -> np.ndarray:
        """Routing distributions p of the sampled tokens."""
        return probabilities(self.logits_ME, self.scoring)

    @cached_property
    def finite(self) -> bool:
        """Whether every sampled logit is finite."""
        return bool(np.isfinite(self.logits_ME).all())


def step_estimates(before: Snapshot, after: Snapshot, draws: Draws) -> dict[str, Estimate]:
    """How one router changed between two checkpoints, as estimates by metric.

    Args:
        before: the earlier checkpoint.
        after: the later one, on the same tokens.
        draws: the bootstrap draws of the probe's groups.

    Returns:
        Estimates by name; a missing one has a reason.

        - `speed`: mean Fisher-Rao distance that a token's p moved.
        - `fsi_rate`: change of FSI. `fsi_rate_bound`: its upper bound speed / d_max, by the
          triangle inequality. `fsi_rate_share`: |fsi_rate| over the bound.
        - `fisher_step`: mean squared length, in the Fisher metric, of the first-order change of p
          from the router's own change with its input fixed. `fisher_step_root`: its square root.
        - `rms_fixed_input`, `rms_moving_input`, `rms_total`: root mean square Fisher-Rao distance
          by the router's change with its input fixed, by the change of its input, and by both.
        - `diagonal_error`: relative error of `fisher_step` with the diagonal Fisher only.

    Source: [GM], theorems 2 and 3; estimators ours.
    """
    problem = _problem(before, after)
    if problem:
        names = ("speed", "fsi_rate", "fsi_rate_bound", "fsi_rate_share", *FIXED_INPUT)
        return dict.fromkeys(names, missing(problem))
    p_ME, q_ME = before.probabilities_ME, after.probabilities_ME
    experts = p_ME.shape[1]
    furthest = distance_max(experts)
    uniform_E = np.full(experts, 1.0 / experts)
    moved_M = distance(p_ME, q_ME)
    change_M = (distance(q_ME, uniform_E) - distance(p_ME, uniform_E)) / furthest
    speed = _mean(moved_M, before.group_M, draws)
    rate = _mean(change_M, before.group_M, draws)
    assert speed.value is not None
    assert rate.value is not None
    bound = Estimate(
        speed.value / furthest,
        None if speed.draws_B is None else speed.draws_B / furthest,
        speed.n,
    )
    share = missing("nothing moved", speed.n)
    if bound.value:
        share = Estimate(min(abs(rate.value) / bound.value, 1.0), n=speed.n)
    found = {
        "speed": speed, "fsi_rate": rate, "fsi_rate_bound": bound, "fsi_rate_share": share,
    }  # fmt: skip
    return found | _fixed_input(before, after, draws)


def saturation(now: Snapshot, last: Snapshot, draws: Draws) -> Estimate:
    r"""Share of a checkpoint's choices that the last checkpoint makes too, above chance.

    .. math:: (\text{overlap} - c) / (1 - c), \quad c = K \sum_e q_e q'_e

    c is the overlap of independent choices with the dispatch shares q and q′ of the two
    checkpoints (K/E if both are balanced).

    Args:
        now: the checkpoint.
        last: the run's last checkpoint, on the same tokens.
        draws: the bootstrap draws of the probe's groups.

    Returns:
        1 if all choices are the same, 0 at chance.

    Source: OLMoE's router saturation (arXiv 2409.02060), corrected for chance here.
    """
    if now.selected_MK.shape != last.selected_MK.shape or not now.top_k:
        return missing("the number of experts per token varies")
    if (now.selected_MK < 0).any() or (last.selected_MK < 0).any():
        return missing("some slots are empty")
    same_MKK = now.selected_MK[:, :, None] == last.selected_MK[:, None, :]
    overlap_M = same_MKK.any(axis=2).mean(axis=1)
    experts = now.logits_ME.shape[1]
    now_E = np.bincount(now.selected_MK.ravel(), minlength=experts) / now.selected_MK.size
    last_E = np.bincount(last.selected_MK.ravel(), minlength=experts) / last.selected_MK.size
    chance = now.top_k * float(now_E @ last_E)
    if chance >= 1.0 - 1e-9:
        return missing("both checkpoints always choose the same experts", len(overlap_M))
    return _mean((overlap_M - chance) / (1.0 - chance), now.group_M, draws)


def bias_response(before: Snapshot, after: Snapshot) -> Estimate:
    """Rank correlation, over experts, of the change of the selection bias with the load.

    Args:
        before: the earlier checkpoint; its load is used.
        after: the later one.

    Returns:
        Spearman's rank correlation. Negative if overloaded experts lose bias, which is what
        balancing intends. Independent ranks give mean 0 and variance 1/(E − 1).

    Source: the update of DeepSeek-V3 (arXiv 2412.19437); the correlation is ours.
    """
    if before.selection_bias_E is None or after.selection_bias_E is None:
        return missing("the router has no selection bias")
    if len(before.selection_bias_E) != len(after.selection_bias_E):
        return missing("the number of experts differs")
    moved_E = after.selection_bias_E.astype(np.float64) - before.selection_bias_E
    load_E = np.bincount(
        before.selected_MK[before.selected_MK >= 0], minlength=len(moved_E)
    ).astype(np.float64)
    known_E = np.isfinite(moved_E)
    if known_E.sum() < 3:
        return missing("fewer than three experts have a finite bias")
    moved_E, load_E = moved_E[known_E], load_E[known_E]
    if not np.ptp(moved_E):
        return missing("no expert's bias moved relative to the others")
    if not np.ptp(load_E):
        return missing("all experts have the same load")
    return Estimate(_rank_correlation(moved_E, load_E), n=len(moved_E))


class PathLength:
    """Length of the path of one router's routing distributions over the checkpoints."""

    def __init__(self) -> None:
        self.checkpoints = 0
        self.problem: str | None = None

    def add_checkpoint(self, snapshot: Snapshot) -> None:
        """Add the router's next checkpoint."""
        if self.checkpoints == 0:
            self.first = self.newest = snapshot
            self.length_M = np.zeros(len(snapshot.logits_ME))
        self.checkpoints += 1
        self.problem = self.problem or _problem(self.first, snapshot)
        if self.problem is None:
            self.length_M += distance(self.newest.probabilities_ME, snapshot.probabilities_ME)
        self.newest = snapshot

    def excess(self, draws: Draws) -> Estimate:
        """Length of the path over the distance from the first to the newest checkpoint, minus 1.

        Args:
            draws: the bootstrap draws of the probe's groups.

        Returns:
            Σ length / Σ distance − 1; 0 for a geodesic. It grows with the number of checkpoints, so
            compare it only between the same steps.
        """
        if self.checkpoints < 3:
            return missing("needs three checkpoints")
        if self.problem:
            return missing(self.problem)
        shortest_M = distance(self.first.probabilities_ME, self.newest.probabilities_ME)
        if shortest_M.mean() <= REPEATS * repeat_distance(self.newest):
            return missing("the first and the last checkpoint differ by rounding only")
        top, bottom = (_mean(v, self.first.group_M, draws) for v in (self.length_M, shortest_M))
        assert top.value is not None
        assert bottom.value is not None
        draws_B = None
        if top.draws_B is not None and bottom.draws_B is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                draws_B = top.draws_B / bottom.draws_B - 1.0
        return Estimate(top.value / bottom.value - 1.0, draws_B, top.n)


def repeat_distance(snapshot: Snapshot) -> float:
    """Mean distance between two replays of one checkpoint whose logits differ by rounding."""
    step = ROUNDING.get(snapshot.dtype, ROUNDING["float32"])
    # Alternating signs: one common factor on all logits would move p less than rounding can.
    signs_E = np.where(np.arange(snapshot.logits_ME.shape[1]) % 2, step, -step)
    other_ME = probabilities(snapshot.logits_ME * (1.0 + signs_E), snapshot.scoring)
    return float(distance(snapshot.probabilities_ME, other_ME).mean())


def _problem(before: Snapshot, after: Snapshot) -> str | None:
    if before.logits_ME.shape != after.logits_ME.shape or not len(before.logits_ME):
        return "the two checkpoints were not measured on the same tokens"
    if not (before.finite and after.finite):
        return "some logits are not finite"
    return None


def _fixed_input(before: Snapshot, after: Snapshot, draws: Draws) -> dict[str, Estimate]:
    """How far the router's own change moves p while its input is fixed."""
    if before.x_ND is None or before.input_rows_N is None:
        return dict.fromkeys(FIXED_INPUT, missing("no router inputs were kept"))
    if before.weight_ED.shape != after.weight_ED.shape:
        return dict.fromkeys(FIXED_INPUT, missing("the router changed its shape"))
    x_ND = before.x_ND.astype(np.float64)
    change_NE = x_ND @ (after.weight_ED.astype(np.float64) - before.weight_ED).T
    if before.bias_E is not None and after.bias_E is not None:
        change_NE += after.bias_E.astype(np.float64) - before.bias_E
    if not np.isfinite(change_NE).all():
        return dict.fromkeys(FIXED_INPUT, missing("the router's weights are not finite"))
    rows, group_N = before.input_rows_N, before.group_M[before.input_rows_N]
    z_NE = before.logits_ME[rows].astype(np.float64)
    p_NE = probabilities(z_NE, before.scoring)
    logs_NE = find_scoring(before.scoring).log_slope(z_NE) * change_NE
    mean_N = (p_NE * logs_NE).sum(axis=1)
    step_N = (p_NE * (logs_NE - mean_N[:, None]) ** 2).sum(axis=1)
    diagonal_N = (p_NE * (1.0 - p_NE) * logs_NE**2).sum(axis=1)
    moved_NE = probabilities(z_NE + change_NE, before.scoring)
    after_NE = after.probabilities_ME[rows]
    step = _mean(step_N, group_N, draws)
    assert step.value is not None
    error = missing("the router did not change", step.n)
    if step.value > 0:
        error = Estimate(float(diagonal_N.mean()) / step.value - 1.0, n=step.n)
    return {
        "fisher_step": step,
        "fisher_step_root": _root(step),
        "rms_fixed_input": _root(_mean(distance(p_NE, moved_NE) ** 2, group_N, draws)),
        "rms_total": _root(_mean(distance(p_NE, after_NE) ** 2, group_N, draws)),
        "rms_moving_input": _root(_mean(distance(moved_NE, after_NE) ** 2, group_N, draws)),
        "diagonal_error": error,
    }


def _root(estimate: Estimate) -> Estimate:
    assert estimate.value is not None
    draws_B = None if estimate.draws_B is None else np.sqrt(np.maximum(estimate.draws_B, 0.0))
    return Estimate(float(np.sqrt(max(estimate.value, 0.0))), draws_B, estimate.n)


def _mean(values_M: np.ndarray, group_M: np.ndarray, draws: Draws) -> Estimate:
    """Mean over sampled tokens, resampled by group."""
    value = float(values_M.mean())
    if not len(draws.counts_BG):
        return Estimate(value, n=len(values_M))
    tops_G = np.bincount(group_M, weights=values_M, minlength=draws.groups)
    sizes_G = np.bincount(group_M, minlength=draws.groups).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws_B = draws.sum_draws(tops_G) / draws.sum_draws(sizes_G)
    return Estimate(value, draws_B, len(values_M))


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation, with mean ranks for ties."""
    from scipy.stats import rankdata

    ranks = np.array([rankdata(one), rankdata(other)])
    return float(np.corrcoef(ranks)[0, 1])
