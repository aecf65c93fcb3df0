"""Values are checked against type hints with ranges, and a wrong one is explained in plain words."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Len, Lt, MinLen, MultipleOf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import AllowInfNan

from enat.errors import InputError
from enat.net import ENAT
from experiments.runtime.task import check_options
from experiments.runtime.type_hints import check_value

SENTENCES = [
    (["seed=-1"], "seed=-1: expected a value greater than or equal to 0."),
    (["seed=4294967296"], "seed=4294967296: expected a value less than 4294967296."),
    (["seed=1.0"], "seed=1.0: expected an integer."),
    (["resume=maybe"], "resume=maybe: expected true or false."),
    (["objective=fid"], "objective=fid: expected a list or null."),
    (["debug=1"], "debug=1: expected true or false."),
    (["callbacks.checkpoint.keep=0"], "callbacks.checkpoint.keep=0: expected a value greater than or equal to 1."),
    (["callbacks.checkpoint.every_n_steps=0.5"], "every_n_steps=0.5: expected an integer."),
    (["callbacks.checkpoint.monitor=3"], "callbacks.checkpoint.monitor=3: expected a text or null."),
    (["callbacks.leave_on_signal.every_n_steps=-5"], "every_n_steps=-5: expected a value greater than or equal to 1."),
    (["callbacks.leave_on_signal.timeout_minutes=0"], "timeout_minutes=0: expected a value greater than 0."),
    (["callbacks.leave_on_signal.timeout_minutes=inf"], "timeout_minutes=inf: expected a finite number."),
    (
        ["callbacks.guard.max_skipped=-1"],
        "callbacks.guard.max_skipped=-1: expected a value greater than or equal to 0.",
    ),
    (["callbacks.ema.decay=1.5"], "callbacks.ema.decay=1.5: expected a value less than or equal to 1."),
    (["callbacks.ema.decay=nan"], "callbacks.ema.decay=nan: expected a finite number."),
    (["callbacks.ema.decay=true"], "callbacks.ema.decay=True: expected a number."),
    (
        ["callbacks.progress.seconds_between_lines=-1"],
        "seconds_between_lines=-1: expected a value greater than or equal to 0.",
    ),
    (["trainer=ddp", "trainer.strategy.timeout_minutes=-1"], "timeout_minutes=-1: expected a value greater than 0."),
    (["module.optimizer.lr=nan"], "module.optimizer.lr=nan: expected a finite number or a Tensor with its _target_."),
    (["module.optimizer.betas=[0.9]"], "module.optimizer.betas=[0.9]: expected more items."),
    (["task=sample", "images_per_class=0"], "images_per_class=0: expected a value greater than or equal to 1."),
    (["task=sample", "classes=[]"], "classes=[]: expected at least 1 item, an integer, a text or null."),
    (["task=sample", "trainer.accelerator=fly"], "trainer.accelerator=fly: expected auto, cpu, gpu, cuda or mps."),
    (["task=tokenize", "held_out=1"], "held_out=1: expected a value less than 1."),
    (["task=tokenize", "held_out=-0.1"], "held_out=-0.1: expected a value greater than or equal to 0."),
    (["task=tokenize", "shard_size=0"], "shard_size=0: expected a value greater than or equal to 1."),
    (["task=tokenize", "encode_batch=0"], "encode_batch=0: expected a value greater than or equal to 1."),
    (["task=tokenize", "num_workers=-1"], "num_workers=-1: expected a value greater than or equal to 0."),
    (["task=evaluate", "trainer.num_nodes=0"], "trainer.num_nodes=0: expected a value greater than or equal to 1."),
    (
        ["task=evaluate", "fabric.precision=8"],
        "fabric.precision=8: expected 32-true, bf16-true, bf16-mixed, 16-",
    ),
    (["task=data_benchmark", "seconds=0"], "seconds=0: expected a value greater than 0."),
    (["task=data_benchmark", "read_workers=0"], "read_workers=0: expected a value greater than or equal to 1."),
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


@pytest.mark.parametrize(("overrides", "sentence"), SENTENCES, ids=lambda x: x[-1] if isinstance(x, list) else "")
def test_wrong_values_are_explained(compose_config, overrides, sentence):
    with pytest.raises(InputError) as refused:
        check_options(compose_config("experiment=debug", *overrides))
    assert sentence in str(refused.value)


@pytest.fixture(scope="module")
def configs(compose_config):
    return {option: compose_config("experiment=debug", *overrides) for option, (overrides, _) in RANGES.items()}


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Annotated[float, Interval(ge=0, le=math.inf), AllowInfNan(True)] | None, math.inf),
        (Annotated[float, Gt(0)] | None, None),
        (Annotated[int, MultipleOf(4)], 8),
        (Sequence[Annotated[int, Ge(0)]], [3, 0]),
        (tuple[float, str], [3, "a"]),
        (tuple[bool, ...], []),
        (float | ENAT, {"_target_": "enat.net.ENAT"}),
        (Callable[..., ENAT], {"_target_": "enat.net.ENAT"}),
        (Mapping[str, ENAT | None], {"a": None, "b": {"_target_": "enat.net.ENAT"}}),
        (Any, {"a": math.nan}),
    ],
)
def test_values_that_fit(hint, value):
    check_value("option", OmegaConf.create({"x": value}).x, hint)


@pytest.mark.parametrize(
    ("hint", "value", "sentence"),
    [
        (float, -math.inf, "x=-inf: expected a finite number."),
        (Annotated[float, Interval(ge=0), AllowInfNan(True)], math.nan, "x=nan: expected a value greater than"),
        (Annotated[int, MultipleOf(4)], 6, "x=6: expected a multiple of 4."),
        (Annotated[int, Interval(ge=0, lt=7)], 7, "x=7: expected a value less than 7."),
        (Annotated[int, Ge(1)] | None, 0, "x=0: expected a value greater than or equal to 1 or null."),
        (Annotated[int, Ge(1)], True, "x=True: expected an integer."),
        (int, None, "x=null: expected an integer."),
        (bool, "yes", "x=yes: expected true or false."),
        (Annotated[str, MinLen(1)], "", "x=: expected at least 1 character."),
        (Literal["auto", "a b"] | Annotated[int, Lt(5)] | None, "c", "x=c: expected auto, a b, an integer or null."),
        (Sequence[Annotated[int, Ge(0)]], [3, -1], "x[1]=-1: expected a value greater than or equal to 0."),
        (Sequence[int], "33", "x=33: expected a list."),
        (Annotated[list[int], MinLen(1)] | None, [], "x=[]: expected at least 1 item or null."),
        (Annotated[list[int], Len(2, 2)], [1, 2, 3], "x=[1, 2, 3]: expected at most 2 items."),
        (Sequence[list[int]], [[1], [2, "a"]], "x[1][1]=a: expected an integer."),
        (tuple[float, float], [1.0], "x=[1.0]: expected more items."),
        (tuple[float, float], [1.0, 2.0, 3.0], "x=[1.0, 2.0, 3.0]: expected at most 2 items."),
        (tuple[int, str], ["a", 1], "x[0]=a: expected an integer."),
        (tuple[int, ...], 3, "x=3: expected a list."),
        (Mapping[str, int], 3, "x=3: expected options by name."),
        (Mapping[str, int | None], {"a": "b"}, "x.a=b: expected an integer or null."),
        (ENAT, {"width": 3}, "x={'width': 3}: expected an ENAT with its _target_."),
        (Callable[..., ENAT], 3, "x=3: expected a Callable with its _target_."),
        (list[int], {"_target_": "enat.net.ENAT"}, "x={'_target_': 'enat.net.ENAT'}: expected a list."),
    ],
)
def test_values_that_do_not_fit(hint, value, sentence):
    with pytest.raises(InputError) as refused:
        check_value("x", OmegaConf.create({"x": value}).x, hint)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("value", [[True], [1000.0], [None]])
def test_a_name_that_needs_quotes(value):
    with pytest.raises(
        InputError, match=r"classes\[0\]=.*a name such as true, null or 1e3 needs quotes, 'classes=\[\"true\"\]'"
    ):
        check_value("classes", value, list[int | str] | int | str | None)


@pytest.mark.parametrize("value", [True, 1000.0])
def test_a_single_text_that_needs_quotes_is_no_list(value):
    """The option would refuse `licence=["true"]`, and takes `licence="true"`."""
    with pytest.raises(InputError, match=r"; a name such as true, null or 1e3 needs quotes, 'licence=\"true\"'\.$"):
        check_value("licence", value, str | None)
    with pytest.raises(InputError, match=r"^x\.a=.* needs quotes, 'x\.a=\"true\"'\.$"):
        check_value("x", {"a": value}, Mapping[str, str])
