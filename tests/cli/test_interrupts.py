"""An interrupt that a library drops still ends the command."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from moegeo_cli.cli.console import LineProgress
from moegeo_cli.cli.interrupts import raise_pending, remembered_interrupts


def test_a_dropped_interrupt_is_raised_at_the_next_word_on_progress() -> None:
    before = signal.getsignal(signal.SIGINT)
    with remembered_interrupts():
        with contextlib.suppress(BaseException):  # what an import in a library may do
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            LineProgress().advance(1)
        with pytest.raises(KeyboardInterrupt):
            raise_pending()
    raise_pending()
    assert signal.getsignal(signal.SIGINT) is before
