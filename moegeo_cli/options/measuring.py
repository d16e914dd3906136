"""Options that say what is measured and how: model, probe, checkpoints, computation, store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from moegeo_cli.keywords import OWN, Option


class Config(TypedDict, total=False):
    """The config of a checkpoint."""

    config: Annotated[Path | str | None, Option(
        None, "A config.json, or a folder that holds one and the tokenizer. Needed for checkpoints "
        "without a config, such as those of FSDP and torchtitan. For an adapter, the folder of its "
        "base model.", cli_type=Path,
    )]  # fmt: skip


class OwnModel(TypedDict, total=False):
    """A user's own model."""

    model: Annotated[str | Callable[..., Any] | None, Option(
        None, "The function that builds your model: PACKAGE.MODULE:CALLABLE. moegeo runs this code "
        "with the parsed config.json.", OWN, cli_type=str, importable=True,
    )]  # fmt: skip
    router: Annotated[str | None, Option(
        None, "Module names of the model's routers: a glob like 'blocks.*.router', or a regex "
        "after 're:'. Default: found by structure.", OWN,
    )]  # fmt: skip
    top_k: Annotated[int | None, Option(
        None, "Experts per token, if neither the config nor the router says it.", OWN, minimum=1,
    )]  # fmt: skip
    scoring: Annotated[str | None, Option(
        None, "softmax, sigmoid or sqrt_softplus. Default: scoring_func in config.json.", OWN,
    )]  # fmt: skip


class Model(Config, OwnModel, total=False):
    """How to build the model of a checkpoint."""


class ProbeFile(TypedDict, total=False):
    """The probe: the texts that the model is run on."""

    probe: Annotated[Path | str | None, Option(
        None, "Probe dataset: text, token ids or chats, for example as .jsonl or .parquet. "
        "Default: the bundled probe.", cli_type=Path,
    )]  # fmt: skip
    max_tokens: Annotated[int | None, Option(
        None, "Number of probe tokens to use. Default: as many as the dead-expert test needs, at "
        "least 8,192.",
        minimum=1,
    )]  # fmt: skip


class ProbeKeys(TypedDict, total=False):
    """The keys that are read from a probe's records."""

    text_key: Annotated[str | None, Option(
        None, "The key of a probe's text, token ids or messages. Default: text, input_ids, "
        "messages or conversations.",
    )]  # fmt: skip
    domain_key: Annotated[str | None, Option(
        None, "The key of a probe's domain, such as its language. meta.language is the key "
        "language inside meta. Default: domain.",
    )]  # fmt: skip


class ProbeData(ProbeFile, ProbeKeys, total=False):
    """The probe, and the keys of its records."""


class Captures(TypedDict, total=False):
    """Captured router inputs, used instead of a probe."""

    captures: Annotated[Path | str | None, Option(
        None, "Router inputs that were captured earlier, used instead of a probe. No model is "
        "built; router weights come from the checkpoint's files (docs/how-to/own-models.md).",
        cli_type=Path,
    )]  # fmt: skip


class Fisher(TypedDict, total=False):
    """The Fisher that FHS uses."""

    fisher: Annotated[Literal["empirical", "categorical", "adam"], Option(
        "empirical", "Which Fisher FHS uses: empirical (needs labels), categorical (needs no "
        "loss) or adam (from the optimizer's state, without a forward pass).",
    )]  # fmt: skip
    unit: Annotated[Literal["position", "sequence", "loss_token"], Option(
        "position", "Sample unit of the empirical Fisher.",
    )]  # fmt: skip


class Exact(TypedDict, total=False):
    """A short form of `unit`, on the command line only."""

    exact: Annotated[bool, Option(
        False, "Short for --unit loss_token: one backward pass per token, which is slow.",
    )]  # fmt: skip


class Baseline(TypedDict, total=False):
    """The checkpoint that FHS compares with."""

    baseline: Annotated[str | None, Option(
        None, "What FHS compares with: a STEP, a PATH, init (fresh initialisations) or none. "
        "Default: the run's step 0; for a run of adapters, the base model.",
    )]  # fmt: skip


class CheckpointChoice(TypedDict, total=False):
    """Which checkpoints of a run are measured."""

    steps: Annotated[str | Sequence[int] | None, Option(
        None, "Only these steps of a run, such as 0,100-500.", cli_type=str,
    )]  # fmt: skip
    latest: Annotated[bool, Option(False, "Only the newest checkpoint of a run.")]


class Compute(TypedDict, total=False):
    """Device, batch size and random seed."""

    device: Annotated[str, Option("auto", "Where to compute: auto, cpu, cuda, cuda:1, mps, …")]
    batch_size: Annotated[int | None, Option(
        None, "Sequences per batch. Default: about 2,048 tokens per batch.", minimum=1,
    )]  # fmt: skip
    seed: Annotated[int, Option(
        0, "Random seed for sampling, resampling and fresh initialisations.", minimum=0,
    )]  # fmt: skip


class Memory(TypedDict, total=False):
    """A limit on memory."""

    memory: Annotated[str | int | None, Option(
        None, "Stay within this much memory, such as 8GB: moegeo uses smaller batches, then "
        "streams layers (not for invariance). If neither is enough, it stops with an error.",
        cli_type=str,
    )]  # fmt: skip


class Loading(Memory, total=False):
    """Which part of a model is loaded, and how."""

    layers: Annotated[str | Sequence[int] | None, Option(
        None, "Only these decoder layers, such as 0,4-7.", cli_type=str,
    )]  # fmt: skip
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Option(
        "auto", "The dtype in which the model computes. auto: the dtype that it was saved in.",
    )]  # fmt: skip
    stream: Annotated[bool, Option(
        False, "Read each layer from the files when it computes, even if the model would fit in "
        "memory.",
    )]  # fmt: skip


class Replay(ProbeData, Compute, Loading, total=False):
    """A pass of the probe through a model."""


class Placement(TypedDict, total=False):
    """How a model is split over devices or processes."""

    device_map: Annotated[str | None, Option(
        None, "Split the model over devices: auto, cpu, disk, or a JSON object from module to "
        "device. Needs moegeo[offload].",
    )]  # fmt: skip
    parallel: Annotated[Literal["data", "expert", "tensor"], Option(
        "data", "What is split among the ranks of torchrun. data: the probe; each rank holds the "
        "whole model. expert or tensor: the model, by its plan in transformers.",
    )]  # fmt: skip


class StorePlace(TypedDict, total=False):
    """Where measurements are stored."""

    cache_dir: Annotated[Path | str | None, Option(
        None, "Folder in which measurements are stored. Default: .moegeo in the run.",
        cli_type=Path,
    )]  # fmt: skip


class Storage(StorePlace, total=False):
    """Whether and how stored measurements are used."""

    cache: Annotated[bool, Option(
        True, "Measure everything again, and store nothing.", flags=("--no-cache",), negated=True,
    )]  # fmt: skip
    verify_fingerprint: Annotated[Literal["sampled", "full"], Option(
        "sampled", "How much of the checkpoint's files is hashed to check that a stored "
        "measurement belongs to them.",
    )]  # fmt: skip
