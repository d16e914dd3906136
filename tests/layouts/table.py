"""Write the table of layouts of docs/reference/layouts.md: `python -m tests.layouts.table`.

Each row is made, where possible by the layout's own writer, and opened: read, or refused with what
to run instead.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.layouts import FOREIGN_LAYOUTS
from moegeo_cli.errors import MoegeoError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "layouts.md"
PLAIN = Path(__file__).parents[1] / "forms" / "files" / "plain"
MEGATRON = Path(__file__).parent / "files" / "megatron-qwen3"
START, END = "<!-- layouts -->\n", "<!-- end of layouts -->"
HEAD = "| layout | files | read | instead |\n|---|---|---|---|\n"


def _whole(folder: Path) -> None:
    shutil.copytree(PLAIN, folder)


def _shards(folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    _config(folder)
    save_torch_state_dict(_state(), folder, max_shard_size="8KB")


def _consolidated(folder: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    _config(folder)
    _save(folder, storage_writer=HuggingFaceStorageWriter(str(folder)))


def _pickled(folder: Path) -> None:
    _config(folder)
    torch.save(_state(), folder / "pytorch_model.bin")


def _pickled_shards(folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    _config(folder)
    save_torch_state_dict(_state(), folder, max_shard_size="8KB", safe_serialization=False)


def _fsdp(folder: Path) -> None:
    _config(folder)
    _save(folder / "pytorch_model_fsdp_0", key="model")


def _distributed(folder: Path) -> None:
    _config(folder)
    _save(folder)


def _megatron(folder: Path) -> None:
    shutil.copytree(MEGATRON, folder)


def _gguf(folder: Path) -> None:
    from tests.layouts.gguf_writer import Kind, build, write

    write(build("olmoe"), folder, Kind.Q8_0)


def _adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(PLAIN, folder.with_name("base"))
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(folder)


def _pointer(folder: Path) -> None:
    shutil.copytree(PLAIN, folder)
    (folder / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n"
    )


def _cache(folder: Path) -> None:
    shutil.copytree(PLAIN, folder / "snapshots" / ("0a" * 20))


Make = Callable[[Path], None]
# layout, its files in words, who makes it here
ROWS: tuple[tuple[str, str, Make], ...] = (
    ("safetensors", "`model.safetensors`", _whole),
    ("safetensors, sharded", "shards and `model.safetensors.index.json`", _shards),
    ("safetensors of torch.distributed", "as `HuggingFaceStorageWriter` writes them",
     _consolidated),
    ("pytorch", "`pytorch_model.bin`", _pickled),
    ("pytorch, sharded", "shards and `pytorch_model.bin.index.json`", _pickled_shards),
    ("FSDP of accelerate and the Trainer, `SHARDED_STATE_DICT`",
     "`pytorch_model_fsdp_0/` with `.metadata` and `.distcp`", _fsdp),
    ("torch.distributed.checkpoint, torchtitan", "`.metadata` and `.distcp`", _distributed),
    ("Megatron-core, `--ckpt-format torch_dist`", "the same, `metadata.json` and `common.pt`",
     _megatron),
    ("GGUF", "one `.gguf`", _gguf),
    ("adapter of peft", "`adapter_config.json`, `adapter_model.safetensors` or `.bin`", _adapter),
    ("Git LFS pointers", "a file of 130 bytes in the place of weights", _pointer),
    ("a model's folder in the Hub's cache", "`models--ORG--NAME/snapshots`", _cache),
)  # fmt: skip


def table() -> str:
    """The table as it stands in the page."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Each layout, made and opened."""
    for name, files, make in ROWS:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "PATH"
            make(folder)
            yield name, files, *_said(folder)
    for layout in FOREIGN_LAYOUTS:
        words = [" with ".join(f"`{glob}`" for glob in globs) for globs in layout.patterns]
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "PATH"
            for glob in layout.patterns[0]:
                place = folder / glob.replace("*", "0")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(b"0")
            if layout is FOREIGN_LAYOUTS[0]:
                (folder / "1.gguf").write_bytes(b"0")
            yield layout.name, ", ".join(words), *_said(folder)


def _said(folder: Path) -> tuple[str, str]:
    """Whether it is read, and what to run instead."""
    try:
        checkpoint = open_run(folder).newest
        if checkpoint.weights.obstacle is not None:
            raise checkpoint.weights.obstacle
    except MoegeoError as error:
        hint = str(error.hint).replace(f"{folder.parent}/", "").replace("0a" * 20, "HASH")
        return "refused", hint.replace("|", "\\|")
    return checkpoint.layout, ""


def _state() -> dict[str, torch.Tensor]:
    return load_file(PLAIN / "model.safetensors")


def _config(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(PLAIN / "config.json", folder)


def _save(folder: Path, key: str | None = None, **options: object) -> None:
    from tests.sharding import save_state

    save_state(_state() if key is None else {key: _state()}, folder, **options)


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"wrote the table of {PAGE}")
