"""Saves and restores global state, because moegeo often runs inside a training process.

Libraries and users' model code change global state while a model is built and replayed. A context
manager saves that state and restores it, also after an exception. It imports no library: a library
that was not imported before has no state to restore.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Setting = tuple[Callable[[], Any], Callable[[Any], object]]  # reads a value; restores it


@contextlib.contextmanager
def kept_global_state() -> Iterator[None]:
    """Restore global state at the end of a block, where it changed.

    It covers random states, torch's modes and threads, logging, warnings, paths and environment.
    """
    saved = [(read, write, read()) for read, write in _settings()]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for read, write, value in reversed(saved):
                if not _same(read(), value):
                    write(value)


def keeps_global_state(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function so that global state is restored when it returns or raises."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        with kept_global_state():
            return function(*arguments, **keywords)

    return call


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators for a block, then restore them.

    Code that initialises a model draws from these generators.
    """
    import numpy as np
    import torch

    cuda: Any = torch.cuda
    with kept_global_state():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # users' model code may draw from it
        # torch.manual_seed would also seed devices that are initialised later.
        torch.default_generator.manual_seed(seed)
        if cuda.is_initialized():
            cuda.manual_seed_all(seed)
        yield


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if hasattr(one, "shape"):
        return bool((one == other).all())
    return bool(one == other)


def _settings() -> Iterator[Setting]:
    yield lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)
    yield lambda: dict(os.environ), _set_environment
    yield random.getstate, random.setstate
    yield lambda: logging.root.manager.disable, logging.disable
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            yield functools.partial(_read_logger, logger), functools.partial(_set_logger, logger)
    if "huggingface_hub.utils.tqdm" in sys.modules:
        states = sys.modules["huggingface_hub.utils.tqdm"].progress_bar_states
        yield lambda: dict(states), lambda value: (states.clear(), states.update(value))
    if "transformers.utils.logging" in sys.modules:
        bars: Any = sys.modules["transformers.utils.logging"]
        yield lambda: bars._tqdm_active, lambda value: setattr(bars, "_tqdm_active", value)
    if "numpy" in sys.modules:
        numpy: Any = sys.modules["numpy"]
        yield numpy.random.get_state, numpy.random.set_state
        yield numpy.geterr, lambda value: numpy.seterr(**value)
    if "torch" in sys.modules:
        yield from _torch_settings(sys.modules["torch"])


def _torch_settings(torch: Any) -> Iterator[Setting]:
    yield torch.get_rng_state, torch.set_rng_state
    for name in ("cuda", "xpu"):
        device = getattr(torch, name)
        if device.is_initialized():
            yield device.get_rng_state_all, device.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state
    yield torch.get_num_threads, torch.set_num_threads
    yield torch.is_grad_enabled, torch.set_grad_enabled
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.get_default_device, torch.set_default_device
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    yield (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    )
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    for name in ("enabled", "benchmark", "deterministic"):
        yield functools.partial(getattr, cudnn, name), functools.partial(setattr, cudnn, name)
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        yield getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp")


def _set_environment(value: dict[str, str]) -> None:
    for name in set(os.environ) - set(value):
        del os.environ[name]
    for name, text in value.items():
        if os.environ.get(name) != text:
            os.environ[name] = text


def _read_logger(logger: logging.Logger) -> list[Any]:
    return [
        logger.level, logger.propagate, logger.disabled, list(logger.handlers),
        list(logger.filters), [handler.level for handler in logger.handlers],
    ]  # fmt: skip


def _set_logger(logger: logging.Logger, value: list[Any]) -> None:
    logger.setLevel(value[0])
    logger.propagate, logger.disabled = value[1], value[2]
    logger.handlers[:], logger.filters[:] = value[3], value[4]
    for handler, level in zip(value[3], value[5], strict=True):
        handler.setLevel(level)
