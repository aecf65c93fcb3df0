"""Ranges in type hints: values are checked against them, and a wrong one is explained in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen, MultipleOf, Predicate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from enat.errors import InputError
from enat.net import ENAT
from experiments.runtime.command_line import check_options
from experiments.runtime.type_hints import describe, fits, values_hint

SENTENCES = [
    (["seed=-1"], "seed=-1: expected an integer from 0 to 4294967295."),
    (["seed=4294967296"], "seed=4294967296: expected an integer from 0 to 4294967295."),
    (["seed=1.0"], "seed=1.0: expected an integer from 0 to 4294967295."),
    (["resume=maybe"], "resume=maybe: expected true or false."),
    (["objective=fid"], "objective=fid: expected a list of texts or null."),
    (["debug=1"], "debug=1: expected true or false."),
    (["callbacks.checkpoint.keep=0"], "callbacks.checkpoint.keep=0: expected an integer of at least 1."),
    (["callbacks.checkpoint.every_n_steps=0.5"], "every_n_steps=0.5: expected an integer of at least 1."),
    (["callbacks.checkpoint.monitor=3"], "callbacks.checkpoint.monitor=3: expected a text or null."),
    (["callbacks.leave_on_signal.every_n_steps=-5"], "every_n_steps=-5: expected an integer of at least 1."),
    (["callbacks.leave_on_signal.timeout_minutes=0"], "timeout_minutes=0: expected a number above 0."),
    (["callbacks.leave_on_signal.timeout_minutes=inf"], "timeout_minutes=inf: expected a number above 0."),
    (["callbacks.guard.max_skipped=-1"], "callbacks.guard.max_skipped=-1: expected an integer of at least 0."),
    (["callbacks.ema.decay=1.5"], "callbacks.ema.decay=1.5: expected a number from 0 to 1."),
    (["callbacks.ema.decay=nan"], "callbacks.ema.decay=nan: expected a number from 0 to 1."),
    (["callbacks.ema.decay=true"], "callbacks.ema.decay=True: expected a number from 0 to 1."),
    (["callbacks.progress.seconds_between_lines=-1"], "seconds_between_lines=-1: expected a number of at least 0."),
    (["trainer=ddp", "trainer.strategy.timeout_minutes=-1"], "timeout_minutes=-1: expected a number above 0."),
    (["module.optimizer.lr=nan"], "module.optimizer.lr=nan: expected a number or a Tensor with its _target_."),
    (["module.optimizer.betas=[0.9]"], "module.optimizer.betas=[0.9]: expected a list of 2 numbers or Tensors"),
    (["task=sample", "images_per_class=0"], "images_per_class=0: expected an integer of at least 1."),
    (["task=sample", "classes=[]"], "classes=[]: expected a list of one or more integers or null."),
    (["task=sample", "classes=[3,cat]"], "classes=[3, 'cat']: expected a list of one or more integers or null."),
    (["task=sample", "trainer.accelerator=fly"], "trainer.accelerator=fly: expected auto, cpu, gpu or cuda."),
    (["task=tokenize", "held_out=1"], "held_out=1: expected a number of at least 0 and below 1."),
    (["task=tokenize", "held_out=-0.1"], "held_out=-0.1: expected a number of at least 0 and below 1."),
    (["task=tokenize", "shard_size=0"], "shard_size=0: expected an integer of at least 1."),
    (["task=tokenize", "encode_batch=0"], "encode_batch=0: expected an integer of at least 1."),
    (["task=tokenize", "num_workers=-1"], "num_workers=-1: expected an integer of at least 0."),
    (["task=evaluate", "trainer.num_nodes=0"], "trainer.num_nodes=0: expected an integer of at least 1."),
    (
        ["task=evaluate", "fabric.precision=8"],
        "fabric.precision=8: expected 32-true, bf16-true, bf16-mixed, 16-",
    ),
    (["task=data_benchmark", "seconds=0"], "seconds=0: expected a number above 0."),
    (["task=data_benchmark", "read_workers=0"], "read_workers=0: expected an integer of at least 1."),
]
RANGES = {  # option: what must be composed for it, and which numbers are in its range
    "seed": ([], lambda x: type(x) is int and 0 <= x < 2**32),
    "callbacks.checkpoint.keep": ([], lambda x: type(x) is int and x >= 1),
    "callbacks.ema.decay": ([], lambda x: 0 <= x <= 1),
    "callbacks.leave_on_signal.timeout_minutes": ([], lambda x: 0 < x < math.inf),
    "callbacks.progress.seconds_between_lines": ([], lambda x: 0 <= x < math.inf),
    "held_out": (["task=tokenize"], lambda x: 0 <= x < 1),
}
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(-2, 2), st.floats(), st.sampled_from([2**32 - 1, 2**32, 1.0, -0.0])
)
WORDS = {
    int: "an integer",
    Annotated[int, Gt(0)]: "an integer of at least 1",
    Annotated[int, Lt(5)]: "an integer of at most 4",
    Annotated[int, Interval(ge=0, lt=2**32)]: "an integer from 0 to 4294967295",
    Annotated[int, MultipleOf(4)]: "an integer divisible by 4",
    Annotated[int, Ge(8), MultipleOf(8)]: "an integer of at least 8 and divisible by 8",
    Annotated[float, Gt(0)]: "a number above 0",
    Annotated[float, Lt(0.5)]: "a number below 0.5",
    Annotated[float, Le(3)]: "a number of at most 3",
    Annotated[float, Interval(ge=0, le=1)]: "a number from 0 to 1",
    Annotated[float, Interval(ge=0, lt=1)]: "a number of at least 0 and below 1",
    Annotated[float, Interval(gt=0, le=1)]: "a number above 0 and at most 1",
    Annotated[float, Interval(gt=0, lt=1)]: "a number above 0 and below 1",
    Annotated[float, Interval(ge=0, le=math.inf)]: "a number of at least 0 or inf",
    Annotated[int, Ge(1)] | None: "an integer of at least 1 or null",
    Literal["auto"] | Annotated[int, Ge(1)] | None: "auto, an integer of at least 1 or null",
    Sequence[Annotated[int, Ge(0)]]: "a list of integers of at least 0",
    Annotated[list[Annotated[float, Gt(0)]], MinLen(1)]: "a list of one or more numbers above 0",
    Annotated[list[int], Len(2, 4)]: "a list of 2 to 4 integers",
    Annotated[list[str], Len(0, 3)]: "a list of at most 3 texts",
    Annotated[Sequence[list[int]], Len(2, 2)]: "a list of 2 lists of integers",
    Annotated[list[Any], MinLen(1)]: "a list of one or more values",
    Annotated[str, MinLen(1)]: "a text of one or more characters",
    tuple[float, float]: "a list of 2 numbers",
    tuple[int, str]: "a list of 2 values: an integer, a text",
    tuple[bool, ...]: "a list of values that are true or false",
    Mapping[str, int]: "options by name",
    ENAT | None: "an ENAT with its _target_ or null",
}
UNKNOWN_TO_HYPOTHESIS = ("ENAT", "Mapping", "MultipleOf", "Any")
SAMPLED = [hint for hint in WORDS if not any(word in str(hint) for word in UNKNOWN_TO_HYPOTHESIS)]


@pytest.mark.parametrize(("overrides", "sentence"), SENTENCES, ids=lambda x: x[-1] if isinstance(x, list) else "")
def test_wrong_values_are_explained(compose_config, overrides, sentence):
    with pytest.raises(InputError) as refused:
        check_options(compose_config("experiment=debug", *overrides))
    assert sentence in str(refused.value)


@pytest.fixture(scope="module")
def configs(compose_config):
    return {option: compose_config("experiment=debug", *overrides) for option, (overrides, _) in RANGES.items()}


@pytest.mark.parametrize("option", RANGES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NUMBERS)
def test_a_value_passes_if_it_is_in_range(configs, option, value):
    config = configs[option]
    before = OmegaConf.select(config, option)
    OmegaConf.update(config, option, value)
    try:
        if RANGES[option][1](value):
            check_options(config)
        else:
            with pytest.raises(InputError) as refused:
                check_options(config)
            assert str(refused.value).startswith(f"{option}={value}: expected ")
    finally:
        OmegaConf.update(config, option, before)


@pytest.mark.parametrize(("hint", "words"), WORDS.items(), ids=map(str, WORDS))
def test_hints_are_described(hint, words):
    assert describe(hint) == words


@pytest.mark.parametrize("hint", SAMPLED, ids=map(str, SAMPLED))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_hypothesis_makes_of_a_hint_fits(hint, data):
    """Hypothesis knows the constraints of annotated_types, but not that numbers have to be finite."""
    value = data.draw(st.from_type(hint).filter(lambda drawn: not any(word in str(drawn) for word in ("nan", "inf"))))
    assert fits(OmegaConf.create({"x": list(value) if isinstance(value, tuple) else value}).x, hint)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, math.inf),
        (float, math.nan),
        (Annotated[float, Interval(ge=0, le=math.inf)], math.nan),
        (Annotated[float, Interval(ge=0, le=math.inf)], -math.inf),
        (Annotated[int, MultipleOf(4)], 6),
        (Annotated[int, Interval(ge=0, lt=7)], 7),
        (Annotated[int, Ge(1)] | None, 0),
        (Annotated[int | None, Ge(1)], 0),
        (Annotated[int, Ge(1)], True),
        (Sequence[Annotated[int, Ge(0)]], [3, -1]),
        (Sequence[int], "33"),
        (Annotated[list[int], MinLen(1)], []),
        (Annotated[list[int], Len(2, 2)], [1]),
        (tuple[float, float], [1.0, 2.0, 3.0]),
        (tuple[int, str], ["a", 1]),
        (Annotated[str, MinLen(1)], ""),
        (Literal["auto", 1], True),
        (int, None),
        (ENAT, {"width": 3}),
        (list[int], {"_target_": "enat.net.ENAT"}),
    ],
)
def test_what_is_out_of_range_does_not_fit(hint, value):
    assert not fits(OmegaConf.create({"x": value}).x, hint)


@pytest.mark.parametrize("value", [None, 10**400, math.inf, 0])
def test_limits_of_an_optional_number_leave_null_alone(value):
    assert fits(value, Annotated[float, Interval(ge=0, le=math.inf)] | None)


def test_the_values_of_a_mapping_have_a_hint():
    assert values_hint(Mapping[str, int] | None) is int
    assert values_hint(Annotated[dict[str, ENAT | None], MinLen(1)]) == ENAT | None
    assert values_hint(int | None) is values_hint(dict) is Any


def test_a_constraint_that_is_not_checked_is_an_error():
    with pytest.raises(TypeError, match="knows no func"):
        fits(3, Annotated[int, Predicate(bool)])
