"""Compares first parts of sequences with their continuations, from the probe or generated.

Legend: T tokens, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.commands.routing.figures import Figures, rollout_figures
from moegeo_cli.commands.routing.generation import continue_prompts
from moegeo_cli.commands.routing.layers import Domains
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.commands.routing.tokens import RoutedTokens, gather_routed
from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.measuring.prepared import PreparedModel
from moegeo_cli.measuring.probe import context_length
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.probes.dataset import IGNORED_LABEL, Sequence

MAX_PROMPTS = 64
CAPTURED = "captured"  # the tokenizer's name in a probe of captured inputs
NO_ORDER = "samples that are not token ids have no continuation"
NOTHING_TO_GENERATE = {
    "pairs": "in an encoder-decoder model, a prompt and its continuation share no router",
    "streamed": "--generate needs the whole model in memory",
    "alone": "--generate needs a model: routers alone cannot continue a text",
    "samples": "the probe does not consist of token ids: there is no prompt to continue",
    "short": "no sequence of the probe has a prompt that leaves room for new tokens",
}


def prompt_tokens(
    tokens: RoutedTokens, probe: Probe, architecture: Architecture
) -> np.ndarray | str:
    """Which tokens belong to the first part of their sequence; or, as text, why there are none.

    The first part ends before the first label. Without labels it is the first half. In an
    encoder-decoder model it is the first half of the side that the router sees.

    Returns:
        A boolean array of shape (T,), or the reason.
    """
    sequence_T = tokens.usage.sequence_T
    sequences = [s for s in probe.sequences if not isinstance(s, Sample)]
    if not sequences and probe.tokenizer != CAPTURED:
        return NO_ORDER
    sizes_S = np.bincount(sequence_T, minlength=len(probe.sequences))
    first_S = (sizes_S + 1) // 2
    if sequences and not architecture.encoder_decoder:
        first_S = np.array([s.source for s in sequences])
    return np.asarray(tokens.position_T < first_S[sequence_T])


def generated_figures(
    prepared: PreparedModel,
    measurer: Measurer,
    settings: RoutingSettings,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Figures] | str, dict[str, int]]:
    """Let the model continue prompts, and measure the routers on prompts and continuations.

    The continued prompts are replayed like a probe.

    Args:
        prepared: the model.
        measurer: gives the probe with the prompts.
        settings: gives the number of new tokens and the seed.
        progress: called with the number of tokens sampled since the last call.

    Returns:
        Figures by router (or, as text, why nothing can be generated), and the number of prompts
        and of their tokens.
    """
    architecture, probe = measurer.architecture, measurer.probe
    prompts = choose_prompts(probe, settings.generate, context_length(measurer.config))
    problem = _problem(prepared, measurer, prompts)
    if problem is not None:
        return NOTHING_TO_GENERATE[problem], {}
    ids = [s.input_ids[: s.source] for s in prompts]
    new = continue_prompts(prepared.model, ids, settings.generate, settings.seed, progress)
    continued = Probe.of(
        (
            Sequence(
                np.concatenate([prompt, tail]),
                np.concatenate([np.full(len(prompt), IGNORED_LABEL), tail]),
                own.domain,
            )
            for prompt, tail, own in zip(ids, new, prompts, strict=True)
        ),
        "generated",
    )
    groups_S = group_sequences(len(prompts), settings.seed)
    draws, domains = make_draws(groups_S, settings.seed), Domains.of([s.domain for s in prompts])
    rows = np.arange(1)  # at least one row of inputs must be kept; it is not used
    again = Measurer(architecture, measurer.config, continued, groups_S, settings.replay)
    plan = again.plan(prepared).of_every_token(fishers=(), sample_rows=rows)
    outcome = again.replay(prepared, plan)
    found: dict[str, Figures] = {}
    for trace in outcome.traces:
        tokens = gather_routed(trace, outcome, rows, continued, groups_S, architecture)
        if not isinstance(tokens, str):
            mask_T = prompt_tokens(tokens, continued, architecture)
            found[trace.router.path] = rollout_figures(
                "generated", tokens.usage, mask_T, domains.labels_S, draws, settings.seed
            )
    return found, {"prompts": len(prompts), "prompt_tokens": sum(map(len, ids))}


def choose_prompts(probe: Probe, count: int, context: int | None) -> list[Sequence]:
    """Choose at most `MAX_PROMPTS` sequences, spread evenly over the probe.

    Args:
        probe: the probe.
        count: number of new tokens per prompt.
        context: the model's context length; None if not known. Prompts that leave no room for the
            new tokens are not chosen.
    """
    room = None if context is None else context - count
    fitting = [
        s
        for s in probe.sequences
        if not isinstance(s, Sample) and s.tokens and (room is None or s.source <= room)
    ]
    if len(fitting) <= MAX_PROMPTS:
        return fitting
    return [fitting[i] for i in np.linspace(0, len(fitting) - 1, MAX_PROMPTS).astype(int)]


def _problem(prepared: PreparedModel, measurer: Measurer, prompts: list[Sequence]) -> str | None:
    if prepared.form.body is None:
        return "alone"
    if measurer.architecture.encoder_decoder:
        return "pairs"
    if any(isinstance(s, Sample) for s in measurer.probe.sequences):
        return "samples"
    if measurer.mode.kind is not None:
        return "streamed"
    return None if prompts else "short"
