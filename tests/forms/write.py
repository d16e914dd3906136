"""Writes tests/forms/files anew: one tiny model in every quantised form, by the form's own writer.

    pip install compressed-tensors==0.20.1 torchao==0.18.0 bitsandbytes==0.50.2 \
        optimum-quanto==0.2.7
    python -m tests.forms.write

Beside each checkpoint lie the values that the same library says the quantised tensors of its
first layer stand for (`NAME.reference.safetensors`), and a plain one (`plain`) that all were made
from. The files are kept in the repository, so that tests need none of these packages.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FILES = Path(__file__).parent / "files"
Tensors = dict[str, torch.Tensor]


def write_plain() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, moe_intermediate_size=40,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        num_experts=3, num_experts_per_tok=2, norm_topk_prob=True, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    model.bfloat16().save_pretrained(FILES / "plain")


def copy_as(name: str, tensors: Tensors, settings: dict[str, Any] | None) -> None:
    """A checkpoint of these tensors, with the plain one's config."""
    folder = FILES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = json.loads((FILES / "plain/config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


def keep(name: str, reference: Tensors) -> None:
    save_file({n: t.detach().float().contiguous() for n, t in reference.items() if ".0." in n},
              FILES / f"{name}.reference.safetensors")  # fmt: skip


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def by_transformers(name: str, quantisation: Any, dequantise: Callable[[Any], Any]) -> None:
    """Quantised while loading and saved by transformers; values by the library's own tensors."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        FILES / "plain", quantization_config=quantisation, device_map="cpu", dtype=torch.bfloat16
    )
    shutil.rmtree(FILES / name, ignore_errors=True)
    model.save_pretrained(FILES / name)
    found = {f"{n}.weight": dequantise(m.weight) for n, m in model.named_modules()
             if isinstance(m, torch.nn.Linear) and n.endswith("_proj")}  # fmt: skip
    keep(name, found)
    (FILES / name / "generation_config.json").unlink(missing_ok=True)


def by_bitsandbytes() -> None:
    import bitsandbytes.functional as bnb
    from transformers import BitsAndBytesConfig

    def int8(weight: Any) -> torch.Tensor:
        return bnb.int8_vectorwise_dequant(weight.data, weight.SCB)

    def four(name: str) -> Tensors:
        """From the file, in rows of a block: 0.50.2 reads rows shorter than a block wrongly."""
        held = load_file(FILES / name / "model.safetensors")
        found = {}
        for own, tensor in held.items():
            stats = {n.removeprefix(f"{own}."): t for n, t in held.items()
                     if n.startswith(f"{own}.")}  # fmt: skip
            if stats:
                state = bnb.QuantState.from_dict(stats, device="cpu")
                shape = state.shape
                state.shape = torch.Size((shape.numel() // state.blocksize, state.blocksize))
                found[own] = bnb.dequantize_4bit(tensor, state).reshape(shape)
        return found

    by_transformers("bitsandbytes-int8", BitsAndBytesConfig(load_in_8bit=True), int8)
    for kind, double in (("nf4", False), ("nf4", True), ("fp4", False)):
        settings = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double
        )
        name = f"bitsandbytes-{kind}{'-double' if double else ''}"
        by_transformers(name, settings, lambda weight: weight.data)
        keep(name, four(name))


def by_torchao() -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    for name, settings in (
        ("torchao-int8", Int8WeightOnlyConfig()), ("torchao-float8", Float8WeightOnlyConfig()),
    ):  # fmt: skip
        by_transformers(name, TorchAoConfig(settings), lambda w: w.dequantize())


def by_quanto() -> None:
    from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qint4, qint8
    from transformers import AutoModelForCausalLM

    for name, kind in (("quanto-int8", qint8), ("quanto-float8", qfloat8), ("quanto-int4", qint4)):
        model = AutoModelForCausalLM.from_pretrained(FILES / "plain", dtype=torch.float32)
        quantised = QuantizedModelForCausalLM.quantize(model, weights=kind, exclude="lm_head")
        shutil.rmtree(FILES / name, ignore_errors=True)
        quantised.save_pretrained(FILES / name)
        (FILES / name / "generation_config.json").unlink(missing_ok=True)
        (FILES / name / "README.md").unlink(missing_ok=True)
        found = {f"{n}.weight": m.weight.dequantize() for n, m in model.named_modules()
                 if hasattr(m, "weight") and hasattr(m.weight, "dequantize")
                 and n.endswith("_proj")}  # fmt: skip
        keep(name, found)


def by_compressed_tensors() -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "compressed-fp8-tensor": ("float-quantized", {"type": "float", "strategy": "tensor"}),
        "compressed-fp8-channel": ("float-quantized", {"type": "float", "strategy": "channel"}),
        "compressed-fp8-block": (
            "float-quantized",
            {"type": "float", "strategy": "block", "block_structure": [16, 16]},
        ),
        "compressed-w8a8": ("int-quantized", {"strategy": "channel"}),
        "compressed-w8a16": ("pack-quantized", {"strategy": "channel"}),
        "compressed-w4a16": (
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": 8},
        ),
        "compressed-w4a16-asymmetric": (
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": False},
        ),
        "compressed-nvfp4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 8,
             "scale_dtype": "torch.float8_e4m3fn"},
        ),
    }  # fmt: skip
    plain = load_file(FILES / "plain/model.safetensors")
    for name, (form, words) in forms.items():
        args = QuantizationArgs(**{"num_bits": 8, "symmetric": True, **words})
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
        compressor = BaseCompressor.load_from_registry(form)
        tensors: Tensors = {}
        reference: Tensors = {}
        for own, values in plain.items():
            if not is_linear(own):
                tensors[own] = values
                continue
            state: Tensors = {"weight": values.float()}
            low, high = _range(values.float(), args)
            if form.startswith("nvfp4"):
                state["weight_global_scale"] = generate_gparam(low.amin(), high.amax())
            scale, zero = calculate_qparams(
                low, high, args, global_scale=state.get("weight_global_scale")
            )
            state |= {"weight_scale": scale, "weight_zero_point": zero}
            held = type(compressor).compress(state, scheme) if not isinstance(
                compressor, type) else compressor.compress(state, scheme)  # fmt: skip
            stem = own.removesuffix("weight")
            tensors |= {f"{stem}{last}": tensor for last, tensor in held.items()}
            back = compressor.decompress(dict(held), scheme)
            reference[own] = back["weight"]
        group = json.loads(scheme.model_dump_json())
        settings = {
            "quant_method": "compressed-tensors", "format": form,
            "config_groups": {"group_0": group}, "ignore": ["lm_head", "re:.*mlp.gate$"],
        }  # fmt: skip
        copy_as(name, tensors, settings)
        keep(name, reference)


def _range(values: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of what shares a scale."""
    rows, columns = values.shape
    if args.strategy == "tensor":
        return values.min().reshape(1), values.max().reshape(1)
    if args.strategy == "channel":
        return values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(values, (0, -columns % width, 0, -rows % height))
        tiles = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width))
        return tiles.amin((1, 3)), tiles.amax((1, 3))
    groups = values.unflatten(1, (-1, args.group_size))
    return groups.amin(-1), groups.amax(-1)


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    write_plain()
    by_bitsandbytes()
    by_torchao()
    by_quanto()
    by_compressed_tensors()
