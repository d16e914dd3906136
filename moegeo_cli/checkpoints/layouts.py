"""Recognise layouts by file names: torch.distributed, GGUF, and those to be converted first.

`opening` opens what can be read. For a layout that moegeo cannot read, the error raised here
names the command that converts it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.safe_files import is_there, list_names
from moegeo_cli.errors import UnsupportedLayoutError

# torch.distributed.checkpoint, as FSDP and torchtitan write it; read by `distributed`.
DISTRIBUTED = "torch-distributed"
GGUF = "gguf"  # one file in llama.cpp's format; read by `gguf_file`
FSDP_PART = "pytorch_model_fsdp_0"  # subfolder in which accelerate and the Trainer save a model
# Megatron-core names in this file the backend that wrote a checkpoint. Only torch's can be read.
_BACKEND, _TORCH = "metadata.json", "torch_dist"
_MOST_BACKEND_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ForeignLayout:
    """A layout that moegeo cannot read, and how to convert it.

    Attributes:
        name: the layout in words, for the error.
        patterns: alternatives; each is a tuple of globs that must all match in the folder.
        hint: how to convert it. `{path}` stands for the folder, `{zero}` for DeepSpeed's
            conversion command.
    """

    name: str
    patterns: tuple[tuple[str, ...], ...]
    hint: str


# The first match is reported, so more specific layouts come first.
FOREIGN_LAYOUTS: Sequence[ForeignLayout] = (
    ForeignLayout(
        "a folder of several GGUF files",
        (("*.gguf",),),
        "put the one to measure into a folder of its own; parts of one are joined with "
        "llama-gguf-split --merge FIRST.gguf OUT.gguf",
    ),
    ForeignLayout(
        "verl's shards, one a rank",
        (("model_world_size_*_rank_*.pt",), ("actor/model_world_size_*_rank_*.pt",)),
        "merge them: python -m verl.model_merger merge --backend fsdp --local_dir "
        "{path}/actor --target_dir {path}/actor/huggingface",
    ),
    ForeignLayout(
        "a DeepSpeed ZeRO checkpoint",
        (
            ("zero_to_fp32.py",),
            ("*zero_pp_rank_*_optim_states.pt",),
            ("*_model_states.pt",),
            ("global_step*/*_model_states.pt",),
        ),
        "convert it: {zero}, and copy config.json and the tokenizer into OUT",
    ),
    ForeignLayout(
        "a Megatron checkpoint",
        (
            ("mp_rank_*/model_optim_rng.pt",),
            ("mp_rank_*/model_rng.pt",),
            ("metadata.json", "common.pt"),
            ("metadata.json", ".metadata"),
            ("latest_checkpointed_iteration.txt",),
        ),
        "save it with --ckpt-format torch_dist, which moegeo reads of some families; or "
        'export it with Megatron-Bridge: python -c "from megatron.bridge import AutoBridge; '
        "AutoBridge.from_hf_pretrained('HF_MODEL').export_ckpt('{path}', 'OUT')\"",
    ),
    ForeignLayout(
        "a checkpoint of safetensors shards, one a rank, that torch has not consolidated",
        (("shard-*-model-*-of-*.safetensors",),),
        "consolidate it with consolidate_safetensors_files of "
        "torch.distributed.checkpoint._consolidate_hf_safetensors, or save with "
        "HuggingFaceStorageWriter(..., save_distributed=True, enable_consolidation=True)",
    ),
    ForeignLayout(
        "an FSDP checkpoint of one file a rank",
        (("pytorch_model_fsdp*_rank*.bin",),),
        "load it with accelerate's load_state where it was trained, and save it there with "
        "state_dict_type SHARDED_STATE_DICT, which moegeo reads",
    ),
    ForeignLayout(
        "a checkpoint of OLMo-core, or a torch.distributed checkpoint in a folder of its own",
        (("model_and_optim/.metadata",), ("model/.metadata",)),
        "export it to Hugging Face format (OLMo-core: src/examples/huggingface/"
        "convert_checkpoint_to_hf.py); or, where the model is of transformers, give the folder "
        "that holds .metadata, with --config",
    ),
    ForeignLayout(
        "NeMo's own format",
        (("*.nemo",), ("model_weights", "model_config.yaml"), ("weights", "context")),
        "export it to Hugging Face format with NeMo's exporter, then give that folder; or, where "
        "its folder weights holds .metadata and metadata.json, give that one, with --config",
    ),
    ForeignLayout(
        "a checkpoint of orbax or tensorstore (JAX)",
        (
            ("_CHECKPOINT_METADATA",),
            ("manifest.ocdbt",),
            ("*/manifest.ocdbt",),
            ("*/.zarray",),
            ("*/*/.zarray",),
        ),
        "export it to Hugging Face format where it was trained (MaxText: "
        "MaxText.utils.ckpt_conversion.to_huggingface; Levanter: levanter.main.export_lm_to_hf)",
    ),
    ForeignLayout(
        "a checkpoint of fairseq",
        (("checkpoint_last*.pt",), ("checkpoint_*-rank-*.pt",), ("checkpoint_*-shard*.pt",)),
        "convert it with the model's conversion script in transformers; or give the folder with "
        "--model PACKAGE.MODULE:CALLABLE",
    ),
    ForeignLayout(
        "an original release (consolidated weights)",
        (("consolidated*.pth",), ("consolidated*.safetensors",), ("params.json", "*.pth")),
        "convert it to Hugging Face format with the model's conversion script in transformers",
    ),
    ForeignLayout(
        "TensorFlow or Flax weights",
        (("tf_model.h5",), ("flax_model.msgpack",)),
        "load it with a transformers 4 from_pretrained(from_tf=True / from_flax=True) and save it",
    ),
    ForeignLayout(
        "a checkpoint of Lightning",
        (
            ("epoch=*.ckpt",),
            ("last.ckpt",),
            ("checkpoints/*.ckpt",),
            ("version_*/checkpoints/*.ckpt",),
            ("lightning_logs",),
        ),
        "where it was trained: MODULE.load_from_checkpoint(CKPT).model.save_pretrained(OUT); or "
        "give the folder of the .ckpt files with --model PACKAGE.MODULE:CALLABLE",
    ),
    ForeignLayout(
        "bare torch files without a Hugging Face layout",
        (("*.pt",), ("*.pth",), ("*.ckpt",)),
        "save the model with save_pretrained(), so that config.json and model.safetensors lie "
        "side by side",
    ),
)


def find_distributed(folder: Path) -> Path | None:
    """The folder of a torch.distributed checkpoint: `folder` itself, or accelerate's subfolder.

    Returns:
        None where there is none, or where another backend than torch's wrote it.
    """
    if is_there(folder / _BACKEND) and _backend(folder / _BACKEND) != _TORCH:
        return None
    for place in (folder, folder / FSDP_PART):
        if is_there(place / ".metadata") or any(n.endswith(".distcp") for n in list_names(place)):
            return place
    return folder / FSDP_PART if is_there(folder / FSDP_PART) else None


def find_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder; None where there is none, or several."""
    found = [name for name in list_names(folder) if name.endswith(".gguf")]
    return folder / found[0] if len(found) == 1 else None


def _backend(path: Path) -> Any:
    """The backend that Megatron-core names in its metadata.json; None where it names none."""
    try:
        document = json.loads(path.read_bytes()[:_MOST_BACKEND_BYTES])
    except (OSError, ValueError, RecursionError):
        return None
    return document.get("sharded_backend") if isinstance(document, dict) else None


def recognise_foreign(folder: Path) -> ForeignLayout | None:
    """The unreadable layout that a folder's files match; None where they match none."""
    for layout in FOREIGN_LAYOUTS:
        for globs in layout.patterns:
            if all(any(True for _ in folder.glob(pattern)) for pattern in globs):
                return layout
    return None


def foreign_layout_error(folder: Path, layout: ForeignLayout) -> UnsupportedLayoutError:
    """The error that names the layout and the command that converts it."""
    hint = layout.hint.replace("{path}", shlex.quote(str(folder)))
    return UnsupportedLayoutError(
        f"{folder} is {layout.name}, which moegeo does not read",
        found=", ".join(list_names(folder)[:8]),
        hint=hint.replace("{zero}", _zero(folder)),
        context={"layout": layout.name},
    )


def _zero(folder: Path) -> str:
    """DeepSpeed's command that converts a ZeRO checkpoint to safetensors.

    DeepSpeed saves its script beside the global_stepN folders.
    """
    script = "zero_to_fp32.py"
    place = folder.absolute()
    if not is_there(place / script) and is_there(place.parent / script):
        where, tag = place.parent, f" --tag {shlex.quote(place.name)}"
    elif is_there(place / script):
        where, tag = place, ""
    else:  # the script was not copied along; the installed DeepSpeed has it too
        step = bool(re.fullmatch(r"global_step\d+", place.name))
        where, tag = (place.parent, f" --tag {place.name}") if step else (place, "")
        script = "-m deepspeed.utils.zero_to_fp32"
    return f"cd {shlex.quote(str(where))} && python {script} . OUT{tag} --safe_serialization"
