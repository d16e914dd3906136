"""What is recommended, with the key that the user's framework reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.checkpoints.training import _CARD_WORDS, _FRAMEWORK_FILES
from moegeo_cli.errors import UsageError
from moegeo_cli.explanations.findings import definitions
from moegeo_cli.records import Intervention, RunRecord
from moegeo_cli.reports.advice_text import evidence_words
from moegeo_cli.verdict import interventions, judge, recommend
from moegeo_cli.verdict.interventions import APPLIES, FRAMEWORKS, READS_CONFIG, catalogue
from tests.tiny_models import build_tiny
from tests.verdict.conftest import checkpoint, layer, run_of

ROOT = Path(__file__).parents[2]
COLLAPSED = layer(1, collapse=0.95, effective_experts=2.5)


def advise(run: RunRecord, framework: str | None = None) -> dict[str, Intervention]:
    judged = judge(run)
    assert judged.verdict is not None
    return {i.id: i for i in recommend(judged, judged.verdict.findings, framework)}


def collapsed(**about: Any) -> RunRecord:
    before = checkpoint(50, layer(0), COLLAPSED)
    return run_of(checkpoint(0), before, checkpoint(100, layer(0), COLLAPSED), **about)


def test_a_healthy_run_gets_no_advice(healthy: RunRecord) -> None:
    assert advise(healthy) == {}


def test_a_coefficient_behind_a_switch_that_is_off_is_not_live() -> None:
    """transformers adds router_aux_loss_coef only with output_router_logits."""
    found = advise(collapsed(training={"router_aux_loss_coef": 0.001}))
    switch = found["activate-balance-loss"]
    assert (switch.key.key, switch.key.suggested, switch.key.live) == (
        "output_router_logits", True, True,
    )  # fmt: skip
    assert switch.layers == (1,)
    assert "raise-balance-loss" not in found, "raising it does nothing while the switch is off"
    assert next(iter(found)) == "activate-balance-loss"


def test_with_the_switch_on_the_coefficient_is_raised() -> None:
    training = {"router_aux_loss_coef": 0.001, "output_router_logits": True}
    found = advise(collapsed(training=training))
    key = found["raise-balance-loss"].key
    assert (key.key, key.current, key.suggested, key.live) == (
        "router_aux_loss_coef", 0.001, 0.01, True,
    )  # fmt: skip
    assert "activate-balance-loss" not in found


def test_nanotrons_coefficient_is_declared_and_never_read() -> None:
    key = advise(collapsed(), "nanotron")["raise-balance-loss"].key
    assert key.live is False
    assert "never read" in (key.note or "")


def test_a_selection_bias_is_moved_rather_than_a_loss_raised() -> None:
    found = advise(collapsed(model_type="deepseek_v3", scoring="sigmoid"))
    assert "raise-bias-rate" in found
    assert "raise-balance-loss" not in found
    key = found["raise-bias-rate"].key
    assert key.key is None
    assert "no key in this framework" in (key.note or "")
    assert key.lines is not None
    assert "e_score_correction_bias" in key.lines
    megatron = advise(collapsed(scoring="sigmoid"), "megatron")["raise-bias-rate"].key
    assert megatron.key == "moe_router_bias_update_rate"


def test_a_framework_that_files_point_to_has_a_name_that_is_known_and_documented() -> None:
    assert set(_FRAMEWORK_FILES) | set(_CARD_WORDS.values()) <= set(FRAMEWORKS)
    page = (ROOT / "docs" / "reference" / "interventions.md").read_text("utf-8")
    assert {name for name in FRAMEWORKS if name not in page} == set()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_gets_a_key_or_the_lines_to_add(framework: str) -> None:
    found = advise(collapsed(), framework)
    assert "raise-balance-loss" in found
    for item in found.values():
        assert item.key.framework == framework
        if item.key.key is None:
            assert item.key.note
        else:
            assert (
                item.key.live is not None or framework not in READS_CONFIG or item.key.lines is None
            )


def test_dead_experts_are_revived_from_live_ones() -> None:
    found = advise(run_of(checkpoint(9, layer(0, dead=(3,), dead_in_all_domains=(3,)))))
    assert found["revive-dead-experts"].layers == (0,)


def test_a_run_without_a_clean_checkpoint_is_not_told_to_rewind() -> None:
    sick = layer(1, state="nonfinite")
    assert "rewind" not in advise(run_of(checkpoint(0), checkpoint(9, sick)))
    assert "rewind" in advise(run_of(checkpoint(0), checkpoint(5), checkpoint(9, sick)))


def test_advice_on_finite_weights_is_not_given_for_broken_ones() -> None:
    found = advise(run_of(checkpoint(9, layer(0, state="nonfinite"), COLLAPSED)))
    assert "router-weights" not in found


def test_the_learning_rates_current_value_is_the_peak_of_the_log() -> None:
    losses = [{"step": i, "loss": 3.0, "learning_rate": 1e-3 * min(i, 9) / 9} for i in range(20)]
    losses.append({"step": 20, "loss": 9.0, "learning_rate": 2e-4})
    key = advise(run_of(log=losses))["learning-rate"].key
    assert key.current == pytest.approx(1e-3)
    assert key.live is True


def test_an_unknown_framework_is_refused() -> None:
    with pytest.raises(UsageError, match="caffe"):
        advise(collapsed(), "caffe")


def test_without_a_framework_the_assumption_is_said() -> None:
    run = collapsed(framework=None, training={"router_aux_loss_coef": 0.1})
    assert "assumed" in (advise(run)["activate-balance-loss"].key.note or "")


def test_the_catalogue_is_whole() -> None:
    """Every entry: known findings, a test, a check, graded evidence."""
    entries = catalogue()["intervention"]
    names = {e["id"] for e in entries}
    for entry in entries:
        assert set(entry["findings"]) <= set(definitions()), entry["id"]
        assert entry["applies"] in APPLIES
        assert entry["check"]
        assert entry["grade"] in {"literature", "untested"}, "measured is what the study did"
        assert set(entry.get("conflicts", ())) <= names
        assert not entry["setting"] or entry["setting"] in catalogue()["settings"]
        if entry["grade"] != "untested":
            assert entry["source"]
    for table in catalogue()["settings"].values():
        assert set(table) <= set(FRAMEWORKS)
    asked = {"balance", "switch", "z", "jitter", "capacity", "bias_rate", "router_rate",
             "router_dtype", "granularity", "clipping", "learning_rate"}  # fmt: skip
    assert asked <= set(catalogue()["settings"])


def test_conflicts_are_named_from_both_sides() -> None:
    conflicts = {e["id"]: set(e.get("conflicts", ())) for e in catalogue()["intervention"]}
    for name, others in conflicts.items():
        assert all(name in conflicts[other] for other in others)


def test_what_the_study_measured_stands_before_the_literature_with_its_control(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = {"intervention": "raise-balance-loss", "finding": "router-collapse",
                "recovered": 30, "recovered_control": 20, "n": 40, "runs": 20,
                "difference": 0.25, "interval": [0.05, 0.4],
                "performance": 0.031, "performance_interval": [-0.01, 0.07],
                "collapsed": 3, "collapsed_control": 9}  # fmt: skip
    monkeypatch.setattr(interventions, "recoveries", lambda: (measured,))
    found = advise(collapsed(training={"output_router_logits": True}))
    evidence = found["raise-balance-loss"].evidence
    assert evidence["grade"] == "measured"
    assert "docs/results/evidence.md" in evidence["source"]
    assert "2101.03961" in evidence["literature"]
    assert {k: v for k, v in measured.items() if k != "intervention"}.items() <= evidence.items()
    assert evidence_words(evidence).startswith(
        "measured: 30 of 40 restarts did not fail with it, 20 without it; 3 against 9 ended "
        "collapsed; final performance +0.03 [-0.01, +0.07] ("
    )
    assert found["jitter"].evidence["grade"] == "literature"
    # Of another finding's restarts nothing is said.
    other = {**measured, "finding": "dead-experts"}
    monkeypatch.setattr(interventions, "recoveries", lambda: (other,))
    found = advise(collapsed(training={"output_router_logits": True}))
    assert found["raise-balance-loss"].evidence["grade"] == "literature"


def test_what_stopping_saves_stands_with_its_risk() -> None:
    words = evidence_words({
        "grade": "measured", "finding": "loss-behind-reference", "saved": 0.213,
        "stopped_failing": [30, 60], "stopped_sound": [4, 120],
    })  # fmt: skip
    assert words == (
        "measured: stopping there saved 21% of all compute; it stopped 30 of 60 failing runs and "
        "4 of 120 sound ones"
    )


def test_a_coefficient_of_zero_is_raised_and_the_flag_named_with_it() -> None:
    """The flag alone changes nothing while the coefficient is 0."""
    found = advise(collapsed(training={"router_aux_loss_coef": 0.0}))
    assert "activate-balance-loss" not in found
    key = found["raise-balance-loss"].key
    assert (key.key, key.current, key.suggested, key.live) == (
        "router_aux_loss_coef", 0.0, 0.01, False,
    )  # fmt: skip
    assert "output_router_logits = true as well" in (key.note or "")


def test_no_key_is_set_to_what_it_is() -> None:
    for training in ({}, {"router_jitter_noise": 0.01}):
        run = collapsed(model_type="mixtral", training=training)
        assert ("jitter" in advise(run)) == (not training)


def test_causes_come_first_then_gains_and_what_gained_nothing_is_folded() -> None:
    spike = [{"step": i, "loss": 3.0, "learning_rate": 0.0019949058745487524} for i in range(20)]
    spike.append({"step": 20, "loss": 9.0})
    training = {"router_aux_loss_coef": 0.02, "trainer.max_steps": 300}
    clean, sick = checkpoint(0), checkpoint(20, layer(0), COLLAPSED)
    found = advise(run_of(clean, checkpoint(10), sick, training=training, log=spike))
    order = list(found)
    assert order[0] == "activate-balance-loss", "the exact cause"
    assert order[1] == "rewind", "the one remedy with a measured gain"
    assert order.index("learning-rate") < order.index("gradient-clipping")
    assert found["gradient-clipping"].folded, "measured, and nothing gained"
    assert not found["rewind"].folded
    folded = [i.folded for i in found.values()]
    assert folded == sorted(folded)
    key = found["learning-rate"].key
    assert (key.current, key.suggested) == (0.001995, 0.000665)


@pytest.mark.parametrize(
    "entry", [e for e in catalogue()["intervention"] if e.get("lines")], ids=lambda e: e["id"]
)
def test_lines_run_as_they_stand(entry: dict[str, Any], tmp_path: Path) -> None:
    """On a tiny model, with nothing else defined; functions are called on its parts."""
    biased = entry["id"] in {"save-selection-bias", "store-bias-float32"}
    model = build_tiny("deepseek_v3" if biased else "qwen3_moe")
    if entry["id"] == "store-bias-float32":
        model = model.bfloat16()
    names: dict[str, Any] = {"torch": torch, "model": model}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    exec(entry["lines"], names)
    gate = next(m for n, m in model.named_modules() if n.endswith("mlp.gate"))
    experts = next(m for n, m in model.named_modules() if n.endswith("mlp.experts"))
    logits = torch.randn(6, 8)
    match entry["id"]:
        case "raise-balance-loss":
            assert float(names["balance_loss"](torch.zeros(6, 8), 8)) == pytest.approx(1.0)
            assert float(names["balance_loss"](logits, 2)) > 0.0
        case "raise-bias-rate":
            gate.register_buffer("e_score_correction_bias", torch.zeros(8))
            names["move_bias"](gate, torch.arange(8))
            assert gate.e_score_correction_bias[0] > 0 > gate.e_score_correction_bias[7]
        case "router-weights":
            for name, parameter in model.named_parameters():
                factor = 0.2 if name.endswith("gate.weight") else 1.0
                assert torch.allclose(parameter, factor * before[name])
        case "lower-router-rate":
            assert [len(g["params"]) > 0 for g in names["optimizer"].param_groups] == [True, True]
        case "revive-dead-experts":
            names["revive"](gate, experts, 2, 4)
            assert all(torch.equal(w[2], w[4]) for w in experts.parameters())
        case "balance-over-global-batch":
            assert torch.equal(names["global_load"](logits), logits)
        case "z-loss":
            assert float(names["z_loss"](logits)) > 0.0
        case "router-float32":
            x = torch.randn(4, gate.weight.shape[1])
            assert torch.allclose(names["float32_logits"](gate, x), x @ gate.weight.T)
        case "jitter":
            assert torch.allclose(names["jitter"](logits), logits, rtol=0.011)
        case "separate-redundant-experts":
            parts = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6)
            kept = [p.clone() for p in parts]
            names["redraw_half"](*parts)
            changed = [int((parts[i] != kept[i]).any(1).sum()) for i in (0, 1)]
            assert changed == [3, 3]
        case "remove-shared-direction":
            inputs = torch.randn(50, gate.weight.shape[1]) + 3.0
            names["remove_direction"](gate, inputs)
            assert float((gate.weight @ inputs.mean(0)).abs().max()) < 1e-4
        case "train-router":
            assert gate.weight.requires_grad
        case "restore-router-gradient":
            assert model.config.num_experts_per_tok == gate.top_k == 2
        case "train-experts":
            frozen = next(iter(experts.parameters()))
            frozen.requires_grad_(False)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
            [name] = names["untrained"](model, optimizer)
            assert "mlp.experts" in name
        case "turn-bias-update":
            bias = torch.zeros(4)
            names["move_bias"](bias, torch.tensor([9.0, 1.0, 1.0, 1.0]))
            assert bias[0] < 0 < bias[1]
        case "convert-again":
            model.save_pretrained(tmp_path)
            assert names["load_whole"](type(model), tmp_path).config.num_experts == 6
            file = tmp_path / "model.safetensors"
            whole = load_file(file)
            gone = next(n for n in whole if n.endswith("mlp.gate.weight"))
            save_file({n: t for n, t in whole.items() if n != gone}, file, {"format": "pt"})
            with pytest.raises(AssertionError, match="gate"):
                names["load_whole"](type(model), tmp_path)
        case "reload-weights":
            state = model.state_dict()
            names["load_all"](model, state)
            state.pop(next(n for n in state if "mlp.experts" in n))
            with pytest.raises(AssertionError, match="experts"):
                names["load_all"](model, state)
        case "store-bias-float32":
            biases = [b for n, b in model.named_buffers() if n.endswith("correction_bias")]
            assert {b.dtype for b in biases} == {torch.float32}
        case other:
            assert other in {"activate-balance-loss", "save-selection-bias", "gradient-clipping"}
