"""One router's tokens after a replay: choices and logits of all tokens, inputs of some.

Legend: T tokens that a router sees, N of them with kept inputs, D width, E experts, K chosen per
token, S sequences, R dimensions of the row space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.commands.routing.settings import KEPT_TOKENS
from moegeo_cli.geometry.pair_correlation import Items
from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.geometry.shared_direction import centre_rows, row_space
from moegeo_cli.geometry.usage import Usage
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.replay.plan import Replay, RouterTrace
from moegeo_cli.replay.sampling import sample_rows
from moegeo_cli.routers.finding import Router
from moegeo_cli.scorings import find_scoring

NO_IDS = "the probe does not consist of token ids"


@dataclass(frozen=True)
class RoutedTokens:
    """One router's tokens.

    Attributes:
        layer: index of the decoder layer.
        router: module path.
        experts: number of experts.
        top_k: experts per token; None if not known.
        scoring: name of the scoring.
        usage: the choices.
        token_T: token ids; None if the probe does not consist of token ids.
        position_T: position of each token in its sequence.
        logits_TE: the logits; None for a hash router.
        kept_N: the tokens with kept inputs, as positions among the T tokens.
        x_ND: the kept inputs.
        weight_ED: the router's rows; centred over experts if the scoring ignores a constant.
        basis_DR: orthonormal basis of the rows.
    """

    layer: int
    router: str
    experts: int
    top_k: int | None
    scoring: str
    usage: Usage
    token_T: np.ndarray | None
    position_T: np.ndarray
    logits_TE: np.ndarray | None
    kept_N: np.ndarray
    x_ND: np.ndarray
    weight_ED: np.ndarray
    basis_DR: np.ndarray

    @property
    def group_T(self) -> np.ndarray:
        """Group of sequences of each token."""
        return np.asarray(self.usage.groups_S[self.usage.sequence_T])

    def roots(self, rows: np.ndarray) -> np.ndarray | None:
        """Square roots of the routing distributions at `rows`: (rows, E); None for hash routers."""
        if self.logits_TE is None:
            return None
        return np.asarray(np.sqrt(probabilities(self.logits_TE[rows], self.scoring)))

    @property
    def centred_logits(self) -> np.ndarray | None:
        """Logits minus their mean over experts if the scoring ignores a constant.

        Shape (T, E), float64; None for a hash router.
        """
        if self.logits_TE is None:
            return None
        logits_TE = self.logits_TE.astype(np.float64)
        if find_scoring(self.scoring).shift_invariant:
            logits_TE -= logits_TE.mean(axis=1, keepdims=True)
        return logits_TE

    @property
    def items(self) -> Items:
        """The tokens with kept inputs that chose at least one expert."""
        used = self.usage.chosen_T[self.kept_N] > 0
        rows, x_ND = self.kept_N[used], self.x_ND[used]
        sequence_N = self.usage.sequence_T[rows]
        return Items(
            x_ND=x_ND,
            response_NE=None
            if self.logits_TE is None
            else x_ND.astype(np.float64) @ self.weight_ED.T,
            root_NE=self.roots(rows),
            usage_NE=self.usage.part(rows).sum_by(np.arange(len(rows)), len(rows)),
            sequence_N=sequence_N,
            group_N=self.usage.groups_S[sequence_N],
        )


def kept_rows(routers: Sequence[Router], tokens: int, seed: int, most_bytes: int) -> np.ndarray:
    """The probe rows whose router inputs are kept; the same for every router and checkpoint."""
    width = sum(int(r.weight_ED.shape[1]) for r in routers)
    return sample_rows(tokens, max(16, min(KEPT_TOKENS, most_bytes // (4 * width))), seed)


def gather_routed(
    trace: RouterTrace,
    outcome: Replay,
    rows_N: np.ndarray,
    probe: Probe,
    groups_S: np.ndarray,
    architecture: Architecture,
) -> RoutedTokens | str:
    """Gather the tokens of one router.

    Args:
        trace: the router's trace of the replay.
        outcome: the replay.
        rows_N: the probe rows whose inputs were kept.
        probe: the probe.
        groups_S: group of each sequence.
        architecture: gives scoring, K and hash layers.

    Returns:
        The tokens; or, as text, why they could not be gathered.
    """
    router, selected, x_MD = trace.router, trace.selected_TK, trace.sample_x_MD
    if trace.problem or selected is None or x_MD is None:
        return trace.problem or "the router was not called"
    if router.experts < 2:
        return "a router with one expert has no choice"
    seen = np.arange(len(trace.logits_TE)) if trace.rows is None else trace.rows
    own_M = np.isin(rows_N, seen)
    scoring, hashed = architecture.scoring or "", router.layer in architecture.hash_layers
    weight_ED = router.weight_ED.detach()[: router.experts].float().cpu().numpy().astype(float)
    if not np.isfinite(weight_ED).all() or not np.isfinite(x_MD).all():
        return "the router's weights or inputs are not finite"
    if not hashed and not np.isfinite(trace.logits_TE[seen]).all():
        return "the router's logits are not finite"
    centred = find_scoring(scoring).shift_invariant
    if centred:
        weight_ED = centre_rows(weight_ED)
    chosen = selected[seen].astype(np.int64)
    chosen = np.where((chosen >= 0) & (chosen < router.experts), chosen, -1)
    sequence_T = outcome.sequence_T[seen]
    _, start = np.unique(sequence_T, return_index=True)
    sizes = np.diff([*start, len(sequence_T)])
    return RoutedTokens(
        layer=router.layer,
        router=router.path,
        experts=router.experts,
        top_k=router.top_k or architecture.top_k,
        scoring=scoring,
        usage=Usage(chosen, sequence_T, groups_S, router.experts),
        token_T=_token_ids(probe, seen),
        position_T=np.arange(len(sequence_T)) - np.repeat(start, sizes),
        logits_TE=None if hashed else trace.logits_TE[seen],
        kept_N=np.searchsorted(seen, rows_N[own_M]),
        x_ND=x_MD[own_M],
        weight_ED=weight_ED,
        basis_DR=row_space(weight_ED, centred=centred),
    )


def _token_ids(probe: Probe, rows: np.ndarray) -> np.ndarray | None:
    """The token ids at rows of the probe; None if the probe does not consist of token ids."""
    ids = [s.input_ids for s in probe.sequences if not isinstance(s, Sample)]
    return np.concatenate(ids)[rows] if len(ids) == len(probe.sequences) else None
