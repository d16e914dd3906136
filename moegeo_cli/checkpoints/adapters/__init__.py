"""LoRA adapters of peft: read without peft, and merged into the base model's tensors in memory.

`finding` finds the adapter of a checkpoint, `parts` sorts its tensors, `merging` matches them with
the base model's tensors, and `changes` computes the merged values. `effective.EffectiveWeights`
calls them when a tensor is read.
"""
