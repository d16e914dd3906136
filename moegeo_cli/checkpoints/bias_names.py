"""What families call a bias that acts on the selection of experts alone."""

from __future__ import annotations

# Of a router's module in transformers.
MODULE_NAMES = ("e_score_correction_bias", "expert_bias", "correction_bias", "balancing_biases")
# In files, where other writers have names of their own.
FILE_NAMES = (*MODULE_NAMES, "score_correction_bias", "router_bias")
