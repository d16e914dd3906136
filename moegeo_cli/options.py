"""Every option of moegeo, declared once: its name, type, default, help and bounds.

A group is a TypedDict whose fields are options, and a command takes several groups together. The
Python API, the command line, the settings file and the reference page are derived from these
declarations (`keywords.py`, `cli/options.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from moegeo_cli.keywords import JUDGING, OUTPUT, OWN, Option
from moegeo_cli.registry import formats_of_lenses, formats_of_reports


class NoOptions(TypedDict, total=False):
    """Of a command that has none."""


class Config(TypedDict, total=False):
    """Where a checkpoint's config is."""

    config: Annotated[Path | str | None, Option(
        None, "A config.json, or a folder that holds one and the tokenizer: for checkpoints "
        "without one, such as those of FSDP and torchtitan. For an adapter, the folder of its base "
        "model.", said=Path,
    )]  # fmt: skip


class OwnModel(TypedDict, total=False):
    """A model of the user's own."""

    model: Annotated[str | Callable[..., Any] | None, Option(
        None, "What builds your model: PACKAGE.MODULE:CALLABLE. It is your code: moegeo runs it "
        "with the parsed config.json.", OWN, said=str,
    )]  # fmt: skip
    router: Annotated[str | None, Option(
        None, "Module names of its routers: a glob like 'blocks.*.router', or a regex after 're:'. "
        "Default: found by structure.", OWN,
    )]  # fmt: skip
    top_k: Annotated[int | None, Option(
        None, "Experts per token, if neither the config nor the router says it.", OWN, least=1,
    )]  # fmt: skip
    scoring: Annotated[str | None, Option(
        None, "softmax, sigmoid or sqrt_softplus. Default: scoring_func in config.json.", OWN,
    )]  # fmt: skip


class ProbeKeys(TypedDict, total=False):
    """Which keys of a probe's records are read."""

    text_key: Annotated[str | None, Option(
        None, "The key of a probe's text, token ids or messages. Default: text, input_ids, "
        "messages or conversations.",
    )]  # fmt: skip
    domain_key: Annotated[str | None, Option(
        None, "The key of a probe's domain, such as its language. meta.language is the key "
        "language inside meta. Default: domain.",
    )]  # fmt: skip


class ProbeData(ProbeKeys, total=False):
    """What the model reads."""

    probe: Annotated[Path | str | None, Option(
        None, "Probe dataset: text, token ids or chats, as .jsonl or .parquet for instance. "
        "Default: the bundled one.", said=Path,
    )]  # fmt: skip
    max_tokens: Annotated[int | None, Option(
        None, "Probe tokens to use. Default: as many as the dead-expert test needs, at least "
        "8,192.",
        least=1,
    )]  # fmt: skip


class Captures(TypedDict, total=False):
    """Router inputs in the place of a probe."""

    captures: Annotated[Path | str | None, Option(
        None, "Router inputs captured earlier, instead of a probe. No model is built; weights come "
        "from the files (docs/how-to/own-models.md).", said=Path,
    )]  # fmt: skip


class Fisher(TypedDict, total=False):
    """Which Fisher FHS uses."""

    fisher: Annotated[Literal["empirical", "categorical", "adam"], Option(
        "empirical", "Which Fisher FHS uses: empirical (needs labels), categorical (needs no "
        "loss) or adam (from the optimizer's state, without a forward pass).",
    )]  # fmt: skip
    unit: Annotated[Literal["position", "sequence", "loss_token"], Option(
        "position", "Sample unit of the empirical Fisher.",
    )]  # fmt: skip


class Baseline(TypedDict, total=False):
    """What FHS compares with."""

    baseline: Annotated[str | None, Option(
        None, "What FHS compares with: a STEP, a PATH, init (fresh initialisations) or none. "
        "Default: the run's step 0; for a run of adapters, the base model.",
    )]  # fmt: skip


class Chosen(TypedDict, total=False):
    """Which checkpoints of a run."""

    steps: Annotated[str | Sequence[int] | None, Option(
        None, "Only these steps of a run, such as 0,100-500.", said=str,
    )]  # fmt: skip
    latest: Annotated[bool, Option(False, "Only the newest checkpoint of a run.")]


class Compute(TypedDict, total=False):
    """How a model computes."""

    device: Annotated[str, Option("auto", "Where to compute: auto, cpu, cuda, cuda:1, mps, …")]
    batch_size: Annotated[int | None, Option(
        None, "Sequences per batch. Default: about 2,048 tokens per batch.", least=1,
    )]  # fmt: skip
    seed: Annotated[int, Option(
        0, "Random seed for sampling, resampling and fresh initialisations.", least=0,
    )]  # fmt: skip


class Memory(TypedDict, total=False):
    """How much memory there is."""

    memory: Annotated[str | int | None, Option(
        None, "Stay within this much memory, such as 8GB. moegeo takes smaller batches, then "
        "streams layers (not for invariance), else refuses.", said=str,
    )]  # fmt: skip


class Loading(Memory, total=False):
    """How much of a model is loaded, and how."""

    layers: Annotated[str | Sequence[int] | None, Option(
        None, "Only these decoder layers, such as 0,4-7.", said=str,
    )]  # fmt: skip
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Option(
        "auto", "The dtype in which the model computes. auto: the saved one.",
    )]  # fmt: skip
    stream: Annotated[bool, Option(
        False, "Read layers from the files while they compute, even if the model would fit in "
        "memory.",
    )]  # fmt: skip


class Placement(TypedDict, total=False):
    """A model in parts."""

    device_map: Annotated[str | None, Option(
        None, "Split the model over devices: auto, cpu, disk, or a JSON object of module and "
        "device. Needs moegeo[offload].",
    )]  # fmt: skip
    parallel: Annotated[Literal["data", "expert", "tensor"], Option(
        "data", "What ranks under torchrun share. data: the probe, each with the whole model. "
        "expert or tensor: the model, each with a part of it by its plan in transformers.",
    )]  # fmt: skip


class StorePlace(TypedDict, total=False):
    """Where measurements are kept."""

    cache_dir: Annotated[Path | str | None, Option(
        None, "Where measurements are kept. Default: .moegeo in the run.", said=Path,
    )]  # fmt: skip


class Storage(StorePlace, total=False):
    """What is kept of a measurement."""

    cache: Annotated[bool, Option(
        True, "Measure again and keep nothing.", flags=("--no-cache",), off=True,
    )]  # fmt: skip
    verify_fingerprint: Annotated[Literal["sampled", "full"], Option(
        "sampled", "How much of the files is hashed to see whether a stored measurement is of "
        "them.",
    )]  # fmt: skip


class Limits(TypedDict, total=False):
    """The verdict's limits."""

    thresholds: Annotated[Mapping[str, Any] | Path | str | None, Option(
        None, "Limits of the verdict that replace the calibrated ones "
        "(docs/reference/findings.md). In Python: a table, or the path of a TOML file.",
        JUDGING, setting=True,
    )]  # fmt: skip


class Policy(TypedDict, total=False):
    """Which rules judge."""

    policy: Annotated[Literal["calibrated", "paper"], Option(
        "calibrated", "calibrated: limits from measured runs. paper: FHS > 1 is failing.", JUDGING,
    )]  # fmt: skip


class Framework(TypedDict, total=False):
    """Whose keys interventions name."""

    framework: Annotated[str | None, Option(
        None, "The training framework whose settings interventions name. Default: found from the "
        "checkpoint.", JUDGING,
    )]  # fmt: skip


class Model(Config, OwnModel, total=False):
    """What model a checkpoint is of."""


class Replay(ProbeData, Compute, Loading, total=False):
    """One pass of the probe through a model."""


class Reference(TypedDict, total=False):
    """What the loss is held against."""

    reference: Annotated[Path | str | None, Option(
        None, "A healthy run to compare the loss with.", JUDGING, said=Path,
    )]  # fmt: skip


class Analyze(
    Replay, Captures, Baseline, Fisher, Chosen, Placement, Storage, Policy, Framework, Limits,
    Model, Reference, total=False,
):  # fmt: skip
    """Options of `analyze`."""


class Watch(
    Replay, Baseline, Fisher, Placement, Storage, Policy, Framework, Limits, Model, Reference,
    total=False,
):  # fmt: skip
    """Options of `watch`."""

    interval: Annotated[float, Option(30.0, "Seconds between two looks at the run.", least=0)]


class Demo(Replay, StorePlace, total=False):
    """Options of `demo`."""


class Compare(
    Replay, Baseline, Fisher, Placement, Storage, Policy, Limits, Model, total=False
):  # fmt: skip
    """Options of `compare`."""

    by: Annotated[Literal["tokens", "step", "fraction"] | None, Option(
        None, "Match checkpoints by this. Default: tokens where both runs record them, else step.",
    )]  # fmt: skip
    force: Annotated[bool, Option(
        False, "Compare even if probes or estimators differ; there are no intervals then.",
    )]  # fmt: skip


class Check(Chosen, Storage, Framework, Limits, Model, total=False):
    """Options of `check`."""

    quick: Annotated[bool, Option(
        False, "Read routers, biases and norms only; skip the experts.",
    )]  # fmt: skip


class Experts(Replay, Captures, Storage, Framework, Limits, Model, total=False):
    """Options of `experts`."""

    tokens: Annotated[Literal["routed", "coselected", "all"], Option(
        "routed", "Tokens behind a pair's alignment: routed to either, to both, or all.",
    )]  # fmt: skip
    weights: Annotated[Literal["topk", "soft"], Option(
        "topk", "Weigh tokens by the dispatch (topk) or by the whole routing distribution (soft). "
        "soft only weighs otherwise: the model is the same.",
    )]  # fmt: skip
    rank: Annotated[float, Option(
        8.0, "Dimensions of the subspaces. Below 1: the share of variance to explain.",
    )]  # fmt: skip
    jacobian_tokens: Annotated[int, Option(256, "Tokens at which Jacobians are taken.", least=2)]
    directions: Annotated[int | None, Option(
        None, "Random directions per token; 0 takes whole Jacobians. Default: whole ones if cheap.",
        least=0,
    )]  # fmt: skip
    verify: Annotated[int, Option(
        0, "Try the top N candidates in memory: merge them, then silence them. The loss is "
        "compared with as many random choices, and choices by overlap and by weight cosine.",
        least=0,
    )]  # fmt: skip


class Routing(Replay, Captures, Chosen, Storage, Framework, Limits, Model, total=False):
    """Options of `routing`."""

    pairs: Annotated[int, Option(8192, "Pairs of tokens to sample, of each kind.", least=16)]
    generate: Annotated[int, Option(
        0, "Let the model continue up to 64 prompts by this many tokens. Each token takes a pass "
        "over the prompts.", least=0,
    )]  # fmt: skip


class Invariance(ProbeData, Fisher, Compute, Memory, Model, total=False):
    """Options of `invariance`."""


OUTPUT_FILE = Option(
    None, "Write the report to this file instead of stdout.", OUTPUT, flags=("--output", "-o")
)


def _format(words: Callable[[], tuple[str, ...]]) -> Option:
    return Option(
        None, "Format of the report. Default: by the suffix of --output, else rich.", OUTPUT,
        flags=("--format", "-f"), words=words,
    )  # fmt: skip


LOG = Option(
    (), "Also write at most 30 scalars a checkpoint to SINK:WHERE, once each; repeat it for more: "
    "tensorboard:DIR, wandb[:PROJECT], mlflow[:URI], trackio[:PROJECT], prometheus:FILE or "
    "jsonl:FILE (docs/how-to/dashboards.md).", OUTPUT, said=list[str],
)  # fmt: skip


class Gate(TypedDict, total=False):
    """A script's question."""

    fail_on: Annotated[Literal["watch", "failing", "never"], Option(
        "never", "Exit with 1 at this status or worse, with 3 if inconclusive.", JUDGING,
    )]  # fmt: skip


class Full(TypedDict, total=False):
    """How much a terminal's report holds."""

    full: Annotated[bool, Option(
        False, "Print every table, in place of the first screen.", OUTPUT,
    )]  # fmt: skip


class ReportOutput(Full, total=False):
    """The report of a run."""

    format: Annotated[str | None, _format(formats_of_reports)]
    output: Annotated[Path | None, OUTPUT_FILE]


class RunOutput(ReportOutput, total=False):
    """The report of `analyze`."""

    log: Annotated[Sequence[str], LOG]


class WatchOutput(TypedDict, total=False):
    """What `watch` does beside its lines."""

    on_change: Annotated[str | None, Option(
        None, "A shell command to run when the verdict changes. Its environment has MOEGEO_RUN, "
        "MOEGEO_STEP, MOEGEO_VERDICT and MOEGEO_BEFORE.", OUTPUT,
    )]  # fmt: skip
    log: Annotated[Sequence[str], LOG]


class LensOutput(Full, total=False):
    """The report of a lens."""

    matrices: Annotated[Path | None, Option(
        None, "Also write the E×E matrices: .safetensors or .csv.", OUTPUT,
    )]  # fmt: skip
    format: Annotated[str | None, _format(formats_of_lenses)]
    output: Annotated[Path | None, OUTPUT_FILE]


class FileOutput(TypedDict, total=False):
    """A file."""

    output: Annotated[Path | None, OUTPUT_FILE]


class FactsOutput(TypedDict, total=False):
    """A table of facts."""

    format: Annotated[str | None, _format(lambda: ("rich", "json"))]
    output: Annotated[Path | None, OUTPUT_FILE]
