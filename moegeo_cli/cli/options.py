"""Options that several commands share, written once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What stdout carries."""

    rich = "rich"
    json = "json"
    markdown = "markdown"
    csv = "csv"
    junit = "junit"
    github = "github"


class FailOn(StrEnum):
    """From which status on the exit code is 1."""

    watch = "watch"
    failing = "failing"
    never = "never"


class FisherKind(StrEnum):
    """Which Fisher the heterogeneity metrics are of."""

    empirical = "empirical"
    categorical = "categorical"
    adam = "adam"


class Unit(StrEnum):
    """Sample unit of the empirical Fisher."""

    position = "position"
    sequence = "sequence"
    loss_token = "loss_token"


class Policy(StrEnum):
    """Which rules judge."""

    calibrated = "calibrated"
    paper = "paper"


class Verification(StrEnum):
    """What a checkpoint's fingerprint covers."""

    sampled = "sampled"
    full = "full"


class Dtype(StrEnum):
    """The dtype that the model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


MEASURING, JUDGING, OUTPUT = "What to measure, and how", "How to judge", "Output"
OWN = "A model of your own (docs/how-to/own-models.md)"

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="What builds your model: PACKAGE.MODULE:CALLABLE, called with the "
                 "parsed config.json. Your code, run as such.", rich_help_panel=OWN),
]  # fmt: skip
RouterOption = Annotated[
    str | None,
    typer.Option("--router", help="Its routers, by module name: a glob like 'blocks.*.router', or "
                 "a regex after 're:'. Default: found by structure.", rich_help_panel=OWN),
]  # fmt: skip
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", min=1, help="Experts a token, where neither its config nor the router "
                 "says.", rich_help_panel=OWN),
]  # fmt: skip
ScoringOption = Annotated[
    str | None,
    typer.Option("--scoring", help="softmax, sigmoid or sqrt_softplus. Default: scoring_func in "
                 "config.json.", rich_help_panel=OWN),
]  # fmt: skip

ProbeOption = Annotated[
    Path | None,
    typer.Option("--probe", help="Probe dataset (.jsonl, .txt, .safetensors). Default: bundled.",
                 rich_help_panel=MEASURING),
]  # fmt: skip
CapturesOption = Annotated[
    Path | None,
    typer.Option("--captures", help="Router inputs captured earlier, instead of a probe: no model "
                 "is built, weights come from the files alone (docs/how-to/own-models.md).",
                 rich_help_panel=MEASURING),
]  # fmt: skip
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="A config.json, or a folder with one and the tokenizer, for "
                 "checkpoints without their own: FSDP's and torchtitan's, for instance. For an "
                 "adapter that lies alone, the folder of its base model.",
                 rich_help_panel=MEASURING),
]  # fmt: skip
FisherOption = Annotated[
    FisherKind,
    typer.Option("--fisher", help="Fisher behind FHS. categorical needs no loss, adam no pass.",
                 rich_help_panel=MEASURING),
]  # fmt: skip
UnitOption = Annotated[
    Unit, typer.Option("--unit", help="Sample unit of the empirical Fisher.",
                       rich_help_panel=MEASURING),
]  # fmt: skip
LayersOption = Annotated[
    str | None,
    typer.Option("--layers", help="Only these layers: 0,4-7.", rich_help_panel=MEASURING),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, …",
                      rich_help_panel=MEASURING),
]  # fmt: skip
DeviceMapOption = Annotated[
    str | None,
    typer.Option("--device-map", help="A model in parts: auto, cpu, disk, or JSON of module and "
                 "device. Needs moegeo[offload].", rich_help_panel=MEASURING),
]  # fmt: skip
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="auto: the dtype that was saved.",
                        rich_help_panel=MEASURING),
]  # fmt: skip
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Sequences a batch. Default: about 2,048 tokens.",
                 rich_help_panel=MEASURING),
]  # fmt: skip
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1,
                 help="Probe tokens to use. Default: what the dead-expert test needs, "
                      "at least 8,192.", rich_help_panel=MEASURING),
]  # fmt: skip
StreamOption = Annotated[
    bool, typer.Option("--stream", help="Read layers from the files while they compute, even "
                       "where the model would fit.", rich_help_panel=MEASURING),
]  # fmt: skip
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", help="Stay within so much memory: 8GB. Takes smaller batches, then "
                 "streams, else refuses.", rich_help_panel=MEASURING),
]  # fmt: skip
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Of resampling and fresh initialisations.",
                      rich_help_panel=MEASURING),
]  # fmt: skip
VerifyFingerprintOption = Annotated[
    Verification,
    typer.Option("--verify-fingerprint", help="How much of the files is hashed before a stored "
                 "measurement counts as theirs.", rich_help_panel=MEASURING),
]  # fmt: skip
NoCacheOption = Annotated[
    bool, typer.Option("--no-cache", help="Measure again and keep nothing.",
                       rich_help_panel=MEASURING),
]  # fmt: skip
CacheDirOption = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where measurements are kept. Default: .moegeo in the run.",
                 rich_help_panel=MEASURING),
]  # fmt: skip
PolicyOption = Annotated[
    Policy, typer.Option("--policy", help="calibrated: by evidence. paper: FHS > 1 is failing.",
                         rich_help_panel=JUDGING),
]  # fmt: skip
FrameworkOption = Annotated[
    str | None,
    typer.Option("--framework", help="Training framework whose keys interventions name. "
                                     "Default: found from the checkpoint.",
                 rich_help_panel=JUDGING),
]  # fmt: skip
FailOnOption = Annotated[
    FailOn, typer.Option("--fail-on", help="Exit 1 from this status on; 3 if inconclusive.",
                         rich_help_panel=JUDGING),
]  # fmt: skip
FormatOption = Annotated[
    Format, typer.Option("--format", "-f", help="What stdout carries.", rich_help_panel=OUTPUT)
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write the payload to this file instead of stdout.",
                 rich_help_panel=OUTPUT),
]  # fmt: skip
