"""Names of a bias that acts on the selection of experts alone, over all families."""

from __future__ import annotations

# Attributes of router modules in transformers.
MODULE_NAMES = ("e_score_correction_bias", "expert_bias", "correction_bias", "balancing_biases")
# Tensor names in files: the same, and names of other writers.
FILE_NAMES = (*MODULE_NAMES, "score_correction_bias", "router_bias")
