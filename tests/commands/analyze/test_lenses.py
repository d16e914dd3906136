"""What lenses measured of a checkpoint: kept, found again, the widest first; and facts of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moegeo_cli.checkpoints.training import TrainingLog
from moegeo_cli.commands.analyze.facts import fill_facts, training_progress
from moegeo_cli.commands.analyze.lenses import describe_run, find_lenses, keep_lens, lens_notes
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.models.given import Models
from moegeo_cli.records import Coverage, Metric
from moegeo_cli.records.lenses import absent_reason, damaged_reason
from moegeo_cli.settings import Settings
from moegeo_cli.store.cache import Store
from tests.commands.experts.recorded import record_of
from tests.traces import architecture_of, probe_of
from tests.verdict.conftest import checkpoint, run_of

PRINT = "f" * 64


def lens_of(measured: int = 2, tokens: int | None = 100, **changes: Any) -> ExpertsRecord:
    probe: dict[str, Any] = {"source": "text.jsonl", "sha256": changes.pop("sha256", "a" * 64)}
    probe |= {} if tokens is None else {"tokens": tokens}
    layer = record_of(matrices={"alignment": ((1.0, 0.5), (0.5, 1.0))})
    known: dict[str, Any] = {
        "status": "complete", "versions": {}, "name": "run", "checkpoint": "checkpoint-1",
        "step": 1, "model_type": "mixtral", "probe": probe, "settings": {"rank": 8},
        "coverage": Coverage(4, measured), "loss": Metric(2.0), "layers": (layer,),
        "fingerprint": PRINT,
    }  # fmt: skip
    return ExpertsRecord(**known | changes)


def found_in(store: Store, fingerprint: str = PRINT) -> Any:
    return find_lenses(store, fingerprint, Models())["experts"]


def test_a_record_is_found_again_without_its_matrices(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keep_lens(store, "experts", lens_of(), Models())
    found = found_in(store)
    assert found.layers[0].matrices == {}
    assert found.loss.value == 2.0
    assert found_in(store, "0" * 64) == absent_reason("experts"), "of other weights"
    assert find_lenses(store, PRINT, Models())["routing"] == absent_reason("routing")


def test_the_widest_counts_and_of_two_that_are_as_wide_the_later(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for record in (
        lens_of(3, 50, settings={"rank": 1}), lens_of(2, 900, settings={"rank": 2}),
        lens_of(3, 80, settings={"rank": 3}), lens_of(3, None, settings={"rank": 4}),
    ):  # fmt: skip
        keep_lens(store, "experts", record, Models())
    assert found_in(store).settings == {"rank": 3}, "routers first, then tokens"


def test_alike_measurements_take_the_place_of_one_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keep_lens(store, "experts", lens_of(loss=Metric(2.0)), Models())
    keep_lens(store, "experts", lens_of(loss=Metric(1.0)), Models())
    assert found_in(store).loss.value == 1.0
    keep_lens(store, "experts", lens_of(sha256="b" * 64), Models())
    assert len(list(tmp_path.rglob("experts-*"))) == 2, "another probe keeps its own"


def test_what_is_damaged_says_so_unless_another_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keep_lens(store, "experts", lens_of(), Models())
    [path] = tmp_path.rglob("experts-*")
    path.write_text("{")
    assert found_in(store) == damaged_reason("experts")
    assert lens_notes({"experts": damaged_reason("experts")}) == [damaged_reason("experts")]
    keep_lens(store, "experts", lens_of(settings={"rank": 2}), Models())
    assert found_in(store).settings == {"rank": 2}


@pytest.mark.parametrize(("tokens", "said"), [(12345, "12,345 tokens"), (None, "unknown tokens")])
def test_a_report_says_what_its_checks_rest_on(tokens: int | None, said: str) -> None:
    [note] = lens_notes({"experts": lens_of(3, tokens)})
    assert note.endswith(f"3 of 4 routers, probe text.jsonl, {said}")
    assert lens_notes({"experts": absent_reason("experts")}) == []


TRAINED = TrainingLog(
    7, 4096, 0.5, ({"step": 7, "loss": 2.5},), "transformers", {"router_aux_loss_coef": 0.01}
)


def folder_of(**changes: Any) -> Any:
    newest = SimpleNamespace(
        training=TRAINED, layout="transformers", config={"architectures": ["MixtralForCausalLM"]}
    )
    known = {"name": "run", "newest": newest, "checkpoints": (newest,), "skipped": (),
             "has_gaps": False}  # fmt: skip
    return SimpleNamespace(**known | changes)


def facts_of(run: Any, folder: Any) -> Any:
    probe = probe_of(domains=("a", "b", "a", "b", None, None))
    return fill_facts(run, folder, architecture_of(), probe, Settings(), None)


def test_progress_is_every_count_that_a_run_kept() -> None:
    assert training_progress(TRAINED) == {"step": 7.0, "tokens": 4096.0, "fraction": 0.5}
    assert training_progress(TrainingLog(0, None, None)) == {
        "step": 0.0,
        "tokens": None,
        "fraction": None,
    }


def test_facts_of_a_run_are_those_of_its_newest_checkpoint() -> None:
    found = facts_of(run_of(checkpoint(7)), folder_of())
    assert found.status == "complete"
    assert (found.run["name"], found.run["model_type"]) == ("run", "mixtral")
    assert found.run["architecture"] == "MixtralForCausalLM"
    assert (found.run["experts"], found.run["top_k"]) == (4, 2)
    assert found.run["log"] == [{"step": 7, "loss": 2.5}]
    assert found.settings["fisher"] == {"kind": "empirical", "unit": "position"}
    assert found.settings["baseline"] == "auto"
    ids = np.concatenate([s.input_ids[1:] for s in probe_of().sequences])
    shares = np.bincount(ids) / len(ids)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert found.probe["unigram_loss"] == pytest.approx(entropy, rel=0.2)


def test_a_run_that_misses_something_is_partial() -> None:
    whole = checkpoint(7)
    assert facts_of(run_of(whole), folder_of(has_gaps=True)).status == "partial"
    part = dataclasses.replace(whole, coverage=Coverage(3, 2, {"layers.2": "not called"}))
    assert facts_of(run_of(part, whole), folder_of()).status == "partial"


def test_a_checkpoint_by_itself_tells_its_framework_and_settings() -> None:
    found = describe_run(folder_of().newest, architecture_of()).run
    assert (found["framework"], found["model_type"]) == ("transformers", "mixtral")
    assert found["training"] == {"router_aux_loss_coef": 0.01}
