"""The rules of check on runs of digests and numbers: what is said, and how grave it is."""

from __future__ import annotations

from typing import Any

import pytest

from moegeo_cli.commands.check.bias_rules import bias_rounded, bias_unused
from moegeo_cli.commands.check.layer_sums import NearGroup
from moegeo_cli.commands.check.movement_rules import (
    ALONE,
    NOT_READ,
    experts_frozen,
    experts_reset,
    router_frozen,
    router_reset,
)
from moegeo_cli.commands.check.state_rules import (
    experts_damaged,
    experts_identical,
    experts_masked,
    identical_groups,
    router_no_gradient,
    router_nonfinite,
    router_zero,
)
from moegeo_cli.commands.check.untrained_rules import experts_untrained
from moegeo_cli.commands.check.words import experts_words, layers_words, spans
from moegeo_cli.verdict.rules import Found, Outcome, Skipped
from tests.commands.check.recorded import layer_of, past_of, sums_of


def found(outcome: Outcome) -> Found:
    assert isinstance(outcome, Found), outcome
    return outcome


def skipped(outcome: Outcome) -> str:
    assert isinstance(outcome, Skipped), outcome
    return outcome.reason


def moving(*digests: str, **changes: Any) -> list[Any]:
    """Checkpoints in which layer 1 moves each time and layer 0 has these digests."""
    return [
        sums_of(layer_of(0, d, **changes), layer_of(1, f"moved {place}"))
        for place, d in enumerate(digests)
    ]


def test_a_frozen_router_is_named_with_the_step_since() -> None:
    told = found(router_frozen(past_of(*moving("a", "b", "b", "b"))))
    assert (told.severity, told.layers) == ("watch", (0,))
    assert "the router of layer 0 since step 100" in told.message
    assert told.evidence[0].metric.value == 1.0
    assert router_frozen(past_of(*moving("a", "b"))) is None
    assert router_frozen(past_of(*moving("a"))) is ALONE
    still = [sums_of(layer_of(0, "a"))] * 2
    assert router_frozen(past_of(*still)) is None, "where nothing moves nothing is frozen"


def test_what_freezes_on_purpose_is_info_and_a_hash_layer_never_moves() -> None:
    why = ("config.json: freeze = True",)
    asked = [sums_of(layer_of(0, "a"), layer_of(1, str(i)), frozen_by=why) for i in range(2)]
    told = found(router_frozen(past_of(*asked)))
    assert told.severity == "info"
    assert told.message.endswith(f": {why[0]}")
    hashed = [sums_of(layer_of(0, "a"), layer_of(1, str(i)), facts={"hash_layers": [0]})
              for i in range(2)]  # fmt: skip
    assert router_frozen(past_of(*hashed)) is None


def test_frozen_experts_are_named_whole_layers_first_and_zeros_not() -> None:
    def at(place: int) -> Any:
        some = tuple(f"a{e}" if e < 2 else f"{place}{e}" for e in range(4))
        return sums_of(
            layer_of(0, "a", router_digest=str(place), expert_zero=(3,)),
            layer_of(1, str(place), expert_digests=some), layer_of(2, str(place)),
        )  # fmt: skip

    told = found(experts_frozen(past_of(at(0), at(1))))
    assert told.layers == (0, 1)
    assert "all experts of layer 0 since step 0" in told.message
    assert "experts 0, 1 in layer 1 since step 0" in told.message
    assert told.evidence[0].metric.value == 5.0, "three that are not zeros, and two"
    bare = [sums_of(layer_of(0, str(i), expert_digests=None)) for i in range(2)]
    assert experts_frozen(past_of(*bare)) is NOT_READ


def test_a_router_that_went_back_is_a_reset_and_a_copy_of_all_is_none() -> None:
    told = found(router_reset(past_of(*moving("a", "b", "a"))))
    assert (told.severity, told.layers) == ("failing", (0,))
    assert "layer 0 to step 0" in told.message
    assert router_reset(past_of(*moving("a", "b", "c"))) is None
    whole = [sums_of(layer_of(0, d)) for d in ("a", "b", "a")]
    assert router_reset(past_of(*whole)) is None


def test_experts_that_went_back_are_counted_and_named() -> None:
    def at(place: int, second: str) -> Any:
        own = ("x", second, f"{place}", f"{place}")
        return sums_of(layer_of(0, str(place), expert_digests=own), layer_of(1, str(place)))

    told = found(experts_reset(past_of(at(0, "s"), at(1, "t"), at(2, "s"))))
    assert told.evidence[0].metric.value == 1.0
    assert "(expert 1 in layer 0)" in told.message
    assert "to step 0" in told.message


def test_rows_that_are_lost_are_named() -> None:
    layers = layer_of(0, router_nonfinite=(1, 3)), layer_of(1, router_nonfinite=(0, 1, 2, 3))
    told = found(router_nonfinite(past_of(sums_of(*layers, layer_of(2)))))
    assert (told.severity, told.layers) == ("failing", (0, 1))
    assert "all experts of layer 1" in told.message
    assert "experts 1, 3 in layer 0" in told.message
    assert router_nonfinite(past_of(sums_of())) is None


def test_zero_rows_that_a_bias_switches_off_are_no_fault() -> None:
    told = found(router_zero(past_of(sums_of(layer_of(zero_rows=(1, 2), masked=(2,))))))
    assert "expert 1 in layer 0" in told.message
    assert router_zero(past_of(sums_of(layer_of(zero_rows=(2,), masked=(2,))))) is None
    assert skipped(router_zero(past_of(sums_of(layer_of(row_norms=())))))


def test_damaged_experts_fail_and_zero_ones_are_watched() -> None:
    layer = layer_of(expert_nonfinite=(2,), expert_zero=(0, 1), masked=(1,))
    told = found(experts_damaged(past_of(sums_of(layer))))
    assert told.severity == "failing"
    assert told.message == (
        "weights of expert 2 in layer 0 are NaN or infinite; "
        "weights of expert 0 in layer 0 are zeros"
    )
    empty = found(experts_damaged(past_of(sums_of(layer_of(expert_zero=(3,))))))
    assert empty.severity == "watch"
    masked = found(experts_masked(past_of(sums_of(layer_of(masked=(1, 2))))))
    assert (masked.severity, masked.evidence[0].metric.value) == ("info", 2.0)


def test_equal_experts_are_grouped_and_lost_ones_left_out() -> None:
    layer = layer_of(
        experts=8, expert_digests=("a", "b", "a", "z", "z", "b", "", ""), expert_zero=(3, 4),
    )  # fmt: skip
    assert identical_groups(layer) == [(0, 2), (1, 5)]
    told = found(experts_identical(past_of(sums_of(layer), sums_of(layer))))
    assert (told.severity, told.evidence[0].metric.value) == ("watch", 4.0)
    assert "bit for bit (layer 0: 0=2, 1=5)" in told.message
    first = found(experts_identical(past_of(sums_of(layer))))
    assert first.severity == "info"
    assert "an upcycled model starts this way" in first.message
    near = layer_of(expert_near=(NearGroup((0, 3), 0.001),))
    assert identical_groups(near) == [(0, 3)]
    rounded = found(experts_identical(past_of(sums_of(near))))
    assert "up to rounding to bfloat16" in rounded.message


def test_one_expert_a_token_whose_weight_is_always_1_gives_no_gradient() -> None:
    one = layer_of(top_k=1)
    told = found(router_no_gradient(past_of(sums_of(one, facts={"renormalised": True}))))
    assert told.layers == (0,)
    assert router_no_gradient(past_of(sums_of(one, facts={"renormalised": False}))) is None
    assert router_no_gradient(past_of(sums_of(facts={"renormalised": True}))) is None
    assert "does not say" in skipped(router_no_gradient(past_of(sums_of(one))))


def biased(number: int, digest: str, *values: float, **changes: Any) -> Any:
    return layer_of(number, digest, selection_bias=values, bias_digest=f"{values}", **changes)


def test_a_bias_that_is_the_same_for_all_is_watched_after_the_start() -> None:
    flat, live = biased(0, "x", 0.5, 0.5, 0.5, 0.5), biased(1, "x", 0.1, 0.2, 0.3, 0.4)
    told = found(bias_unused(past_of(sums_of(flat, live), steps=[500])))
    assert (told.severity, told.layers) == ("watch", (0,))
    assert "the selection bias of layer 0 is 0.5 for all experts" in told.message
    assert (
        skipped(bias_unused(past_of(sums_of(flat, live))))
        == "a selection bias starts with equal values"
    )
    assert skipped(bias_unused(past_of(sums_of()))) == "no router has a selection bias"


@pytest.mark.parametrize(("others", "severity"), [(True, "watch"), (False, "info")])
def test_a_bias_that_stays_is_grave_while_others_move(others: bool, severity: str) -> None:
    def at(place: int) -> Any:
        second = 0.1 * place if others else 0.1
        return sums_of(
            biased(0, str(place), 0.1, 0.2, 0.3, 0.4), biased(1, str(place), second, 1.0, 1.1, 1.2)
        )

    told = found(bias_unused(past_of(at(0), at(1), at(2))))
    assert told.severity == severity
    assert told.layers == ((0,) if others else (0, 1))
    assert "equal bit for bit since step 0" in told.message


def test_a_rounded_bias_is_found_by_the_choices_it_changes() -> None:
    about = {"precision": "bfloat16", "step": 1 / 128, "distinct": 3, "gap": 0.02, "changes": 0.3}
    told = found(bias_rounded(past_of(sums_of(biased(0, "x", 1.0, 1.1, 1.2, 1.2, rounding=about)))))
    assert told.layers == (0,)
    assert (
        "layer 0 has 3 distinct values for 4 experts in bfloat16, steps of 0.0078" in told.message
    )
    assert "beside a gap of 0.02 at the boundary; 30% of Gaussian inputs" in told.message
    assert told.evidence[0].metric.value == 0.3
    fine = {**about, "changes": 0.001}
    assert bias_rounded(past_of(sums_of(biased(0, "x", 1.0, 1.1, rounding=fine)))) is None
    unknown = {**about, "distinct": 2, "gap": None, "changes": None}
    unsure = found(bias_rounded(past_of(sums_of(biased(0, "x", 1.0, 2.0, rounding=unknown)))))
    assert unsure.message.endswith("is not known")
    assert unsure.evidence == ()


def scored(number: int, *scores: float | None, **changes: Any) -> Any:
    return layer_of(number, statistics={"row_alignment": {"expert": list(scores)}}, **changes)


def test_experts_like_random_ones_beside_others_look_untrained() -> None:
    layers = scored(0, 0.5, -1.0, 0.2, 0.1), scored(1, 50.0, 60.0, 1.0, 55.0)
    told = found(experts_untrained(past_of(sums_of(*layers, alignment=80.0), steps=[500])))
    assert (told.severity, told.layers) == ("watch", (0, 1))
    assert told.message.startswith("all experts of layer 0 and expert 2 in layer 1 look untrained")
    pooled = (0.5 - 1.0 + 0.2 + 0.1) / 2
    assert told.evidence[0].metric.value == pytest.approx(pooled)
    early = found(experts_untrained(past_of(sums_of(*layers, alignment=80.0, fraction=0.1))))
    assert early.severity == "info"


def test_where_nothing_is_clearly_trained_nothing_stands_out() -> None:
    fresh = scored(0, 0.5, -1.0, 0.2, 0.1)
    reason = skipped(experts_untrained(past_of(sums_of(fresh, alignment=3.0), steps=[500])))
    assert reason.startswith("no weights differ clearly from random ones")
    lost = scored(0, 60.0, 1.0, 60.0, 60.0, expert_zero=(1,))
    assert experts_untrained(past_of(sums_of(lost), steps=[500])) is None, (
        "zeros are said elsewhere"
    )
    assert experts_untrained(past_of(sums_of())) is NOT_READ


def test_places_in_words() -> None:
    assert spans(["0", "1", "2", "3", "7"]) == "0-3 and 7"
    assert spans(["0", "1", "5"]) == "0, 1 and 5"
    layers = [layer_of(n) for n in range(3)]
    assert layers_words(layers, layers) == "every layer (0-2)"
    assert layers_words(layers[:1], layers) == "layer 0"
    assert layers_words(layers[1:], layers) == "layers 1 and 2"
    assert experts_words([3]) == "expert 3"
    assert experts_words(range(9)) == "experts 0, 1, 2, 3, 4, 5 and 3 more"
