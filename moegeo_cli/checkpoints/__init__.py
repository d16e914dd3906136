"""The first step of every command: find a run's checkpoints, open their files, describe the model.

`models/` and `replay/` take the result from here. The modules, by what they do:

- find the checkpoints of a run: `discover`, with `nesting`, `step_names`, `ordering` and
  `sentinels`; `hub` for `hf://` paths; `own` for a user's own model;
- give access to one checkpoint: `checkpoint.Checkpoint`;
- open its stored tensors: `opening`, `weights.WeightIndex`, `safe_files`, `headers`, `pickles`,
  `distributed`, `gguf_file`; names of other frameworks are translated by `key_maps`;
- make the model's tensors from them: `effective.EffectiveWeights`, with `wrappers`, `quantised/`
  and `adapters/`; `accounting` checks that none is left over;
- describe the model: `architecture` from config.json and `families/`, `uneven` from the files;
- find tensors in it: `routers`, `experts`;
- read the training log: `training`; hash the checkpoint: `fingerprint`.

torch is imported only when a pickled weight file is opened or a tensor is asked for as a torch
tensor.
"""
