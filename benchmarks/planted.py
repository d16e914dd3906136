"""Run `moegeo check` on samples with one planted fault each: `python -m benchmarks.planted`.

Each case copies a sample run, changes its files, and prints what the command says of it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import check
from moegeo_cli.records import Finding

SAMPLES = Path(__file__).parents[1] / "sample_checkpoints"
QWEN, GLM, MIXTRAL = "healthy-qwen3-moe", "balanced-glm4-moe", "unbalanced-mixtral"
LAST = 400
State = dict[str, torch.Tensor]
Config = dict[str, Any]
# Changes a checkpoint's tensors and config in place; is given its step and those of earlier steps.
Fault = Callable[[int, State, Config, Mapping[int, State]], None]


@dataclass(frozen=True)
class Case:
    """A fault: what was done, to which sample, and the findings that it has to give."""

    words: str
    sample: str
    fault: Fault
    expected: frozenset[str]


def plant(case: Case, folder: Path) -> Path:
    """A copy of the sample with the fault in it."""
    run = folder / case.sample
    earlier: dict[int, State] = {}
    shutil.copytree(SAMPLES / case.sample, run, ignore=shutil.ignore_patterns(".moegeo"))
    for checkpoint in sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name[11:])):
        step = int(checkpoint.name[11:])
        state = load_file(checkpoint / "model.safetensors")
        config = json.loads((checkpoint / "config.json").read_text())
        case.fault(step, state, config, earlier)
        earlier[step] = state
        save_file(state, checkpoint / "model.safetensors", {"format": "pt"})
        (checkpoint / "config.json").write_text(json.dumps(config))
    return run


def find(case: Case) -> list[Finding]:
    """What the command finds in the run as it stands at its end."""
    with tempfile.TemporaryDirectory() as folder:
        record = check(plant(case, Path(folder)), cache=False)
    assert record.verdict is not None
    return [f for f in record.verdict.findings if f.state == "active"]


def _is_router(name: str) -> bool:
    return name.endswith("gate.weight")


def _of(layer: int) -> Callable[[str], bool]:
    return lambda name: f".layers.{layer}." in name and ".experts." in name


def _hold(which: Callable[[str], bool], source: int, after: int) -> Fault:
    def fault(
        step: int, state: State, config: dict[str, Any], earlier: Mapping[int, State]
    ) -> None:
        if step > after:
            state |= {name: earlier[source][name].clone() for name in filter(which, state)}

    return fault


def _at_last(change: Callable[[State, Config], None]) -> Fault:
    def fault(
        step: int, state: State, config: dict[str, Any], earlier: Mapping[int, State]
    ) -> None:
        if step == LAST:
            change(state, config)

    return fault


def _always(change: Callable[[State, Config], None]) -> Fault:
    return lambda step, state, config, earlier: change(state, config)


def _copy_share(state: State, config: Config) -> None:
    for name in list(state):
        for expert in range(4):
            if f".experts.{expert}." in name:
                other = name.replace(f".experts.{expert}.", f".experts.{expert + 4}.")
                state[other] = state[name].clone()


def _biases(change: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    def apply(state: State, config: Config) -> None:
        for name in state:
            if name.endswith("e_score_correction_bias"):
                state[name] = change(state[name])

    return _always(apply)


def _mask(state: State, config: Config) -> None:
    state["model.layers.1.mlp.gate.weight"][3] = -1e9
    for name in filter(_of(1), state):
        if ".experts.3." in name:
            state[name].zero_()


def _break(state: State, config: Config) -> None:
    state["model.layers.0.mlp.experts.2.down_proj.weight"][0, 0] = torch.nan
    state["model.layers.2.mlp.experts.5.up_proj.weight"].zero_()


def _redraw(state: State, config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in filter(_of(1), sorted(state)):
        state[name] = 0.02 * torch.randn(state[name].shape, generator=generator)


def _router(row: int | None, value: float) -> Fault:
    def apply(state: State, config: Config) -> None:
        weight = state["model.layers.2.mlp.gate.weight"]
        weight[slice(None) if row is None else row] = value

    return _at_last(apply)


def _one_expert(state: State, config: Config) -> None:
    config["num_experts_per_tok"] = 1


def _case(words: str, sample: str, fault: Fault, *expected: str) -> Case:
    return Case(words, sample, fault, frozenset(expected))


CASES = (
    _case("all routers keep step 100's bytes", QWEN, _hold(_is_router, 100, 100), "router-frozen"),
    _case("the experts of layer 2 keep step 0's", QWEN, _hold(_of(2), 0, 0),
          "experts-frozen", "experts-untrained"),
    _case("two experts of layer 0 keep step 200's", MIXTRAL,
          _hold(lambda n: _of(0)(n) and (".1." in n or ".6." in n), 200, 200),
          "experts-frozen"),
    _case("the experts of step 400 are step 0's", MIXTRAL,
          _hold(lambda n: ".experts." in n, 0, 300), "experts-reset", "experts-untrained"),
    _case("the router of layer 1 at step 400 is step 100's", QWEN,
          _hold(lambda n: _is_router(n) and ".layers.1." in n, 100, 300), "router-reset"),
    _case("experts 4 to 7 at step 400 are copies of 0 to 3", QWEN, _at_last(_copy_share),
          "experts-identical"),
    _case("the experts of layer 1 at step 400 are drawn anew", QWEN, _at_last(_redraw),
          "experts-untrained"),
    _case("the selection bias is 0 at every step", GLM, _biases(torch.zeros_like), "bias-unused"),
    _case("the selection bias, 6.9 higher, is stored in bfloat16", GLM,
          _biases(lambda b: (b + 6.9).bfloat16()), "bias-rounded"),
    _case("one expert a token, renormalised", QWEN, _always(_one_expert), "router-no-gradient"),
    _case("row 3 of layer 1 is −1e9, its expert zero", QWEN, _at_last(_mask), "experts-masked"),
    _case("NaN in an expert, zeros in another", QWEN, _at_last(_break), "experts-damaged"),
    _case("infinity in a router", QWEN, _router(4, float("inf")), "router-nonfinite"),
    _case("a router of zeros", QWEN, _router(None, 0.0), "router-zero"),
)  # fmt: skip


def main() -> None:
    """Print a table of what was planted and what was said."""
    print("| planted | found | in its words |\n|---|---|---|")
    for case in CASES:
        found = find(case)
        for place, finding in enumerate(found):
            first = case.words if not place else ""
            print(f"| {first} | `{finding.name}`, {finding.severity} | {finding.message} |")
        missing = sorted(case.expected - {f.name for f in found})
        for name in missing:
            print(f"| {case.words} | **not found**: `{name}` | |")


if __name__ == "__main__":
    main()
