"""Whatever a router or its hook does, a captured training goes on as if nobody looked."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from moegeo_cli import capture_routers
from moegeo_cli.replay import reading

VOCABULARY, WIDTH, EXPERTS = 32, 8, 4
NOTHING = nn.Identity()


class Router(nn.Module):
    """Makes its logits itself and hands them over in a form of its own."""

    def __init__(self, form: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH) * 0.1)
        self.form = form

    def forward(self, x: torch.Tensor, scale: Any = None) -> Any:
        return self.form(nn.functional.linear(x, self.weight))


class Model(nn.Module):
    """One router between embedding and head; `call` says how it is called, `read` its answer."""

    def __init__(self, form: Any, call: Any, read: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.gate = Router(form)
        self.head = nn.Linear(WIDTH + EXPERTS, VOCABULARY)
        self.call, self.read = call, read

    def forward(self, idx: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        x = self.embed(idx)
        logits = self.read(self.call(self.gate, x.reshape(-1, WIDTH)))
        return self.head(torch.cat([x, logits.reshape(*x.shape[:2], -1)], -1))


def by_place(gate: nn.Module, x: torch.Tensor) -> Any:
    return gate(x)


def by_keyword(gate: nn.Module, x: torch.Tensor) -> Any:
    return gate(x=x)


def keyword_after(gate: nn.Module, x: torch.Tensor) -> Any:
    return gate(scale=None, x=x)


def train(model: nn.Module, ids: torch.Tensor, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def build(form: Any, call: Any = by_place, read: Any = NOTHING) -> Model:
    torch.manual_seed(0)
    return Model(form, call, read)


IDS = torch.arange(12).reshape(2, 6)
READABLE = {
    "keyword": (NOTHING, by_keyword, NOTHING),
    "keyword after others": (NOTHING, keyword_after, NOTHING),
    "dict": (lambda y: {"logits": y}, by_place, lambda o: o["logits"]),
    "ordered": (lambda y: OrderedDict(logits=y, s=y.sum()), by_place, lambda o: o["logits"]),
    "list": (lambda y: [y], by_place, lambda o: o[0]),
    "tuple with None": (lambda y: (None, y), by_place, lambda o: o[1]),
}  # fmt: skip


class Answer:
    """A structure of nobody's."""

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y


UNREADABLE = {
    "object": (Answer, by_place, lambda o: o.y),
    "dict of dicts": (lambda y: {"a": {"b": y}}, by_place, lambda o: o["a"]["b"]),
    "dict of scalars": (lambda y: {"n": y.sum()}, by_place, lambda o: o["n"].expand(12, EXPERTS)),
    "none": (lambda y: None, by_place, lambda o: torch.zeros(12, EXPERTS)),
    "other width": (lambda y: y[:, :3], by_place, lambda o: torch.cat([o, o[:, :1]], 1)),
    "fewer rows": (lambda y: y[:5], by_place, lambda o: torch.zeros(12, EXPERTS)),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_router_of_another_form_is_captured(name: str, tmp_path: Path) -> None:
    form, call, read = READABLE[name]
    alone = train(build(form, call, read), IDS)
    model = build(form, call, read)
    file = tmp_path / "c.safetensors"
    with capture_routers(model, file, router="gate", max_tokens=100) as found:
        assert train(model, IDS) == alone
    assert found.problem is None
    tensors = load_file(file)
    assert tensors["router.gate.inputs"].shape == (36, WIDTH)
    assert tensors["router.gate.logits"].shape == (36, EXPERTS)


@pytest.mark.parametrize("strict", [False, True], ids=["warnings", "warnings as errors"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_router_that_cannot_be_read_ends_the_capture_alone(
    name: str, strict: bool, tmp_path: Path
) -> None:
    form, call, read = UNREADABLE[name]
    alone = train(build(form, call, read), IDS)
    model = build(form, call, read)
    file = tmp_path / "c.safetensors"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("error" if strict else "always")
        with capture_routers(model, file, router="gate") as found:
            assert train(model, IDS) == alone
    if not strict:
        [first, *_] = said
        assert "ended early" in str(first.message)
        assert "nothing is kept" in str(first.message)
    assert found.problem
    assert not file.exists()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("place", ["read_choice", "_own_logits", "_first_tensor"])
def test_a_fault_of_moegeo_in_a_later_pass_keeps_the_passes_before(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train(build(NOTHING), IDS)
    model = build(NOTHING)
    file = tmp_path / "c.safetensors"
    right, calls = getattr(reading, place), []

    def fail_third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise IndexError("a fault")
        return right(*arguments)

    monkeypatch.setattr(reading, place, fail_third)
    with (
        pytest.warns(RuntimeWarning, match=r"IndexError: a fault; 24 tokens .* kept"),
        capture_routers(model, file, router="gate", max_tokens=100),
    ):
        assert train(model, IDS) == alone
    assert {len(tensor) for tensor in load_file(file).values()} == {24}


def test_a_replay_still_hears_the_fault() -> None:
    from moegeo_cli.errors import UnsupportedArchitectureError
    from moegeo_cli.routers.finding import find_routers

    model = build(Answer, by_place, lambda o: o.y)
    reading.RouterTap(find_routers(model, pattern="gate")[0], lambda call: None)
    with pytest.raises(
        UnsupportedArchitectureError,
        match=r"the router gate \(Router\) returns its choice in a form that moegeo cannot read",
    ):
        model(IDS)


def test_first_batches_of_padding_do_not_end_the_capture(tmp_path: Path) -> None:
    model = build(NOTHING)
    file = tmp_path / "c.safetensors"
    none, some = torch.zeros_like(IDS), torch.ones_like(IDS)
    some[0] = 0  # the first sequence is padding, and the second does not fit whole
    with capture_routers(model, file, router="gate", max_tokens=4) as found:
        model(IDS, attention_mask=none)
        assert not found.full
        model(IDS, attention_mask=some)
        assert found.full
    assert load_file(file)["token_ids"].tolist() == IDS[1, :4].tolist()


def test_a_domain_that_is_named_late_leaves_no_row_without_one(tmp_path: Path) -> None:
    model = build(NOTHING)
    file = tmp_path / "c.safetensors"
    with capture_routers(model, file, router="gate", max_tokens=100) as found:
        model(IDS)
        found.domain = "code"
        model(IDS)
    tensors = load_file(file)
    assert {len(tensor) for tensor in tensors.values()} == {24}
    assert tensors["domains"].tolist() == [0] * 12 + [1] * 12
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["moegeo.captures"])
    assert facts["domains"] == ["other", "code"]


def test_passes_of_two_kinds_are_not_mixed_in_one_file(tmp_path: Path) -> None:
    model = build(lambda y: y if model.training else (y, y.topk(2).values, y.topk(2).indices),
                  read=lambda o: o if isinstance(o, torch.Tensor) else o[0])  # fmt: skip
    file = tmp_path / "c.safetensors"
    found = capture_routers(model, file, router="gate", max_tokens=100)
    model.eval()(IDS)
    with pytest.warns(RuntimeWarning, match="other tensors than in earlier passes"):
        model.train()(IDS)
    found.close()
    assert {len(tensor) for tensor in load_file(file).values()} == {12}


def test_a_disk_that_is_full_does_not_end_what_follows_the_block(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(RuntimeWarning, match="cannot be written"),
        capture_routers(
            build(NOTHING), tmp_path / "file" / "c.safetensors", router="gate"
        ) as found,
    ):
        found.model(IDS)
    assert "cannot be written" in (found.problem or "")


def test_closing_twice_writes_once_and_warns_of_nothing(tmp_path: Path) -> None:
    model = build(NOTHING)
    file = tmp_path / "c.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with capture_routers(model, file, router="gate") as found:
            model(IDS)
        written = file.read_bytes()
        found.close()
    assert file.read_bytes() == written
