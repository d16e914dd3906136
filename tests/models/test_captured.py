"""Routers read from the files and fed with captured inputs: whose they are, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.captures.rows import CapturedRouter, Captures, Column
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.routers import RouterTensors, check_routers
from moegeo_cli.errors import ProbeError, UnsupportedArchitectureError, UsageError
from moegeo_cli.models.captured import CapturedModels

ROWS = 16
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tiny: Callable[..., Path]) -> Checkpoint:
    return Checkpoint(tiny("mixtral"))


def tensors_of(checkpoint: Checkpoint) -> Sequence[RouterTensors]:
    return check_routers(checkpoint.weights, checkpoint.architecture)


def column(values: np.ndarray) -> Column:
    found = Column(values.shape[1])
    found.add(values)
    return found


def capture(
    checkpoint: Checkpoint,
    *,
    rename: Callable[[str], str] = str,
    logits: float | None = None,
    selected: int | None = None,
    skip: int = 0,
    width: int = 0,
    **facts: Any,
) -> Captures:
    """A capture of a checkpoint's routers.

    Args:
        checkpoint: the checkpoint.
        rename: gives the captured path of a router.
        logits: factor by which captured logits differ from weight × input; None for none.
        selected: number of the expert that all captured choices begin with; None for none.
        skip: number of routers that were not captured.
        width: by how much the inputs are too wide.
        facts: step and fingerprint.
    """
    generator = np.random.default_rng(0)
    routers = {}
    for found in tensors_of(checkpoint)[skip:]:
        weight_ED = checkpoint.weights.read(found.weight)
        x_ND = generator.standard_normal((ROWS, weight_ED.shape[1] + width)).astype(np.float32)
        columns = {"inputs": column(x_ND)}
        if logits is not None:
            columns["logits"] = column((x_ND @ weight_ED.T * logits).astype(np.float32))
        if selected is not None:
            columns["selected"] = column(np.array([[selected, 1]] * ROWS, dtype=np.int32))
        path = rename(found.module)
        routers[path] = CapturedRouter(path, found.layer, columns)
    return Captures("c", routers, (ROWS,), (None,), "0" * 64, **facts)


def load(checkpoint: Checkpoint, captures: Captures, **changes: Any) -> Any:
    architecture = checkpoint.architecture
    for name, value in changes.items():
        object.__setattr__(architecture, name, value)

    def find(index: Any) -> Sequence[RouterTensors]:
        return check_routers(index, architecture)

    return CapturedModels(captures, architecture, find, CPU).load(checkpoint)


def run(model: Any, router: int = 0) -> tuple[torch.Tensor, ...]:
    """What one router makes of all captured inputs: logits, weights, selected experts."""
    rows_N = np.arange(ROWS)
    lone = model.routers[router]
    outputs: tuple[torch.Tensor, ...] = lone(lone.take("inputs", rows_N), rows_N)
    return outputs


def test_logits_are_weight_times_input_and_the_top_k_are_selected(checkpoint: Checkpoint) -> None:
    captures = capture(checkpoint)
    model = load(checkpoint, captures)
    for place, found in enumerate(tensors_of(checkpoint)):
        x_ND = captures.routers[found.module].columns["inputs"].take(np.arange(ROWS))
        logits_NE, weights_NK, selected_NK = run(model, place)
        expected_NE = torch.from_numpy(x_ND @ checkpoint.weights.read(found.weight).T)
        torch.testing.assert_close(logits_NE, expected_NE)
        top_NK = expected_NE.topk(2).indices
        assert torch.equal(selected_NK.sort().values, top_NK.sort().values)
        torch.testing.assert_close(weights_NK, expected_NE.softmax(-1).gather(1, selected_NK))
    assert "choices: computed by the architecture's rule, not observed" in model.notes[1]


@pytest.mark.parametrize(
    "rename",
    [
        lambda path: path,
        lambda path: f"_orig_mod.module.{path}",  # a wrapped model
        lambda path: path.replace("model.layers", "decoder.blocks"),  # by layer alone
    ],
)
def test_captured_routers_find_those_of_the_files(
    rename: Callable[[str], str], checkpoint: Checkpoint
) -> None:
    model = load(checkpoint, capture(checkpoint, rename=rename))
    found = {lone.tensors.layer: lone.captured.layer for lone in model.routers}
    assert found == {layer: layer for layer in range(len(model.routers))}


def test_routers_that_were_not_captured_and_captures_without_a_router_are_noted(
    checkpoint: Checkpoint,
) -> None:
    captures = capture(checkpoint, skip=1)
    routers = {**captures.routers, "other.gate": CapturedRouter("other.gate", 77, {})}
    model = load(checkpoint, Captures("c", routers, (ROWS,), (None,), "0" * 64))
    notes = " | ".join(model.notes)
    assert f"no inputs were captured of {tensors_of(checkpoint)[0].module}" in notes
    assert "1 captured routers are not in the checkpoint's files" in notes
    assert model(torch.arange(ROWS)).logits is None, "it runs all the same"


def test_a_capture_of_another_model_is_refused(checkpoint: Checkpoint) -> None:
    stranger = {"x.gate": CapturedRouter("x.gate", 99, {"inputs": column(np.zeros((1, 4)))})}
    with pytest.raises(ProbeError, match="inputs of none of the checkpoint's routers"):
        load(checkpoint, Captures("c", stranger, (1,), (None,), "0" * 64))
    with pytest.raises(ProbeError, match="do not fit the checkpoint"):
        load(checkpoint, capture(checkpoint, width=1))


@pytest.mark.parametrize(
    ("options", "own", "words"),
    [
        ({"logits": 1.0}, True, "are these routers' own"),
        ({"logits": 2.0}, False, "those of another checkpoint's routers"),
        ({}, False, "names no checkpoint"),
        ({"fingerprint": "?"}, False, "captured at another checkpoint"),
        ({"fingerprint": "?", "step": 7, "logits": 1.0}, False, "captured at step 7"),
    ],
)
def test_whose_inputs_they_are(
    options: dict[str, Any], own: bool, words: str, checkpoint: Checkpoint
) -> None:
    model = load(checkpoint, capture(checkpoint, **options))
    assert words in model.notes[0]
    assert {lone.captured_outputs for lone in model.routers} == {own}
    assert ("approximation" in model.notes[0]) is not own


def test_a_fingerprint_decides_and_a_captured_choice_then_counts(checkpoint: Checkpoint) -> None:
    known = partial(capture, checkpoint, selected=3, logits=1.0)
    mine = load(checkpoint, known(fingerprint=checkpoint.fingerprint()))
    assert "captured at this checkpoint" in mine.notes[0]
    assert run(mine)[2].tolist() == [[3, 1]] * ROWS
    other = load(checkpoint, known(fingerprint="?"))
    assert run(other)[2].tolist() != [[3, 1]] * ROWS, "computed anew"


def test_captured_choices_must_be_of_the_routers_experts(checkpoint: Checkpoint) -> None:
    captures = capture(checkpoint, selected=99, fingerprint=checkpoint.fingerprint())
    model = load(checkpoint, captures)
    with pytest.raises(ProbeError, match="are not of its experts"):
        run(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choice_differs": "it draws lots"}, "it draws lots"),
        ({"hash_layers": (1,)}, "layer 1 chooses by the token's id"),
    ],
)
def test_a_choice_that_cannot_be_computed_is_refused_unless_it_was_captured(
    changes: dict[str, Any], words: str, checkpoint: Checkpoint
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=words):
        load(checkpoint, capture(checkpoint), **changes)
    load(checkpoint, capture(checkpoint, selected=0, logits=1.0), **changes)


def test_a_fresh_initialisation_is_refused(checkpoint: Checkpoint) -> None:
    models = CapturedModels(capture(checkpoint), checkpoint.architecture, None, CPU)
    with pytest.raises(UsageError, match="fresh initialisation"):
        models.initialise(checkpoint, 0)
