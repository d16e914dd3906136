"""What is known of a run, its probe and its replays beside measured numbers: plain mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from moegeo_cli.records.fields import Count, about
from moegeo_cli.records.metric import Metrics

Step = Annotated[Count | None, about("optimizer step; null where the checkpoint does not say")]


Form = Literal["whole", "streamed", "parts", "own", "captured"]
MemoryKnown = Literal["trace", "widths", "config"]


class SkippedCheckpoint(TypedDict):
    """Something that looked like a checkpoint and was left out."""

    path: str
    reason: str


class RunFacts(TypedDict, total=False):
    """What a run's files say of it."""

    name: str
    layout: Annotated[str, about("how its files are laid out")]
    model_type: str | None
    architecture: Annotated[str | None, about("the class that config.json names first")]
    framework: Annotated[str | None, about("what trained it, as far as its files tell")]
    experts: Annotated[Count | None, about("E, routed experts")]
    top_k: Annotated[Count | None, about("K, experts chosen per token; null where it varies")]
    scoring: Annotated[str | None, about("how logits become scores")]
    checkpoints_found: Count
    skipped: list[SkippedCheckpoint]
    training: Annotated[Mapping[str, Any], about("training settings that interventions read")]
    log: Annotated[Sequence[Mapping[str, Any]], about("loss entries of the trainer's state")]
    notes: list[str]


class ProbeFacts(TypedDict, total=False):
    """The text that a checkpoint was measured on; losses in nats per loss token."""

    source: str
    sha256: Annotated[str, about("of its content")]
    sequences: Count
    tokens: Count
    loss_tokens: Count
    domains: Annotated[Mapping[str, Count], about("sequences by domain")]
    tokenizer: str | None
    unigram_loss: Annotated[float | None, about("what token frequencies alone would reach")]
    domain_unigram_loss: Annotated[
        Mapping[str, float], about("what token frequencies alone would reach, by domain")
    ]


class MemoryFacts(TypedDict):
    """What the replay was planned to hold."""

    form: Annotated[
        Form,
        about("how the model's weights were held"),
    ]
    by: Annotated[MemoryKnown | None, about("how its activations are known")]
    terms: Annotated[
        Mapping[str, Count] | None, about("bytes by name; null where nothing is planned")
    ]
    at_most: Annotated[
        Count | None, about("bytes held at once, beside those of the process before")
    ]
    reason: Annotated[str | None, about("why nothing is planned")]


class ReplayFacts(TypedDict, total=False):
    """How a checkpoint was measured."""

    versions: Annotated[Mapping[str, str], about("of the packages that measured it")]
    device: str
    dtype: str
    batch_size: Annotated[Count | None, about("sequences; null where tokens are counted")]
    batch_tokens: Annotated[Count | None, about("null where sequences are counted")]
    threads: Annotated[Count | None, about("null off the CPU")]
    unselected_gradient: str
    memory: MemoryFacts
    weights: Annotated[
        Mapping[str, Any] | None, about("what was done to the files' tensors to get the model's")
    ]
    no_loss: Annotated[str | None, about("why there is no loss")]
    notes: list[str]
    described: Annotated[Sequence[Mapping[str, Any]], about("routers, beside their stored arrays")]


class BaselineFacts(TypedDict):
    """What the distances are measured from."""

    kind: Literal["checkpoint", "init"] | None
    step: Step
    path: str | None
    baseline_draws: Count | None
    reason: Annotated[str | None, about("why there is none")]


class Unchanged(TypedDict, total=False):
    """What of a router is equal bit for bit at two checkpoints."""

    weights_equal: Annotated[bool, about("whether its rows are equal")]
    bias_equal: Annotated[
        bool | None, about("whether its selection bias is equal; null without one")
    ]
    logits_equal: Annotated[
        bool,
        about("the sampled logits; unequal ones under equal rows say that inputs moved"),
    ]


class RouterMove(Unchanged):
    """A router from one checkpoint to the next."""

    layer: Count
    router: str
    metrics: Metrics


class Move(TypedDict):
    """From one checkpoint to the next."""

    from_step: Step
    to_step: Step
    from_path: str
    to_path: str
    geodesic_steps: Annotated[
        list[Count | None], about("optimizer steps that the geodesic excess runs over")
    ]
    metrics: Metrics
    layers: list[RouterMove]
