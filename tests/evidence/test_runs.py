"""Plans, tasks, faults and training of the evidence study."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.evidence import faults, labels
from benchmarks.evidence.features import cut_run, practitioner, slope
from benchmarks.evidence.plan import plan_runs
from benchmarks.evidence.settings import ModelSettings, RunSettings, TrainSettings
from benchmarks.evidence.tasks import LENGTH, WINDOW, load_task
from benchmarks.evidence.training import Run, checkpoint_steps

SMALL = ModelSettings("qwen3_moe", 4, 2, 16, 8, 2)


def settings(**changes: object) -> RunSettings:
    train = TrainSettings(**{"learning_rate": 0.01, "balance": 0.05, **changes})  # type: ignore[arg-type]
    return RunSettings("r", "b", "c", "healthy", "rules", 0, False, SMALL, train)


def test_the_plan_is_what_the_protocol_says() -> None:
    runs = plan_runs()
    assert len(runs) >= 400
    assert len({r.name for r in runs}) == len(runs)
    kinds = collections.Counter(r.kind for r in runs)
    assert min(kinds.values()) >= 8
    assert {r.task for r in runs} == {"english", "languages", "rules", "digits"}
    # a base is untouched with everything that hangs on it
    assert all(len({r.untouched for r in runs if r.base == base}) == 1 for base in
               {r.base for r in runs})  # fmt: skip
    share = len({r.configuration for r in runs if r.untouched}) / len(
        {r.configuration for r in runs}
    )
    assert 0.15 < share < 0.25
    seeds = collections.Counter(r.configuration for r in runs)
    assert min(seeds.values()) >= 2
    # Where weights sum to 1 a single expert's router would have no gradient.
    assert all(r.model.top_k > 1 for r in runs if r.model.kind in ("mixtral", "digits"))
    assert RunSettings.from_dict(json.loads(json.dumps(runs[5].to_dict()))) == runs[5]
    assert {r.base for r in plan_runs(900)} == {r.base for r in runs}
    assert plan_runs(900)[0].train != runs[0].train  # the pilot's bases are others


def test_the_rules_hold_and_splits_are_disjoint() -> None:
    task = load_task("rules")
    rows = {name: {tuple(r) for r in split.inputs.tolist()} for name, split in
            (("training", task.training), ("labels", task.labels),
             ("validation", task.validation))}  # fmt: skip
    assert not rows["training"] & rows["labels"]
    assert not rows["labels"] & rows["validation"]
    assert len(task.labels) * LENGTH >= 65_536
    # one image a rule: the most frequent successor explains all but the noise
    ids = task.training.inputs.numpy()
    rule = ids[:, 0]
    counts: dict[tuple[int, int], collections.Counter[int]] = {}
    for row, r in zip(ids[:6000], rule, strict=False):
        for a, b in itertools.pairwise(row[1:]):
            if a >= 32 and b >= 32:
                counts.setdefault((int(r), int(a)), collections.Counter())[int(b)] += 1
    top = sum(c.most_common(1)[0][1] for c in counts.values())
    assert 0.93 < top / sum(c.total() for c in counts.values()) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["english", "languages"])
def test_text_splits_share_no_window(name: str) -> None:
    task = load_task(name)
    probe = [json.loads(line)["input_ids"] for line in task.probe_bytes.decode().splitlines()]
    splits = [
        np.array(probe), task.labels.inputs.numpy(), task.validation.inputs.numpy(),
        task.training.inputs.numpy(),
    ]  # fmt: skip
    seen: set[bytes] = set()
    for rows in splits:
        windows = {
            bytes(row[i : i + WINDOW].tolist()) for row in rows for i in range(LENGTH - WINDOW + 1)
        }
        assert not windows & seen
        seen |= windows
    assert splits[1].size >= 65_536


def test_digits_have_labels_enough_and_share_no_image() -> None:
    task = load_task("digits")
    assert len(task.labels) * 16 >= 65_536
    own = {t.numpy().tobytes() for t in task.training.inputs}
    assert not own & {t.numpy().tobytes() for t in task.labels.inputs}
    assert not own & {t.numpy().tobytes() for t in task.validation.inputs}


def test_capacity_is_first_come_first_served() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen_TK = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(40)])
    kept = faults.within_capacity(chosen_TK, 4, 0.5)
    most, taken = int(0.5 * 80 / 4), collections.Counter[int]()
    for token, row in enumerate(chosen_TK.tolist()):
        for slot, expert in enumerate(row):
            taken[expert] += 1
            assert bool(kept[token, slot]) == (taken[expert] <= most)


@pytest.mark.parametrize("over", ["batch", "sequence"])
def test_the_balance_loss_is_1_at_balance_and_e_over_k_at_collapse(over: str) -> None:
    tap = faults.RouterTap(torch.nn.Identity(), False, 1)
    tap.chosen_TK = torch.arange(8)[:, None] % 4
    tap.logits_TE = 50.0 * torch.nn.functional.one_hot(tap.chosen_TK[:, 0], 4).float()
    assert float(faults.balance_loss(tap, over, 4)) == pytest.approx(1.0)
    tap.chosen_TK = torch.zeros(8, 1, dtype=torch.long)
    tap.logits_TE = torch.tensor([[50.0, 0, 0, 0]]).expand(8, 4)
    assert float(faults.balance_loss(tap, over, 4)) == pytest.approx(4.0)


def test_balance_over_sequences_forbids_what_balance_over_the_batch_allows() -> None:
    tap = faults.RouterTap(torch.nn.Identity(), False, 1)
    tap.chosen_TK = torch.tensor([0, 0, 1, 1])[:, None]  # a sequence an expert
    tap.logits_TE = 50.0 * torch.nn.functional.one_hot(tap.chosen_TK[:, 0], 2).float()
    assert float(faults.balance_loss(tap, "batch", 2)) == pytest.approx(1.0)
    assert float(faults.balance_loss(tap, "sequence", 2)) == pytest.approx(2.0)


def test_a_run_is_the_same_twice_and_goes_on_from_a_state() -> None:
    task = load_task("rules")
    first = Run(settings(router_noise=0.01), task, 12)
    first.advance(6)
    state = first.state()
    first.advance(12)
    second = Run(settings(router_noise=0.01), task, 12)
    second.restore(state)
    second.advance(12)
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
    other = Run(settings(router_noise=0.01), task, 12, data_seed=5)
    other.restore(state)
    other.advance(12)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": 0.3}, {"router_precision": "float8"}, {"bad_experts": 0.5, "bad_scale": 9.0},
        {"balance_applied": False}, {"balance_over": "sequence", "balance": 3.0},
        {"router_scale": 30.0}, {"rate_jump": 5.0, "rate_jump_at": 0.2}, {"shift_at": 0.2},
        {"resume_at": 0.2, "resume_fault": "router"}, {"clip": 0.01},
        {"resume_at": 0.2, "resume_fault": "moments", "resume_rate": 3.0},
        {"balance_until": 0.1, "router_rate_at": 0.1, "router_rate_after": 20.0},
        {"z_loss": 0.1},
    ],
)  # fmt: skip
def test_every_cause_changes_the_run(changes: dict[str, object]) -> None:
    task = load_task("rules")
    sane, wrong = Run(settings(), task, 10), Run(settings(**changes), task, 10)
    sane.advance(8)
    wrong.advance(8)
    same = [torch.equal(a, b) for a, b in zip(
        sane.model.parameters(), wrong.model.parameters(), strict=True)]  # fmt: skip
    assert not all(same)


def test_float8_routers_lose_small_updates() -> None:
    task = load_task("rules")
    run = Run(settings(router_precision="float8", learning_rate=1e-6), task, 10)
    before = [tap.router.weight.clone() for tap in run.taps]
    run.advance(3)
    assert all(torch.equal(b, tap.router.weight) for b, tap in zip(before, run.taps, strict=True))
    exact = Run(settings(learning_rate=1e-6), task, 10)
    before = [tap.router.weight.clone() for tap in exact.taps]
    exact.advance(3)
    assert not any(
        torch.equal(b, tap.router.weight) for b, tap in zip(before, exact.taps, strict=True)
    )


def test_labels_of_a_load() -> None:
    assert labels.load_entropy(np.array([10.0, 10, 10, 10]), 2) == pytest.approx(1.0)
    assert labels.load_entropy(np.array([20.0, 20, 0, 0]), 2) == pytest.approx(0.0)
    outcome = labels.Outcome(1, 1.0, 1.0, 100, 0.9, 0.25)
    assert outcome.collapsed
    assert not dataclasses.replace(outcome, dead_share=0.2).collapsed
    assert dataclasses.replace(outcome, dead_share=0.0, load_entropy=0.6).collapsed


def test_the_label_loss_is_the_loss_and_the_load_that_of_the_model() -> None:
    task = load_task("rules")
    run = Run(settings(), task, 10)
    outcome = labels.measure(0, run.model, run.taps, 4, task.labels, task.validation)
    with torch.no_grad():
        logits = run.model(input_ids=task.validation.inputs).logits
    plain = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, task.vocabulary), task.validation.labels[:, 1:].reshape(-1)
    )
    assert outcome.validation == pytest.approx(float(plain), rel=1e-5)
    assert outcome.tokens == task.labels.inputs.numel()


def test_a_cut_run_ends_at_its_step(tmp_path: Path) -> None:
    task = load_task("rules")
    run = Run(settings(), task, 40)
    for step in (0, 20, 40):
        run.advance(step)
        run.save(tmp_path / "run" / f"checkpoint-{step}")
    view = cut_run(tmp_path / "run", 20, tmp_path / "view")
    assert sorted(p.name for p in view.iterdir()) == ["checkpoint-0", "checkpoint-20"]
    known = practitioner(view, 20)
    state = json.loads((view / "checkpoint-20" / "trainer_state.json").read_text())
    assert max(e["step"] for e in state["log_history"]) == 20
    recent = [e["loss"] for e in state["log_history"]][-6:]
    assert known["log.training_loss"] == pytest.approx(sum(recent) / len(recent))
    assert checkpoint_steps(640) == (0, 13, 32, 64, 128, 320, 640)


def test_the_slope_is_that_of_least_squares() -> None:
    points = [(0.0, 1.0), (1.0, 2.5), (3.0, 3.0)]
    assert slope(points) == pytest.approx(np.polyfit(*zip(*points, strict=True), 1)[0])
