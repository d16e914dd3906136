"""`Session`: options given once for several commands, in a notebook or over many runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from moegeo_cli.commands.analyze.api import analyze
from moegeo_cli.commands.check.api import check
from moegeo_cli.commands.compare.api import compare
from moegeo_cli.commands.demo.api import demo
from moegeo_cli.commands.experts.api import experts
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.commands.explain.api import explain
from moegeo_cli.commands.inspect.api import inspect
from moegeo_cli.commands.inspect.record import InspectionRecord
from moegeo_cli.commands.invariance.api import invariance
from moegeo_cli.commands.invariance.record import InvarianceRecord
from moegeo_cli.commands.report.api import report
from moegeo_cli.commands.routing.api import routing
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.commands.watch.api import Sighting, watch
from moegeo_cli.explanations.lookup import Explanation
from moegeo_cli.keywords import declared, refuse_unknown
from moegeo_cli.options import (
    Analyze,
    Check,
    Compare,
    Demo,
    Experts,
    Invariance,
    Model,
    NoOptions,
    Routing,
    StorePlace,
    Watch,
)
from moegeo_cli.records import RunRecord
from moegeo_cli.records.check import CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.registry import commands


class SessionOptions(Analyze, Watch, Compare, Check, Experts, Routing, Invariance, total=False):
    """The options of all commands."""


class Session:
    """Holds options for all commands. Each command uses the options that it knows.

    Options of a single call override the session's options.

        moegeo = Session(device="cuda", probe="probe.jsonl", max_tokens=16_384)
        moegeo.analyze("runs/a")
        moegeo.experts("runs/a", verify=4)

    Args:
        options: any options of any command.

    Raises:
        TypeError: an option that no command has.
    """

    def __init__(self, **options: Unpack[SessionOptions]) -> None:
        refuse_unknown("Session", declared(SessionOptions), options)
        self.options: Mapping[str, Any] = dict(options)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"Session({given})"

    def analyze(self, path: Path | str, **options: Unpack[Analyze]) -> RunRecord:
        """As `moegeo.analyze`."""
        return analyze(path, **self._with(Analyze, options))

    def watch(self, path: Path | str, **options: Unpack[Watch]) -> Iterator[Sighting]:
        """As `moegeo.watch`."""
        return watch(path, **self._with(Watch, options))

    def check(self, path: Path | str, **options: Unpack[Check]) -> CheckRecord:
        """As `moegeo.check`."""
        return check(path, **self._with(Check, options))

    def compare(
        self, run_a: Path | str, run_b: Path | str, **options: Unpack[Compare]
    ) -> ComparisonRecord:
        """As `moegeo.compare`."""
        return compare(run_a, run_b, **self._with(Compare, options))

    def demo(self, **options: Unpack[Demo]) -> RunRecord:
        """As `moegeo.demo`."""
        return demo(**self._with(Demo, options))

    def experts(self, path: Path | str, **options: Unpack[Experts]) -> ExpertsRecord:
        """As `moegeo.experts`."""
        return experts(path, **self._with(Experts, options))

    def report(self, path: Path | str, **options: Unpack[StorePlace]) -> AnyRecord:
        """As `moegeo.report`."""
        return report(path, **self._with(StorePlace, options))

    def routing(
        self, path: Path | str, other: Path | str | None = None, **options: Unpack[Routing]
    ) -> RoutingRecord:
        """As `moegeo.routing`."""
        return routing(path, other, **self._with(Routing, options))

    def invariance(self, path: Path | str, **options: Unpack[Invariance]) -> InvarianceRecord:
        """As `moegeo.invariance`."""
        return invariance(path, **self._with(Invariance, options))

    def explain(self, name: str, **options: Unpack[NoOptions]) -> Explanation:
        """As `moegeo.explain`."""
        return explain(name, **self._with(NoOptions, options))

    def inspect(self, path: Path | str, **options: Unpack[Model]) -> InspectionRecord:
        """As `moegeo.inspect`."""
        return inspect(path, **self._with(Model, options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A command that an extension added, with the session's options."""
        if name.startswith("_") or name not in commands():
            raise AttributeError(f"Session has no command {name!r}")
        command = commands()[name]

        def call(*paths: Path | str, **options: Any) -> Any:
            return command.function(*paths, **self._with(command.options, options))

        return call

    def _with(self, group: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The session's options that belong to a group, overridden by those of the call."""
        own = {name: value for name, value in self.options.items() if name in declared(group)}
        return {**own, **options}
