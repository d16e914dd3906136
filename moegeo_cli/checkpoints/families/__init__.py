"""Facts about each mixture-of-experts family: one TOML file a family, named by a model type of it.

`architecture` combines these facts with a checkpoint's config.json. Sources: the configuration and
modelling files of transformers 5.23, and measurements on tiny models. Experts, K and layers are
tested against every configuration class; gradients of unselected experts were measured by hooks.

types         `model_type` values of the family, in config.json or in its text model's part
keys          config keys that the family's own code reads for E, K and groups, in its order,
              where they are not the first ones in config_keys.py. They count over other keys.
scoring       the scoring function, a name in scorings/;
              scoring_key: the config key that names it; `scoring` is then the default
renormalised  whether the selected weights are divided by their sum: true, false, or
              [config key, default]. Top-k followed by softmax counts as renormalised.
unselected    gradient of the loss at logits of unselected experts: "zero" (exactly, or up to
              rounding, since a common normaliser cancels), "dense", or "unless-renormalised"
bias          whether a bias acts on the selection only: true, false, or a config key (default
              true); bias_on: "logits" where it is added to the logits, not to the scores
groups        how a group of experts is ranked where n_group and topk_group limit the
              selection: "top2" (sum of its two best scores) or "max";
              groups_when: [config key, value] without which there are no groups
layers        which decoder layers have a router: a rule of layering.py, or "unknown" for an
              encoder with a decoder
router        the router's path within a layer, in the files that save_pretrained writes
scale         config key of a factor on the combine weights
top_k         K, where the config does not say it
zero_experts  config key: number of experts without weights that the router scores too;
              extra_experts: the same, as a number
shared_rows   config key: number of rows of the router that score shared experts
balance       config key of the coefficient of the balance loss that transformers applies if
              output_router_logits is true; absent where it applies none
pairs         true for an encoder with a decoder: a sequence becomes a source and a target
needs         config key that must be true for the model to have experts
choice_differs        why the selected experts do not follow from logits and files by these facts
expert_input_differs  why experts get another input than the router's weight
refused       why moegeo cannot measure the family correctly
note          a remark for reports

[torchtitan], [megatron] and [gguf] map the tensor names of other frameworks to those of
transformers (read by key_maps.py). Sources: torchtitan 0.2.0, 0.2.1, 0.2.2 and 0.3.0,
state_dict_adapter.py of each model; megatron-core 0.16.1, sharded_state_dict of each module;
gguf 0.19.0, tensor_mapping.py.

model_types   the model types of the family that the framework supports
architecture  [gguf] only: the file's general.architecture
ignored       prefixes of layers that transformers leaves out of the model
zero          tensors that transformers' model lacks; leaving them out is correct while they are 0
names         transformers' name -> the framework's name, or a list where versions differ. `{}` is
              a number: first the layer's, then the expert's. `a + b` are two tensors that
              transformers joins along the second dimension (gate and up of every expert).
              `a @ part` is a part of a tensor: see PARTS of tensor_parts.py.
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
