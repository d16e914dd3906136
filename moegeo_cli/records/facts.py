"""Facts in a record beside the metrics: about the run, the probe, the replay and the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from moegeo_cli.records.fields import Count, about
from moegeo_cli.records.metric import Metrics

Step = Annotated[Count | None, about("optimizer step; null if the checkpoint does not say")]


Form = Literal["whole", "streamed", "parts", "own", "captured"]
MemoryKnown = Literal["trace", "widths", "config"]


class SkippedCheckpoint(TypedDict):
    """A folder or file that looked like a checkpoint and was left out."""

    path: str
    reason: str


class RunFacts(TypedDict, total=False):
    """Facts about a run from its files."""

    name: str
    layout: Annotated[str, about("how its files are laid out")]
    model_type: str | None
    architecture: Annotated[str | None, about("the class that config.json names first")]
    framework: Annotated[str | None, about("the framework that trained it; null if not known")]
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
    sha256: Annotated[str, about("hash of its content")]
    sequences: Count
    tokens: Count
    loss_tokens: Count
    domains: Annotated[Mapping[str, Count], about("sequences by domain")]
    tokenizer: str | None
    unigram_loss: Annotated[float | None, about("loss of a model of the token frequencies alone")]
    domain_unigram_loss: Annotated[
        Mapping[str, float], about("loss of a model of the token frequencies alone, by domain")
    ]


class MemoryFacts(TypedDict):
    """The planned memory of the replay."""

    form: Annotated[
        Form,
        about("how the model's weights were held"),
    ]
    by: Annotated[MemoryKnown | None, about("how the size of its activations is known")]
    terms: Annotated[
        Mapping[str, Count] | None, about("bytes by name; null if nothing was planned")
    ]
    at_most: Annotated[
        Count | None,
        about("largest number of bytes held at once, in addition to those before the replay"),
    ]
    reason: Annotated[str | None, about("why nothing was planned")]


class ReplayFacts(TypedDict, total=False):
    """How a checkpoint was replayed."""

    versions: Annotated[Mapping[str, str], about("versions of the packages that measured it")]
    device: str
    dtype: str
    batch_size: Annotated[
        Count | None, about("sequences per batch; null if batch_tokens limits a batch")
    ]
    batch_tokens: Annotated[
        Count | None, about("tokens per batch; null if batch_size limits a batch")
    ]
    threads: Annotated[Count | None, about("CPU threads; null on other devices")]
    unselected_gradient: str
    memory: MemoryFacts
    weights: Annotated[
        Mapping[str, Any] | None, about("what was done to the files' tensors to get the model's")
    ]
    no_loss: Annotated[str | None, about("why there is no loss")]
    notes: list[str]
    described: Annotated[Sequence[Mapping[str, Any]], about("routers, beside their stored arrays")]


class BaselineFacts(TypedDict):
    """The baseline, with which checkpoints are compared."""

    kind: Literal["checkpoint", "init"] | None
    step: Step
    path: str | None
    baseline_draws: Count | None
    reason: Annotated[str | None, about("why there is none")]


class Unchanged(TypedDict, total=False):
    """What is equal, bit for bit, in a router at two checkpoints."""

    weights_equal: Annotated[bool, about("whether its rows are equal")]
    bias_equal: Annotated[
        bool | None, about("whether its selection bias is equal; null without one")
    ]
    logits_equal: Annotated[
        bool,
        about("whether the sampled logits are equal; if only the rows are, the inputs changed"),
    ]


class RouterMove(Unchanged):
    """How a router changed from one checkpoint to the next."""

    layer: Count
    router: str
    metrics: Metrics


class Move(TypedDict):
    """How all routers changed from one checkpoint to the next."""

    from_step: Step
    to_step: Step
    from_path: str
    to_path: str
    geodesic_steps: Annotated[
        list[Count | None], about("optimizer steps of the checkpoints behind the geodesic excess")
    ]
    metrics: Metrics
    layers: list[RouterMove]
