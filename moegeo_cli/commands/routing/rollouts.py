"""First parts of sequences against what follows: as the probe has it, or as the model goes on.

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
from moegeo_cli.measuring.probe import context_of
from moegeo_cli.measuring.ready import Ready
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.probes.dataset import IGNORED_LABEL, Sequence

MOST_PROMPTS = 64
CAPTURED = "captured"  # the tokenizer that a probe of captured inputs names
NO_ORDER = "samples that are not token ids have no continuation"
NOTHING_TO_GENERATE = {
    "pairs": "the encoder reads only the source: a prompt and its continuation share no router",
    "streamed": "--generate needs the whole model in memory",
    "alone": "--generate needs a model: routers alone cannot continue a text",
    "samples": "the probe is not of token ids: there is no prompt to continue",
    "short": "no sequence of the probe has a prompt that leaves room for new tokens",
}


def prompt_tokens(
    tokens: RoutedTokens, probe: Probe, architecture: Architecture
) -> np.ndarray | str:
    """Which tokens are of the first part of their sequence; or, in words, why there is none.

    The part before the first label, where there are labels; else the first half. A router of an
    encoder or a decoder sees one side alone: the first half of that.
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
    ready: Ready,
    measurer: Measurer,
    settings: RoutingSettings,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Figures] | str, dict[str, int]]:
    """What prompts tell of what the model itself makes of them, by router; and how much that was.

    The continued prompts are replayed like any probe, so that a router is measured on them in one
    way. In place of figures stands the reason where nothing can be generated.

    Args:
        ready: the model.
        measurer: whose probe has the prompts.
        settings: how many tokens, and the seed.
        progress: hears of new tokens.
    """
    architecture, probe = measurer.architecture, measurer.probe
    prompts = choose_prompts(probe, settings.generate, context_of(measurer.config))
    problem = _problem(ready, measurer, prompts)
    if problem is not None:
        return NOTHING_TO_GENERATE[problem], {}
    ids = [s.input_ids[: s.source] for s in prompts]
    new = continue_prompts(ready.model, ids, settings.generate, settings.seed, progress)
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
    rows = np.arange(1)  # inputs of these tokens are not looked at
    again = Measurer(architecture, measurer.config, continued, groups_S, settings.replay)
    plan = again.plan(ready).of_every_token(fishers=(), sample_rows=rows)
    outcome = again.replay(ready, plan)
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
    """Sequences spread evenly over the probe, whose first parts leave room for new tokens."""
    room = None if context is None else context - count
    fitting = [
        s
        for s in probe.sequences
        if not isinstance(s, Sample) and s.tokens and (room is None or s.source <= room)
    ]
    if len(fitting) <= MOST_PROMPTS:
        return fitting
    return [fitting[i] for i in np.linspace(0, len(fitting) - 1, MOST_PROMPTS).astype(int)]


def _problem(ready: Ready, measurer: Measurer, prompts: list[Sequence]) -> str | None:
    if ready.form.body is None:
        return "alone"
    if measurer.architecture.encoder_decoder:
        return "pairs"
    if any(isinstance(s, Sample) for s in measurer.probe.sequences):
        return "samples"
    if measurer.manner.kind is not None:
        return "streamed"
    return None if prompts else "short"
