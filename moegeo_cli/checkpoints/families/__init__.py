"""Mixture-of-experts families, one TOML file each, named by the family's first model type.

What is known of a family was read from transformers 5.23's configuration and modelling files and
measured on tiny models: experts, K and layers are tested against every configuration class,
gradients of unselected experts were measured by hook.

types         model_type of config.json, or of the text model's part in it
keys          config keys that the family's own code reads for E, K and groups, first to last, where
              they are not the first of config_keys.py: these count where a config says more
scoring       logits -> routing distribution, a row of the scoring table;
              scoring_key: the config key that names it, `scoring` being its default
renormalised  whether the selected weights are divided by their sum: true, false, or a config
              key with its default. Top-k-then-softmax counts as renormalised.
unselected    gradient of the loss at logits of unselected experts: "zero" (exactly, or up to
              float noise, since a common normaliser cancels), "dense", or "unless-renormalised"
bias          a bias that acts on the selection only: true, false, or a config key (default true);
              bias_on: "logits" where it is not added to the scores
groups        how a group of experts is ranked where n_group and topk_group limit the
              choice: "top2" (sum of its two best) or "max"; groups_when: [key, value]
layers        which decoder layers have a router: a rule of layering.py, "unknown" for an
              encoder with a decoder
router        the router's path within a layer, in the files that save_pretrained writes
scale         config key of a factor on the combine weights
top_k         a number where the config does not say
zero_experts, shared_rows   config keys: experts without weights that the router scores as
              well; rows of the router that score shared experts
balance       config key of the balance loss coefficient that transformers applies, on condition
              of output_router_logits; absent where it applies none
pairs         true for an encoder with a decoder: a sequence becomes a source and a target
needs         config key that must be true for there to be experts at all
own_choice    why the choice cannot be computed from logits and files by the facts above
other_input   why experts are given something else than what their router's weight is given
refused       why moegeo cannot measure it rightly
note          what else to know

[torchtitan], [megatron] and [gguf] map the names that other frameworks save a model under to those
of transformers' module tree (read by key_maps.py). Sources: torchtitan 0.2.0, 0.2.1, 0.2.2 and
0.3.0, state_dict_adapter.py of each model; megatron-core 0.16.1, sharded_state_dict of each module;
gguf 0.19.0, tensor_mapping.py.

model_types   the types of the family that the framework has
architecture  of [gguf]: what the file's general.architecture says
ignored       prefixes of layers that transformers leaves out of the model too
zero          tensors that have no place there: that changes nothing while they are zero
names         transformers' name -> the framework's, a list where versions differ. `{}` is a number:
              a layer's, then an expert's. `a + b` are two tensors that transformers keeps as one,
              joined along the second dimension: gate and up of every expert. `a @ part` is a part
              of a tensor: see PARTS of tensor_parts.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

FOLDER: Any = resources.files(__package__)


@cache
def read_families() -> tuple[Mapping[str, Any], ...]:
    """The facts of every family, by file name."""
    files = [f for f in FOLDER.iterdir() if f.name.endswith(".toml")]
    return tuple(
        tomllib.loads(file.read_text(encoding="utf-8"))
        for file in sorted(files, key=lambda file: file.name)
    )
