"""The result of `moegeo inspect`: its JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from moegeo_cli.records.facts import SkippedCheckpoint, Step
from moegeo_cli.records.fields import OMIT_IF_NONE, Count, about


class AdapterMove(TypedDict):
    """A router, or the experts of a layer, that an adapter changes."""

    part: Literal["router", "experts"]
    layer: Count | None
    relative: Annotated[
        float | None, about("Frobenius norm of the change over norm of the unchanged weight")
    ]
    experts: Annotated[Count | None, about("experts read for `relative`; null for a router")]
    of: Annotated[Count | None, about("experts that it changes; null for a router")]


class AdapterFacts(TypedDict):
    """The adapter that was merged into the weights."""

    merged: Annotated[str, about("what was merged into what, in words")]
    base: Annotated[str | None, about("the base model that its config names")]
    moves: Annotated[list[AdapterMove] | None, about("null if the weights cannot be read")]


class WeightsFacts(TypedDict):
    """How the model's tensors were obtained from the files' tensors."""

    scheme: Annotated[list[str], about("how quantised tensors were read")]
    dequantised: Annotated[Count, about("number of quantised tensors")]
    adapter: AdapterFacts | None
    unwrapped: Annotated[list[str], about("parts of names that wrappers added, and are taken off")]
    unused: Annotated[Mapping[str, Count], about("number of tensors left out, by reason")]


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """A router among the tensors."""

    layer: Annotated[Count | None, about("index of the decoder layer")]
    router: Annotated[str, about("name of its weight")]
    shape: Annotated[tuple[Count, ...], about("as stored")]
    dtype: Annotated[str, about("in the words of safetensors: F32, BF16")]
    bias: Annotated[str | None, about("name of the bias of its logits")]
    selection_bias: Annotated[str | None, about("name of the bias that only selects experts")]
    main: Annotated[bool, about("false for a router of another part, such as a draft head")]


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """A checkpoint of a run."""

    step: Step
    path: str
    layout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionRecord:
    """The document that `moegeo inspect --format json` prints."""

    kind: Literal["checkpoint", "run"]
    name: str
    inspected: Annotated[
        str | None, about("the checkpoint of the run that is described"), OMIT_IF_NONE
    ] = None
    step: Step
    layout: Annotated[str, about("how its files are laid out")]
    complete: bool
    files: tuple[str, ...]
    bytes: Annotated[Count, about("of its weight files")]
    left_out: Annotated[
        Mapping[str, Count], about("number of saved entries that are not the model's, by key")
    ]
    config: Annotated[str, about("path of config.json, relative to the checkpoint's folder")]
    tensors: Annotated[Count, about("stored tensors")]
    parameters: Annotated[Count, about("elements of the model's tensors")]
    dtypes: Annotated[Mapping[str, Count], about("stored elements by dtype")]
    weights: WeightsFacts
    model_type: str
    architecture: Annotated[str | None, about("the class that config.json names first")]
    known: Annotated[
        bool | None, about("whether moegeo has a file for the family; null for a dense model")
    ]
    layers: Annotated[Count | None, about("decoder layers")]
    experts: Annotated[Count | None, about("E, routed experts")]
    top_k: Annotated[
        Count | tuple[Count, ...] | None,
        about("K, experts chosen per token; a list by layer if it varies"),
    ]
    scoring: Annotated[str | None, about("how logits become scores")]
    renormalised: Annotated[bool | None, about("whether the weights of K experts add up to 1")]
    selection_bias: Annotated[bool | None, about("whether a bias is used for the selection only")]
    groups: Annotated[tuple[Count, ...] | None, about("groups of experts, and how many are chosen")]
    unselected_gradient: Annotated[
        str | None,
        about("gradient at logits of unselected experts: zero, dense, or verify if not known"),
    ]
    balance_loss_key: Annotated[str | None, about("the config's key of the balance loss")]
    routers_expected: Annotated[Count | None, about("null if the config does not say")]
    routers_found: Count
    notes: tuple[str, ...]
    framework: Annotated[str | None, about("the training framework, if its files show it")]
    tokens: Annotated[Count | None, about("tokens trained on so far; null if not recorded")]
    settings: Annotated[Mapping[str, Any], about("training settings that interventions read")]
    problem: Annotated[str | None, about("the error that a measurement would raise")]
    routers: tuple[RouterFacts, ...]
    checkpoints: Annotated[
        tuple[ListedCheckpoint, ...] | None, about("of a run, by step"), OMIT_IF_NONE
    ] = None
    skipped: Annotated[
        tuple[SkippedCheckpoint, ...] | None, about("left out of a run"), OMIT_IF_NONE
    ] = None
