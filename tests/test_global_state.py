"""moegeo is a guest: after any call of its Python API, what a process shares is as before."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moegeo_cli
from moegeo_cli import (
    Session,
    analyze,
    capture_routers,
    check,
    compare,
    demo,
    experts,
    explain,
    inspect,
    invariance,
    report,
    routing,
    watch,
)
from moegeo_cli.errors import MoegeoError
from moegeo_cli.probes import build_probe, load_probe
from tests.end_to_end.conftest import random_ids, write_probe
from tests.own_models import models

SHORT: dict[str, Any] = {"max_tokens": 64, "cache": False}
LIBRARIES = (
    "",
    "transformers",
    "accelerate",
    "accelerate.big_modeling",
    "torch",
    "huggingface_hub",
)


def snapshot() -> dict[str, Any]:
    """What is shared, read without moegeo's own list of it."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in LIBRARIES]
    return {
        "torch random": torch.get_rng_state().tolist(),
        "device random": [s.tolist() for s in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized() else None,
        "numpy random": repr(np.random.get_state(legacy=False)),
        "random": random.getstate(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": [(own.level, own.propagate, own.disabled, list(own.handlers), list(own.filters))
                    for own in loggers],
        "disabled": logging.root.manager.disable,
        "transformers": (transformers_logging.get_verbosity(),
                         transformers_logging.is_progress_bar_enabled()),
        "hub": are_progress_bars_disabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled(),
                          torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                          torch.get_float32_matmul_precision()),
        "path": list(sys.path), "environment": dict(os.environ), "folder": Path.cwd(),
        "errors of numpy": np.geterr(),
    }  # fmt: skip


@pytest.fixture
def unusual() -> Iterator[None]:
    """Settings that no library has by itself, so that a reset to defaults is seen as well."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    torch.manual_seed(7)
    torch.rand(3)
    np.random.seed(7)
    random.seed(7)
    with warnings.catch_warnings(), np.errstate(under="warn"):
        warnings.filterwarnings("once", category=ResourceWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)
    transformers_logging.set_verbosity(level)


@pytest.fixture
def run(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for seed in (0, 1):
        shutil.copytree(tiny("mixtral", seed), tmp_path / "run" / f"checkpoint-{seed}")
    return tmp_path / "run"


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return write_probe(tmp_path / "probe.jsonl", random_ids([20, 20, 20, 20]))


def meddle(config: Any) -> torch.nn.Module:
    """A user's factory that changes whatever it can."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(logging.NullHandler())
    sys.path.insert(0, "/nowhere")
    os.environ["MOEGEO_TEST"] = "1"
    return models.Causal()


def own(function: Callable[..., Any], tmp_path: Path, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.save(models.Causal().state_dict(), tmp_path / "weights.pt")
    options["probe"] = write_probe(tmp_path / "own.jsonl", [[3, 1, 2, 5, 7, 11, 13, 17]] * 4)
    return function(tmp_path / "weights.pt", model=meddle, router="blocks.*.gate", top_k=2,
                    scoring="softmax", **options)  # fmt: skip


def own_files(tmp_path: Path) -> Any:
    with torch.random.fork_rng():
        torch.save(models.Causal().state_dict(), tmp_path / "weights.pt")
    return check(tmp_path / "weights.pt", model=meddle, router="blocks.*.gate", top_k=2,
                 scoring="softmax")  # fmt: skip


def captured(tmp_path: Path) -> Any:
    with torch.random.fork_rng():
        model = models.Causal()
    with capture_routers(model, tmp_path / "c.safetensors", router="blocks.*.gate"):
        return model(torch.ones(2, 3, dtype=torch.long))


def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A passage of text for a probe.\n\n" * 40)
    return path


def kept(run: Path, probe: Path, store: Path) -> Any:
    """What an analysis left in its store."""
    analyze(run, probe=probe, max_tokens=64, cache_dir=store)
    return report(run, cache_dir=store)


CALLS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "analyze": lambda r, p, t: analyze(r, probe=p, **SHORT),
    "analyze init": lambda r, p, t: analyze(r, probe=p, baseline="init", **SHORT),
    "analyze stream": lambda r, p, t: analyze(r, probe=p, stream=True, **SHORT),
    "analyze categorical": lambda r, p, t: analyze(r, probe=p, fisher="categorical", **SHORT),
    "analyze parts": lambda r, p, t: analyze(r, probe=p, device_map="disk", **SHORT),
    "analyze own": lambda r, p, t: own(analyze, t, **SHORT),
    "analyze own init": lambda r, p, t: own(analyze, t, baseline="init", **SHORT),
    "Session": lambda r, p, t: Session(probe=p, **SHORT).analyze(r),
    "check": lambda r, p, t: check(r, cache=False),
    "check own": lambda r, p, t: own_files(t),
    "compare": lambda r, p, t: compare(r, r, probe=p, **SHORT),
    "experts": lambda r, p, t: experts(r, probe=p, verify=1, **SHORT),
    "experts own": lambda r, p, t: own(experts, t, **SHORT),
    "routing": lambda r, p, t: routing(r, probe=p, generate=2, **SHORT),
    "routing own": lambda r, p, t: own(routing, t, **SHORT),
    "inspect": lambda r, p, t: inspect(r),
    "demo": lambda r, p, t: demo(max_tokens=64),
    "watch": lambda r, p, t: next(iter(watch(r, probe=p, **SHORT))),
    "report": lambda r, p, t: kept(r, p, t),
    "explain": lambda r, p, t: explain("MG101"),
    "invariance": lambda r, p, t: invariance(r, probe=p, max_tokens=64),
    "capture_routers": lambda r, p, t: captured(t),
    "build_probe": lambda r, p, t: build_probe([("prose", text(t))]),
    "load_probe": lambda r, p, t: load_probe(p, vocab_size=64, tokenizer_dir=r),
}  # fmt: skip


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("name", CALLS)
def test_nothing_global_is_changed(name: str, run: Path, probe: Path, tmp_path: Path) -> None:
    before = snapshot()
    CALLS[name](run, probe, tmp_path)
    after = snapshot()
    assert {key: value for key, value in after.items() if value != before[key]} == {}


def fail(config: Any) -> torch.nn.Module:
    meddle(config)
    raise RuntimeError("of the user's own")


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("function", [analyze, experts, routing, invariance])
def test_nothing_global_is_changed_where_the_call_raises(
    function: Callable[..., Any], probe: Path, tmp_path: Path
) -> None:
    torch.save(models.Causal().state_dict(), tmp_path / "weights.pt")
    before = snapshot()
    with pytest.raises(MoegeoError, match="fails to build"):
        function(tmp_path / "weights.pt", probe=probe, model=fail, router="blocks.*.gate", top_k=2,
                 scoring="softmax")  # fmt: skip
    assert snapshot() == before


def test_every_public_function_is_among_them() -> None:
    named = {name.split()[0] for name in CALLS}
    assert set(moegeo_cli.__all__) - {"__version__"} <= named


def test_fresh_initialisations_do_not_depend_on_what_the_process_drew(
    run: Path, probe: Path
) -> None:
    seen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        record = analyze(run, probe=probe, baseline="init", **SHORT)
        seen.append([m.value for m in record.checkpoints[-1].metrics.values()])
    assert seen[0] == seen[1]


def test_the_allocator_of_a_users_process_is_left_alone(
    run: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moegeo_cli.models.memory import allocator

    asked: list[object] = []

    def meet(name: object) -> None:
        asked.append(name)
        raise OSError("no such library")

    monkeypatch.setattr(allocator.ctypes, "CDLL", meet)
    analyze(run, probe=probe, stream=True, **SHORT)
    assert asked == []
    monkeypatch.setattr("moegeo_cli.process._is_own", True)
    analyze(run, probe=probe, stream=True, **SHORT)
    assert asked, "a process of moegeo's own sets it in the same place"


def test_the_command_line_alone_takes_the_process() -> None:
    script = (
        "import moegeo_cli.commands.analyze.api, moegeo_cli.process as p; print(p.is_own_process())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
