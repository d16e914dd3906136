"""LoRA adapters: read by moegeo itself, and merged into a base model's tensors in memory."""
