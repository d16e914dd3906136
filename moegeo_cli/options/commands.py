"""The options of each command: groups of shared options, and those that the command alone has."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from moegeo_cli.keywords import Option
from moegeo_cli.options.judging import Framework, Limits, Policy, Reference
from moegeo_cli.options.measuring import (
    Baseline,
    Captures,
    CheckpointChoice,
    Compute,
    Fisher,
    Memory,
    Model,
    Placement,
    ProbeData,
    Replay,
    Storage,
    StorePlace,
)


class NoOptions(TypedDict, total=False):
    """No options."""


class Analyze(
    Replay, Captures, Baseline, Fisher, CheckpointChoice, Placement, Storage, Policy, Framework,
    Limits, Model, Reference, total=False,
):  # fmt: skip
    """Options of `analyze`."""


class Watch(
    Replay, Baseline, Fisher, Placement, Storage, Policy, Framework, Limits, Model, Reference,
    total=False,
):  # fmt: skip
    """Options of `watch`."""

    interval: Annotated[float, Option(
        30.0, "Seconds between two looks at the run's folder.", minimum=0,
    )]  # fmt: skip


class Demo(Replay, StorePlace, total=False):
    """Options of `demo`."""


class Compare(
    Replay, Baseline, Fisher, Placement, Storage, Policy, Limits, Model, total=False
):  # fmt: skip
    """Options of `compare`."""

    by: Annotated[Literal["tokens", "step", "fraction"] | None, Option(
        None, "Match checkpoints by this. Default: tokens if both runs record them, else step.",
    )]  # fmt: skip
    force: Annotated[bool, Option(
        False, "Compare even if probes or estimators differ. Differences then have no intervals.",
    )]  # fmt: skip


class Check(CheckpointChoice, Storage, Framework, Limits, Model, total=False):
    """Options of `check`."""

    quick: Annotated[bool, Option(
        False, "Read routers, biases and norms only; skip the experts.",
    )]  # fmt: skip


class Experts(Replay, Captures, Storage, Framework, Limits, Model, total=False):
    """Options of `experts`."""

    tokens: Annotated[Literal["routed", "coselected", "all"], Option(
        "routed", "Tokens on which two experts are compared: those routed to either expert "
        "(routed), to both (coselected), or all.",
    )]  # fmt: skip
    weights: Annotated[Literal["topk", "soft"], Option(
        "topk", "How tokens are weighted: by their combine weights (topk) or by the whole routing "
        "distribution (soft). The model computes the same either way.",
    )]  # fmt: skip
    rank: Annotated[float, Option(
        8.0, "Dimensions of the subspaces. Below 1: the share of variance to explain.",
    )]  # fmt: skip
    jacobian_tokens: Annotated[int, Option(
        256, "Number of tokens at which Jacobians are computed.", minimum=2,
    )]  # fmt: skip
    directions: Annotated[int | None, Option(
        None, "Random directions per token; 0 computes whole Jacobians. Default: whole Jacobians "
        "if they are cheap.", minimum=0,
    )]  # fmt: skip
    verify: Annotated[int, Option(
        0, "Apply the top N merges, then the top N prunings, to the model in memory and measure "
        "the loss. It is compared with random choices of N, and with choices by overlap and by "
        "weight cosine.", minimum=0,
    )]  # fmt: skip


class Routing(Replay, Captures, CheckpointChoice, Storage, Framework, Limits, Model, total=False):
    """Options of `routing`."""

    pairs: Annotated[int, Option(
        8192, "Number of token pairs to sample, of each kind.", minimum=16,
    )]  # fmt: skip
    generate: Annotated[int, Option(
        0, "Let the model continue up to 64 prompts by this many tokens. Each new token takes one "
        "pass over the prompts.", minimum=0,
    )]  # fmt: skip


class Invariance(ProbeData, Fisher, Compute, Memory, Model, total=False):
    """Options of `invariance`."""
