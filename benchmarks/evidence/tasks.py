"""The tasks of the runs: two texts of different sources, a synthetic task, and images.

Every task is split into training, validation, probe and label tokens that share nothing. Text is
cut into sequences of 64 bytes; runs of 16 sequences go to a split by the hash of their place, and
a sequence that shares any 32-byte window with the probe, the labels or the validation text (in
that order of right) is left out of what comes after.

`rules` is synthetic: one of 32 rules, each a permutation of 64 symbols, holds in a sequence and is
named at every eighth place, where a new symbol is drawn; the next symbol is the rule's image of the
last one, but for 5% noise. Experts are small beside the 2,048 facts, so that a model gains that
gives rules experts of their own.

Legend: N sequences or images, S positions of a sequence, V vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sample_checkpoints import text
from sample_checkpoints.digits import CONFIG, load_images, write_probe

LENGTH, RUN = 64, 16  # positions of a sequence; sequences of a text that stay together
WINDOW = 32
SOURCE_BYTES = 3_000_000  # at most so much of each source is read
# Sequences of each split; of training whatever is left.
PROBE, LABELS, VALIDATION = 1024, 1072, 192
RULES, SYMBOLS, NOISE = 32, 64, 0.05
RULE_TRAINING = 24_000
# Images of each split. Labels are the label images under all shifts by up to a pixel and a half's
# worth of directions: 16 positions each, as near as 1,797 images come to 65,536 tokens.
PROBE_IMAGES, LABEL_IMAGES, VALIDATION_IMAGES = 360, 460, 120
SHIFTS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


@dataclass(frozen=True)
class Split:
    """Inputs, and for images their labels; for text the inputs are the labels."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Task:
    """A task and its splits; `shifted` is what training turns to where data shift.

    `unigram` is the loss in nats of the best guess that knows the frequencies of training labels
    alone, taken on the label split: the zero of performance.
    """

    name: str
    vocabulary: int
    training: Split
    shifted: Split
    validation: Split
    labels: Split
    unigram: float
    probe_bytes: bytes

    @property
    def images(self) -> bool:
        """Whether the task is one of vision: a model of its own, a label an image."""
        return self.name == "digits"

    @property
    def probe_name(self) -> str:
        """The name that the probe file must have to be read as what it is."""
        return "probe.safetensors" if self.images else "probe.jsonl"

    def write_probe(self, folder: Path) -> Path:
        """The probe as a file for moegeo."""
        path = folder / self.probe_name
        if not path.exists():
            path.write_bytes(self.probe_bytes)
        return path


@functools.cache
def load_task(name: str) -> Task:
    """A task by name: english, languages, rules or digits."""
    if name == "rules":
        return _rules()
    if name == "digits":
        return _digits()
    english = (*text.prose(), *text.mathematics())
    own, other = {
        "english": (english, text.code()),
        "languages": (text.languages(_locales()), english),
    }[name]
    splits = _split_text(name, own)
    shifted = _split_text(f"{name} shifted", other)["training"]
    return _task(name, 256, splits, shifted)


TASKS = ("english", "languages", "rules", "digits")


def _locales() -> tuple[str, ...]:
    """Every language that Django is translated into."""
    import django

    folders = Path(django.__file__).parent.glob("conf/locale/*/LC_MESSAGES")
    return tuple(sorted(f.parent.name for f in folders if not f.parent.name.startswith("en")))


def _task(name: str, vocabulary: int, splits: dict[str, np.ndarray], shifted: np.ndarray) -> Task:
    def split(rows_NS: np.ndarray) -> Split:
        ids = torch.from_numpy(rows_NS.astype(np.int64))
        return Split(ids, ids)

    probe = "".join(
        json.dumps({"input_ids": row.tolist()}, separators=(",", ":")) + "\n"
        for row in splits["probe"]
    )
    counts_V = np.bincount(splits["training"][:, 1:].reshape(-1), minlength=vocabulary) + 1.0
    logs_V = np.log(counts_V / counts_V.sum())
    return Task(
        name=name,
        vocabulary=vocabulary,
        training=split(splits["training"]),
        shifted=split(shifted),
        validation=split(splits["validation"]),
        labels=split(splits["labels"]),
        unigram=float(-logs_V[splits["labels"][:, 1:]].mean()),
        probe_bytes=probe.encode(),
    )


def _split_text(name: str, sources: Iterable[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Bytes of texts, (N, 64) a split; the same for the same packages."""
    pools: dict[str, list[bytes]] = {"probe": [], "labels": [], "validation": [], "training": []}
    seen: set[bytes] = set()
    read: dict[str, int] = {}
    for source, words in sources:
        kind = source.split("/", 1)[0]
        data = words.encode("utf-8", "ignore")[: SOURCE_BYTES - read.get(kind, 0)]
        read[kind] = read.get(kind, 0) + len(data)
        for number in range(len(data) // LENGTH):
            row = data[number * LENGTH : (number + 1) * LENGTH]
            if row in seen:
                continue
            seen.add(row)
            place = f"{name}:{source}:{number // RUN}".encode()
            draw = hashlib.sha256(place).digest()[0]
            pools[
                "probe" if draw < 36 else "labels" if draw < 72 else "validation" if draw < 84
                else "training"
            ].append(row)  # fmt: skip
    for rows in pools.values():  # by content, so that what is taken is not all of one source
        rows.sort(key=lambda row: hashlib.sha256(row).digest())
    held: set[bytes] = set()
    splits: dict[str, np.ndarray] = {}
    for split, most in (
        ("probe", PROBE), ("labels", LABELS), ("validation", VALIDATION), ("training", None)
    ):  # fmt: skip
        kept = [row for row in pools[split] if held.isdisjoint(_windows(row))][:most]
        if most is not None:
            if len(kept) < most:
                raise RuntimeError(f"{name}: {len(kept)} sequences for {split}, {most} are needed")
            held.update(window for row in kept for window in _windows(row))
        splits[split] = np.frombuffer(b"".join(kept), np.uint8).reshape(-1, LENGTH)
    return splits


def _windows(row: bytes) -> set[bytes]:
    return {row[i : i + WINDOW] for i in range(len(row) - WINDOW + 1)}


def _rules() -> Task:
    splits = {
        split: _rule_sequences(number, count, rules_seed=0)
        for number, (split, count) in enumerate(
            (("probe", PROBE), ("labels", LABELS), ("validation", VALIDATION),
             ("training", RULE_TRAINING))
        )
    }  # fmt: skip
    shifted = _rule_sequences(9, RULE_TRAINING, rules_seed=1)
    return _task("rules", RULES + SYMBOLS, splits, shifted)


def _rule_sequences(seed: int, count: int, rules_seed: int) -> np.ndarray:
    """Sequences under one rule each, (N, S); other `rules_seed`, other rules."""
    generator = np.random.default_rng([4, rules_seed])
    image_RV = np.stack([generator.permutation(SYMBOLS) for _ in range(RULES)])
    draw = np.random.default_rng([5, rules_seed, seed])
    rule_N = draw.integers(RULES, size=count)
    rows_NS = np.empty((count, LENGTH), dtype=np.int64)
    state_N = np.zeros(count, dtype=np.int64)
    for place in range(LENGTH):
        if place % 8 == 0:
            rows_NS[:, place] = rule_N
            state_N = draw.integers(SYMBOLS, size=count)
            continue
        rows_NS[:, place] = RULES + state_N
        noisy_N = draw.random(count) < NOISE
        state_N = np.where(noisy_N, draw.integers(SYMBOLS, size=count), image_RV[rule_N, state_N])
    return rows_NS


def _digits() -> Task:
    images, digits = load_images(seed=1)
    cuts = np.cumsum([0, PROBE_IMAGES, LABEL_IMAGES, VALIDATION_IMAGES])
    probe, labels, validation = (
        Split(images[a:b], digits[a:b]) for a, b in itertools.pairwise(cuts)
    )
    training = Split(images[cuts[-1] :], digits[cuts[-1] :])
    counts_V = torch.bincount(training.labels, minlength=10).double() + 1
    logs_V = (counts_V / counts_V.sum()).log()
    shown = Split(
        torch.cat([torch.roll(labels.inputs, shift, (2, 3)) for shift in SHIFTS]),
        labels.labels.repeat(len(SHIFTS)),
    )
    return Task(
        name="digits",
        vocabulary=10,
        training=training,
        shifted=Split(1.0 - training.inputs.flip(3), training.labels),  # negatives, mirrored
        validation=validation,
        labels=shown,
        unigram=float(-logs_V[shown.labels].mean()),
        probe_bytes=_image_probe(probe),
    )


def _image_probe(probe: Split) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.safetensors"
        write_probe(path, probe.inputs, probe.labels)
        return path.read_bytes()


def positions(task: Task) -> int:
    """Tokens that a router sees of one sequence or image."""
    return (CONFIG["image_size"] // CONFIG["patch_size"]) ** 2 if task.images else LENGTH
