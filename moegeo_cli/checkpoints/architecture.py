"""Describe a model's routers from config.json: experts, K, scoring, selection, layers.

Replay, measuring and reports take the result, an `Architecture`. The facts about each family lie
in families/. A model type that is not there is read by the config keys that families share. Its
`known` is false and its scoring is None; replay then verifies what it measures, or refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moegeo_cli.checkpoints.config_facts import (
    bias_rule,
    count_layers,
    experts_by_layer,
    find_facts,
    find_groups,
    flag,
    parse_top_k,
    real_number,
    unselected_gradient,
    whole_number,
)
from moegeo_cli.checkpoints.config_keys import HIDDEN_KEYS, first_integer
from moegeo_cli.checkpoints.layering import list_moe_layers
from moegeo_cli.checkpoints.text_part import families_by_type, find_text
from moegeo_cli.errors import DenseModelError, ShapeError, UnsupportedArchitectureError
from moegeo_cli.scorings import names_in_configs

MOST_LAYERS = 10_000  # far above any model: protects against a damaged or hostile config


@dataclass(frozen=True, slots=True)
class Selection:
    """How a router selects K experts from the scores, and weighs them.

    Attributes:
        bias: whether a bias acts on the selection but not on the combine weights.
        bias_on: what that bias is added to: "scores" or "logits".
        groups: (n_group, topk_group) where only experts of the best groups can be selected.
        group_score: how a group is ranked: "top2" (sum of its two best scores) or "max".
        renormalised: whether the selected weights are divided by their sum; None if not known.
        scale: factor on the combine weights.
    """

    bias: bool = False
    bias_on: str = "scores"
    groups: tuple[int, int] | None = None
    group_score: str | None = None
    renormalised: bool | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Architecture:
    """The routers of one model, as its config describes them.

    Attributes:
        model_type: `model_type` of the config.
        text_type: `model_type` of the config's part that describes the model with the experts.
        known: whether families/ has the type.
        experts: E, the number of experts that compete for a token, zero experts included. Where
            layers differ, the largest number in the config.
        top_k: K, the experts selected per token; None where layers differ or it is not known.
        hidden: hidden size; None where not known.
        layers: number of layers; None where not known.
        moe_layers: the layers with a router; None where the config does not say.
        scoring: name of the scoring function; None where not known.
        selection: how experts are selected.
        unselected_gradient: gradient of the loss at logits of unselected experts: "zero",
            "dense", or "verify" where it is not known.
        router_path: the router's path within a layer, in saved files.
        router_rows: rows of the router's weight: E, plus rows that score shared experts.
        hash_layers: layers that dispatch tokens by a hash of their id.
        top_k_by_layer: K by layer where layers differ.
        experts_by_layer: (layer, E) where layers differ.
        zero_experts: experts without weights.
        balance_key: config key of the balance loss that transformers applies when
            output_router_logits is true; None where it applies none.
        encoder_decoder: whether the model has an encoder and a decoder.
        choice_differs: why the selected experts do not follow from the logits alone; else None.
        expert_input_differs: why experts get another input than the router's weight; else None.
        refused: why moegeo cannot measure the family; else None.
        notes: remarks for reports.
        conflicts: which config keys contradict each other, and which of them count.
    """

    model_type: str
    text_type: str
    known: bool
    experts: int
    top_k: int | None
    hidden: int | None
    layers: int | None
    moe_layers: tuple[int, ...] | None
    scoring: str | None
    selection: Selection
    unselected_gradient: str
    router_path: str | None = None
    router_rows: int = 0
    hash_layers: tuple[int, ...] = ()
    top_k_by_layer: tuple[int, ...] | None = None
    experts_by_layer: tuple[tuple[int, int], ...] | None = None
    zero_experts: int = 0
    balance_key: str | None = None
    encoder_decoder: bool = False
    choice_differs: str | None = None
    expert_input_differs: str | None = None
    refused: str | None = None
    notes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    def experts_in(self, layer: int | None) -> int:
        """How many experts compete in a layer."""
        return dict(self.experts_by_layer or ()).get(layer or 0, self.experts)

    def rows_in(self, layer: int | None) -> int:
        """How many rows the router's weight has in a layer."""
        return self.router_rows - self.experts + self.experts_in(layer)

    def top_k_in(self, layer: int | None) -> int | None:
        """How many experts a layer selects per token; None where not known."""
        by_layer = self.top_k_by_layer
        if by_layer is not None and layer is not None and layer < len(by_layer):
            return by_layer[layer]
        return self.top_k


def describe_architecture(config: Mapping[str, Any], *, refuse: bool = True) -> Architecture:
    """Describe the routers of a config.json.

    Args:
        config: the parsed config.json.
        refuse: raise for a family that cannot be measured; otherwise `refused` of the result
            gives the reason.

    Raises:
        DenseModelError: the config has no routed experts.
        ShapeError: a number of experts, layers or K is impossible.
        UnsupportedArchitectureError: the family cannot be measured, its scoring is unknown, or
            the config is not transformers'.
    """
    model_type = str(config.get("model_type") or "unknown")
    text, text_type = find_text(config, model_type)
    family = families_by_type().get(text_type)
    facts: Mapping[str, Any] = family or {}
    stated = find_facts(text, facts)
    experts = stated["experts"].value
    listed: list[int] = []
    if isinstance(experts, list):  # one number per layer
        listed = experts if all(type(n) is int for n in experts) else []
        experts = max((n for n in experts if type(n) is int), default=0)
    needs = facts.get("needs")
    off = needs is not None and needs in text and not text[needs]
    if isinstance(experts, str | float):
        raise ShapeError(
            "the number of experts in config.json is not a whole number", found=repr(experts)[:80]
        )
    if experts is None and "model_type" not in config and isinstance(config.get("model"), Mapping):
        raise _other_config_error(config)
    if type(experts) is not int or experts < 2 or off:
        raise DenseModelError(
            f"{model_type} is a dense model: its config asks for no routed experts",
            found=f"{experts} experts" + (f", {needs} is off" if off else ""),
            hint="give a mixture-of-experts checkpoint",
            context={"model_type": model_type},
        )
    refused = facts.get("refused")
    if refused and refuse:
        raise UnsupportedArchitectureError(
            f"{text_type} cannot be measured: {refused}",
            found=f"{experts} experts",
            hint="`moegeo inspect` still describes the checkpoint",
            context={"model_type": text_type},
        )
    zero = whole_number(text, facts.get("zero_experts")) + int(facts.get("extra_experts", 0))
    shared_rows = whole_number(text, facts.get("shared_rows"))
    renormalised = flag(text, facts.get("renormalised"))
    rule = facts.get("layers", "guess")
    layers = None if rule == "unknown" else count_layers(text, text_type)
    if layers is not None and layers > MOST_LAYERS:
        raise ShapeError(
            f"{model_type}: the config asks for more layers than any model has",
            found=f"{layers:,} layers",
        )
    moe_layers, hash_layers = list_moe_layers(text, layers, rule)
    asked = stated["top_k"].value
    top_k, by_layer = parse_top_k(facts.get("top_k") or asked)
    chosen = [top_k] if top_k is not None else list(by_layer or ())
    if (type(asked) is int and asked < 1) or any(k > experts + zero for k in chosen):
        raise ShapeError(
            f"{model_type}: the config's number of experts per token is impossible",
            found=f"{asked} of {experts + zero} experts",
        )
    scoring = facts.get("scoring")
    scoring_key = facts.get("scoring_key", "" if family else "scoring_func")
    if isinstance(text.get(scoring_key), str):
        scoring = text[scoring_key]
    if text_type == "cohere2_moe" and scoring == "softmax":
        renormalised = True  # top-k, then softmax; the config's flag is for sigmoid only
    if scoring is not None and scoring not in names_in_configs() and not refused and refuse:
        raise UnsupportedArchitectureError(
            f"{text_type} scores experts by {scoring!r}, which moegeo does not know",
            found=f"{scoring_key} = {scoring!r} in config.json",
            hint=f"known: {', '.join(names_in_configs())}",
            context={"model_type": text_type, "scoring": scoring},
        )
    conflicts = [
        c
        for fact in stated.values()
        if (c := fact.conflict(text_type if family else None)) is not None
    ]
    notes = [*([facts["note"]] if "note" in facts else []), *conflicts]
    if not chosen:
        notes.append("config.json does not say how many experts a token chooses")
    if family is None:
        notes.append("not in moegeo's table: read by the config keys that families share")
    return Architecture(
        model_type=model_type,
        text_type=text_type,
        known=family is not None,
        experts=experts + zero,
        top_k=top_k,
        hidden=first_integer(text, HIDDEN_KEYS),
        layers=layers,
        moe_layers=moe_layers,
        scoring=names_in_configs().get(scoring, scoring) if scoring is not None else None,
        selection=Selection(
            bias=bool(flag(text, bias_rule(facts))),
            bias_on=facts.get("bias_on", "scores"),
            groups=find_groups(text, facts),
            group_score=facts.get("groups") if find_groups(text, facts) else None,
            renormalised=renormalised,
            scale=real_number(text, facts.get("scale", "routed_scaling_factor"), 1.0),
        ),
        unselected_gradient=unselected_gradient(facts, renormalised),
        router_path=facts.get("router"),
        router_rows=experts + zero + shared_rows,
        hash_layers=hash_layers,
        top_k_by_layer=by_layer,
        experts_by_layer=experts_by_layer(listed, layers, moe_layers),
        zero_experts=zero,
        balance_key=facts.get("balance"),
        encoder_decoder=bool(facts.get("pairs", config.get("is_encoder_decoder") is True)),
        choice_differs=facts.get("choice_differs"),
        expert_input_differs=facts.get("expert_input_differs"),
        refused=refused,
        notes=tuple(notes),
        conflicts=tuple(conflicts),
    )


def _other_config_error(config: Mapping[str, Any]) -> UnsupportedArchitectureError:
    """The error for a training framework's config, which describes the model under `model`."""
    return UnsupportedArchitectureError(
        "config.json is not of transformers: it has no model_type",
        found=f"keys {', '.join(list(config)[:8])}",
        hint="export the checkpoint to Hugging Face format (OLMo-core: src/examples/huggingface/"
        "convert_checkpoint_to_hf.py), or give the model's own config.json with --config",
    )
