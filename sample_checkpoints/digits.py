"""A small vision model with experts, and its training on real images: scikit-learn's digits.

It is a model of its own, in no library: `build` is what `moegeo analyze --model` is given. An
image of 8 × 8 pixels becomes 16 patches; in each of two blocks a patch attends to the others
and goes through two of eight experts. The router is a plain linear layer, and its block chooses.

python -m sample_checkpoints.digits

Legend: B images, N patches of an image, T = B·N, D width, E experts, K chosen per patch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "width": 24,
    "hidden": 16,
    "blocks": 2,
    "heads": 2,
    "classes": 10,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "scoring_func": "softmax",
}
STEPS, SAVE_AT, BATCH, RATE, BALANCE = 600, (0, 200, 600), 64, 0.004, 0.02
HELD_OUT = 360  # images of the probe, never trained on


def build(config: dict[str, Any] | None) -> nn.Module:
    """The model that a checkpoint's config.json describes."""
    return Digits(**{key: (config or CONFIG)[key] for key in CONFIG})


class Mixture(nn.Module):
    """Experts of two matrices each; a linear router gives the logits, this block chooses."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        self.logits_TE = self.router(x_TD)
        weight_TK, chosen_TK = self.logits_TE.softmax(-1).topk(self.chosen, dim=-1)
        weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        mix_TE = torch.zeros_like(self.logits_TE).scatter(1, chosen_TK, weight_TK)
        inner = F.gelu(torch.einsum("td,edh->teh", x_TD, self.up))
        return torch.einsum("te,teh,ehd->td", mix_TE, inner, self.down)

    def balance(self) -> torch.Tensor:
        """Switch's balance loss: 1 where every expert has the same load."""
        p_TE = self.logits_TE.softmax(-1)
        load_E = F.one_hot(p_TE.topk(self.chosen, dim=-1).indices, p_TE.shape[1]).sum(1)
        return p_TE.shape[1] * (load_E.float().mean(0) / self.chosen * p_TE.mean(0)).sum()


class Block(nn.Module):
    """Attention between patches, then the experts."""

    def __init__(self, width: int, hidden: int, heads: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_experts = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads
        self.mixture = Mixture(width, hidden, experts, chosen)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        batch, patches, width = x_BND.shape
        parts = self.qkv(self.norm_attention(x_BND)).reshape(batch, patches, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x_BND = x_BND + self.out(mixed.reshape(x_BND.shape))
        rows_TD = self.norm_experts(x_BND).reshape(-1, width)
        return x_BND + self.mixture(rows_TD).reshape(x_BND.shape)


class Digits(nn.Module):
    """Images in, ten class logits out."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        hidden: int,
        blocks: int,
        heads: int,
        classes: int,
        num_experts: int,
        num_experts_per_tok: int,
        scoring_func: str,
    ) -> None:
        super().__init__()
        if scoring_func != "softmax":
            raise ValueError(f"scoring_func {scoring_func!r}")
        patches = (image_size // patch_size) ** 2
        self.embed = nn.Conv2d(1, width, patch_size, stride=patch_size)
        self.places = nn.Parameter(torch.randn(patches, width) * 0.1)
        self.blocks = nn.ModuleList(
            Block(width, hidden, heads, num_experts, num_experts_per_tok) for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x_BND = self.embed(pixel_values).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x_BND = block(x_BND)
        logits: torch.Tensor = self.head(self.norm(x_BND.mean(1)))
        return logits


def load_images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All images as (image, 1, 8, 8) between 0 and 1 and their digits, shuffled.

    The probe is the first HELD_OUT of them.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    digits = torch.from_numpy(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order], digits[order]


def write_probe(path: Path, images: torch.Tensor, digits: torch.Tensor) -> None:
    """The held-out images as a probe file; 16 gray values are exact in float16."""
    tensors = {
        "pixel_values": images.half().contiguous(),
        "labels": digits.contiguous(),
        "domains": digits.clone(),
    }
    names = json.dumps([f"digit {d}" for d in range(10)])
    patches = (CONFIG["image_size"] // CONFIG["patch_size"]) ** 2
    save_file(tensors, path, metadata={"positions": str(patches), "domains": names})


def train(output: Path, seed: int = 0) -> float:
    """Train, leaving checkpoints in `output`; the accuracy on the probe's images."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, digits = load_images()
    write_probe(output / "probe.safetensors", images[:HELD_OUT], digits[:HELD_OUT])
    held_images, held_digits = images[:HELD_OUT], digits[:HELD_OUT]
    images, digits = images[HELD_OUT:], digits[HELD_OUT:]
    model = build(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    _save(model, output, 0)
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[rows]), digits[rows])
        balance = sum(block.mixture.balance() for block in model.blocks)
        optimizer.zero_grad()
        (loss + BALANCE * balance).backward()
        optimizer.step()
        if step in SAVE_AT:
            _save(model, output, step)
    with torch.no_grad():
        right = (model(held_images).argmax(-1) == held_digits).float().mean()
    return float(right)


def _save(model: nn.Module, output: Path, step: int) -> None:
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "digits-moe", help="the run's folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=".digits-") as work:
        accuracy = train(Path(work), options.seed)
        if options.output.exists():
            shutil.rmtree(options.output)
        shutil.copytree(work, options.output)
    print(f"{options.output.name}: {accuracy:.1%} of the held-out images are right")


if __name__ == "__main__":
    main()
