"""`RowBuffer`: the recorded rows of a capture, and the file that they are written to.

Legend: B sequences of a batch, N tokens of a sequence, D router input width, E experts, K experts
selected per token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from moegeo_cli.captures.files import FORMAT, VERSION
from moegeo_cli.errors import OutputError, UsageError
from moegeo_cli.replay.reading import RouterCall
from moegeo_cli.store.files import write_atomic_by


class RowBuffer:
    """The rows of a capture in memory, one row a token and router.

    Args:
        max_tokens: largest number of tokens. Whole sequences are kept; if the first one alone is
            longer, its start is kept.

    Attributes:
        rows: name of a tensor of the file (see `files`) -> its parts, one a forward pass.
        tokens: number of tokens.
    """

    def __init__(self, max_tokens: int) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {}
        self.tokens = 0
        self._max_tokens = max_tokens
        self._stopped = False  # whether a sequence did not fit
        self._training = False
        self._sequences = 0
        self._domains: list[str] = []
        self._named = False  # whether a domain was ever given

    @property
    def full(self) -> bool:
        """Whether no further tokens are kept."""
        return self._stopped or self.tokens >= self._max_tokens

    def add(
        self,
        calls: Mapping[str, RouterCall],
        inputs: Mapping[str, torch.Tensor],
        domain: str | None,
        *,
        training: bool,
    ) -> None:
        """Add the rows of one forward pass, without padding, as far as they fit.

        Args:
            calls: module path of a router -> its call.
            inputs: the model's input tensors by name. The first axis of `input_ids`, or else of
                the first tensor, is the sequences. `attention_mask` (B, N) marks padding with 0.
            domain: name of the domain of these sequences; None if not known.
            training: whether the model is in training mode.

        Raises:
            UsageError: it is not known which rows belong to which sequence, or the tensors are
                others than in earlier passes. Nothing is added then.
        """
        first = inputs.get("input_ids", next(iter(inputs.values()), None))
        counts = {len(call.x_ND) for call in calls.values()}
        if first is None or not len(first) or len(counts) != 1 or next(iter(counts)) % len(first):
            raise UsageError(
                f"routers saw {sorted(counts)} rows of {0 if first is None else len(first)} "
                "sequences: which rows belong to which sequence is not known",
                hint="give the model its batch as a tensor whose first axis is the sequences",
            )
        rows = next(iter(counts))
        width = rows // len(first)
        real_BN = torch.ones(len(first), width, dtype=torch.bool)
        mask = inputs.get("attention_mask")
        if mask is not None and tuple(mask.shape) == (len(first), width):
            real_BN = mask.detach().cpu().bool()
        kept, full = self._find_fitting_rows(real_BN)
        if not bool(kept.any()):  # nothing but padding, or nothing that still fits
            self._stopped = full
            return
        flat = kept.reshape(-1).nonzero().squeeze(1)
        name = domain or "other"
        domains = self._domains if name in self._domains else [*self._domains, name]
        sequence_BN = torch.arange(len(first))[:, None].expand(-1, width) + self._sequences
        found = {
            "sequence": sequence_BN.reshape(-1),
            "domains": torch.full((rows,), domains.index(name)),
        }
        if first.ndim == 2 and first.shape[1] == width and not first.is_floating_point():
            found["token_ids"] = first.reshape(-1).long()
        for path, call in calls.items():
            found[f"router.{path}.inputs"] = call.x_ND
            found[f"router.{path}.logits"] = call.logits_NE.reshape(rows, -1)
            if call.observed and call.selected_NK.shape[1]:
                found[f"router.{path}.selected"] = call.selected_NK.int()
                found[f"router.{path}.weights"] = call.weights_NK
        self._check_same_form(found, rows)
        chosen = {key: _select_rows(tensor, flat) for key, tensor in found.items()}
        for key, tensor in chosen.items():
            self.rows.setdefault(key, []).append(tensor)
        self._domains, self._named = domains, self._named or domain is not None
        self._training |= training
        self._sequences += len(first)
        self.tokens += len(flat)
        self._stopped = full

    def write(self, path: Path, *, step: int | None, fingerprint: str | None) -> None:
        """Write the rows to a file, completely or not at all, and drop them.

        Args:
            path: the file.
            step: training step of the model; None if not known.
            fingerprint: fingerprint of the model's checkpoint; None if not known.

        Raises:
            OutputError: the file cannot be written.
        """
        facts = {
            "version": VERSION, "step": step, "fingerprint": fingerprint,
            "training": self._training, "domains": self._domains if self._named else None,
        }  # fmt: skip
        rows, self.rows = self.rows, {}
        if not self._named:
            del rows["domains"]
        known = {key: value for key, value in facts.items() if value is not None}
        metadata = {FORMAT: json.dumps(known, sort_keys=True)}

        def write(temporary: Path) -> None:
            try:
                tensors = {name: torch.cat(parts) for name, parts in sorted(rows.items())}
                save_file(tensors, temporary, metadata=metadata)
            except Exception as error:  # safetensors raises its own error for a full disk
                raise OutputError(f"{path} cannot be written", found=str(error)) from error

        write_atomic_by(path, write)

    def _check_same_form(self, found: Mapping[str, torch.Tensor], rows: int) -> None:
        """Check that all tensors of a pass have `rows` rows, and the form of earlier passes.

        Raises:
            UsageError: they have not; rows of the file would not belong together.
        """
        hint = "capture passes of one kind: training or evaluation, of one batch format"
        short = [name for name, tensor in found.items() if len(tensor) != rows]
        if short:
            raise UsageError(f"{short[0]} has {len(found[short[0]])} rows of {rows}", hint=hint)
        if not self.rows:
            return
        other = sorted(set(found) ^ set(self.rows))
        if other:
            raise UsageError(
                "the model or its routers gave other tensors than in earlier passes",
                found=", ".join(other[:4]), hint=hint,
            )  # fmt: skip
        for name, tensor in found.items():
            if tensor.shape[1:] != self.rows[name][0].shape[1:]:
                raise UsageError(
                    f"{name} has another width than in earlier passes",
                    found=f"{tuple(tensor.shape[1:])} and {tuple(self.rows[name][0].shape[1:])}",
                    hint=hint,
                )

    def _find_fitting_rows(self, real_BN: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """(mask of the rows that still fit, whether the capture is full).

        Whole sequences are kept. If the first one alone is too long, its start is kept.
        """
        left = self._max_tokens - self.tokens
        kept = real_BN.clone()
        for place, count in enumerate(real_BN.sum(1).tolist()):
            if count <= left:
                left -= count
                continue
            if not self.rows and not bool(kept[:place].any()):
                kept[place] &= real_BN[place].cumsum(0) <= left
                place += 1
            kept[place:] = False
            return kept, True
        return kept, False


def _select_rows(rows: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    own = rows.detach()
    return own.index_select(0, flat.to(own.device)).cpu().contiguous()
