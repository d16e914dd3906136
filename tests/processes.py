"""The command line in processes of their own that have torch and transformers at once.

A process of `python -m moegeo_cli` imports for seconds before it works. These are forks of one
server that has imported already (multiprocessing's), for tests of what ends processes: signals,
ranks that lose each other. What an interpreter does at its start and end is not in them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 120.0  # seconds
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["moegeo_cli.replay.ranks", "moegeo_cli.models.loading"])


class Started:
    """A command that was started, its streams in files.

    Args:
        folder: where it runs.
        arguments: of `moegeo`.
        environment: variables beside those of this process.
    """

    def __init__(
        self, folder: Path, *arguments: object, environment: Mapping[str, object] | None = None
    ) -> None:
        place = sum(1 for _ in folder.glob(".out-*"))
        self.files = folder / f".out-{place}", folder / f".err-{place}"
        for file in self.files:
            file.touch()
        variables = {**os.environ, **{k: str(v) for k, v in (environment or {}).items()}}
        self.process = SERVER.Process(
            target=_run, args=(variables, folder, [str(a) for a in arguments], self.files)
        )
        self.process.start()

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return self.files[0].read_text()

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self.files[1].read_text()

    def wait_for(self, words: str) -> None:
        """Wait until stderr has these words."""
        end = time.monotonic() + PATIENCE
        while words not in self.err:
            assert self.process.is_alive(), self.err
            assert time.monotonic() < end
            time.sleep(0.01)

    def end(self) -> tuple[int | None, str, str]:
        """Exit code, stdout and stderr, once it has ended."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        self.kill()
        return code, self.out, self.err

    def kill(self) -> None:
        """End it, if it still runs."""
        self.process.kill()
        self.process.join()


def _run(
    variables: dict[str, str], folder: Path, arguments: list[str], files: tuple[Path, Path]
) -> None:
    from moegeo_cli.__main__ import main

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = ["moegeo", *arguments]
    main()
