from __future__ import annotations

import argparse
import dataclasses
import doctest
import enum
import math
import subprocess
import sys
from collections import OrderedDict, deque
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trackhub.plain
from trackhub.plain import (
    LARGEST_ARRAY_PARAM,
    artifact_name,
    check_name,
    metric_name,
    plain_params,
    plain_scalar,
    plain_tags,
    step_of,
    time_ns_of,
)


class Colour(enum.Enum):
    RED = "red"
    MIX = (1, 2)


class Size(enum.IntEnum):
    BIG = 3


@dataclasses.dataclass
class Optimizer:
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)


@dataclasses.dataclass
class Config:
    optimizer: Optimizer
    seed: int = 1


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(trackhub.plain).failed == 0


def test_no_array_library_is_imported_for_plain_python_values() -> None:
    program = (
        "import sys, trackhub.plain as p, trackhub.values as v, trackhub.drawing\n"
        "p.plain_scalar(1, 'm'); p.plain_params({'a': [1, {2}], 'b': {'c': None}}); p.step_of(1)\n"
        "v.encode_table([{'a': 1.0}], 't'); v.histogram_of([1, 2.5], 'h')\n"
        "v.confusion_matrix_of(['a'], [[1]], 'c'); v.roc_curve_of([0, 1], [0, 1], [1, 0], 'r')\n"
        "heavy = {'numpy', 'pandas', 'polars', 'torch', 'matplotlib', 'plotly', 'PIL', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- scalars


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.5, 0.5),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(-3), -3.0),
        (np.uint64(2**64 - 1), float(2**64)),
        (np.bool_(True), 1.0),
        (np.array(2.0), 2.0),
        (np.array([2]), 2.0),
        (np.array([[2.0]], dtype=">f4"), 2.0),
        (np.array([Fraction(1, 2)], dtype=object), 0.5),
        (Size.BIG, 3.0),
        (math.inf, math.inf),
        (Decimal("-Infinity"), -math.inf),
        (np.float32("-inf"), -math.inf),
    ],
)
def test_a_metric_value_becomes_its_float(value: object, expected: float) -> None:
    result = plain_scalar(value, "loss")
    assert type(result) is float
    assert result == expected


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), Decimal("NaN"), np.array([np.nan]), np.ma.masked, None])
def test_nan_is_kept_and_what_is_no_number_yet_is_nan(value: object) -> None:
    assert math.isnan(plain_scalar(value, "loss"))


@given(st.floats(), st.integers(-(2**1000), 2**1000))
def test_every_float_and_every_integer_in_range_is_kept(number: float, whole: int) -> None:
    assert plain_scalar(np.float64(number), "m").hex() == number.hex()
    assert plain_scalar(whole, "m") == float(whole)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("0.5", "float(...)"),
        (np.str_("0.5"), "float(...)"),
        (b"0.5", "bytes"),
        (bytearray(b"0.5"), "bytearray"),
        (1j, ".real"),
        (np.complex64(1j), ".real"),
        ([0.5], "log_histogram"),
        ([], "log_histogram"),
        (np.zeros(2), "log_histogram"),
        (np.zeros((0,)), "log_histogram"),
        ({"a": 1}, "metrics are flat"),
        (timedelta(seconds=1), "seconds"),
        (np.timedelta64(1, "ns"), "seconds"),
        (np.datetime64("2026-01-01", "ns"), "datetime64"),
        (np.array("0.5"), "float(...)"),
        (object(), "object"),
        (np.float32, "type"),
        (lambda: 0.5, "call it"),
        (Decimal("sNaN"), "Decimal"),
    ],
)
def test_what_is_not_one_real_number_is_refused_by_name_and_with_a_hint(value: object, hint: str) -> None:
    with pytest.raises(TypeError, match=r"train/loss") as caught:
        plain_scalar(value, "train/loss")
    assert hint in str(caught.value)
    assert "Accepted are" in str(caught.value)


@pytest.mark.parametrize("value", [10**400, -(10**400), Decimal("1e400"), Fraction(10**400), np.longdouble("1e400")])
def test_a_finite_number_beyond_float64_is_refused_rather_than_made_infinite(value: object) -> None:
    with pytest.raises(ValueError, match=r"'loss'.*beyond the range"):
        plain_scalar(value, "loss")


def test_torch_scalars_become_their_float() -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.tensor(0.5, requires_grad=True)
    for value in (parameter, parameter * 1, torch.tensor([[0.5]]), torch.tensor(0.5, dtype=torch.bfloat16)):
        assert plain_scalar(value, "loss") == 0.5
    assert plain_scalar(torch.tensor(True), "m") == 1.0
    assert plain_scalar(torch.tensor(7), "m") == 7.0
    assert math.isnan(plain_scalar(torch.tensor(math.nan), "m"))
    for refused in (torch.zeros(2), torch.zeros(0), torch.tensor(1j), torch.empty((), device="meta")):
        with pytest.raises(TypeError, match="'loss'"):
            plain_scalar(refused, "loss")
    assert parameter.requires_grad


def test_a_jax_bfloat16_scalar_becomes_its_float() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert plain_scalar(np.array(1.5, dtype=ml_dtypes.bfloat16), "m") == 1.5
    assert plain_params({"x": np.array([1.5], dtype=ml_dtypes.bfloat16)}) == {"x": [1.5]}


# --- params


def test_nested_mappings_dataclasses_and_namespaces_flatten_with_slashes() -> None:
    expected = {"optimizer/lr": 0.1, "optimizer/betas": [0.9, 0.999], "seed": 1}
    assert plain_params(Config(Optimizer(0.1))) == expected
    assert plain_params({"optimizer": Optimizer(0.1), "seed": 1}) == expected
    assert plain_params(argparse.Namespace(optimizer=OrderedDict(lr=0.1, betas=(0.9, 0.999)), seed=1)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ("text", "text"),
        (np.str_("text"), "text"),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(False), False),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.5]), [1.5]),
        (np.array(1.5), 1.5),
        (np.longdouble(1.5), 1.5),
        (np.datetime64("2026-01-02T03:04:05", "ns"), "2026-01-02T03:04:05.000000000"),
        (np.array(["2026-01-02"], dtype="datetime64[ns]"), ["2026-01-02T00:00:00.000000000"]),
        ([1, (2, {3})], [1, [2, [3]]]),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({2, 10}), [10, 2]),
        (deque([1, 2]), [1, 2]),
        ([{"type": "conv", "kernel": (3, 3)}], [{"type": "conv", "kernel": [3, 3]}]),
        ([Optimizer(0.1)], [{"lr": 0.1, "betas": [0.9, 0.999]}]),
        ({}, {}),
        (range(3), "range(0, 3)"),
        (Colour.RED, "red"),
        (Colour.MIX, "MIX"),
        (Size.BIG, 3),
        (2**64 - 1, 2**64 - 1),
        (2**64, str(2**64)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (Path("/data/x"), "/data/x"),
        (datetime(2026, 1, 2, 3), "2026-01-02 03:00:00"),
        (np.dtype("float32"), "float32"),
        (Decimal("0.10"), "0.10"),
        (1j, "1j"),
        (b"\xff", "b'\\xff'"),
        (bytearray(b"a"), "b'a'"),
        (Optimizer, f"{__name__}.Optimizer"),
        (math.sqrt, "math.sqrt"),
        (len, "builtins.len"),
    ],
)
def test_a_param_becomes_plain(value: object, expected: object) -> None:
    plain = plain_params({"x": value})["x"]
    assert plain == expected
    assert type(plain) is type(expected)


def test_nan_and_infinity_stay_in_params() -> None:
    plain = plain_params({"a": math.nan, "b": np.float32("inf"), "c": np.array([np.nan])})
    assert repr(plain) == "{'a': nan, 'b': inf, 'c': [nan]}"


def test_keys_that_are_not_texts_become_texts() -> None:
    assert plain_params({1: "a", None: "b", Colour.RED: "c", Size.BIG: "d", (1, 2): "e", np.str_("f"): "f"}) == {
        "1": "a", "None": "b", "red": "c", "3": "d", "(1, 2)": "e", "f": "f",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"a/b": 1, "a": {"b": 2}}, ["params['a/b']", "params['a']['b']"]),
        ({1: "a", "1": "b"}, ["params[1]", "params['1']"]),
        ({"a": [{1: 2, "1": 3}]}, ["param 'a'[1]", "param 'a'['1']"]),
    ],
)
def test_two_params_that_get_one_name_are_refused_naming_both(params: object, named: list[str]) -> None:
    with pytest.raises(ValueError, match="rename one") as caught:
        plain_params(params)
    for origin in named:
        assert origin in str(caught.value)


@pytest.mark.parametrize("params", [{"": 1}, {"a": {"": 1}}, {"a//b": 1}, {"/a": 1}, {"a/": {"b": 1}}])
def test_an_empty_part_of_a_params_name_is_refused(params: object) -> None:
    with pytest.raises(ValueError, match="empty name part"):
        plain_params(params)


def test_containers_that_contain_themselves_are_refused() -> None:
    mapping: dict[str, object] = {}
    mapping["inner"] = {"again": mapping}
    elements: list[object] = []
    elements.append([elements])
    box = np.empty(1, dtype=object)
    box[0] = box
    shared = {"lr": 1}
    for params in (mapping, {"a": elements}, {"a": box}):
        with pytest.raises(ValueError, match="contains itself"):
            plain_params(params)
    assert plain_params({"a": shared, "b": [shared, shared]}) == {"a/lr": 1, "b": [shared, shared]}


def test_nesting_that_would_exhaust_the_stack_is_refused() -> None:
    mapping: object = 1
    elements: object = 1
    for _ in range(5000):
        mapping, elements = {"a": mapping}, [elements]
    for params in (mapping, {"a": elements}):
        with pytest.raises(ValueError, match="nested more than"):
            plain_params(params)


@pytest.mark.parametrize("params", [{"a": "\ud800"}, {"\ud800": 1}, {"a": [{"b": "x\udfff"}]}, {"a": [{"\ud800": 1}]}])
def test_a_lone_surrogate_in_params_is_refused(params: object) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        plain_params(params)


def test_a_param_that_is_too_large_is_refused_with_what_to_do() -> None:
    assert len(plain_params({"w": np.zeros(LARGEST_ARRAY_PARAM)})["w"]) == LARGEST_ARRAY_PARAM  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"param 'w'.*log_artifact"):
        plain_params({"w": np.zeros(LARGEST_ARRAY_PARAM + 1)})
    with pytest.raises(ValueError, match=r"param 'n'.*4300"):
        plain_params({"n": 10**5000})


@pytest.mark.parametrize("params", [None, 1, "lr=1", [("lr", 1)], Optimizer, Colour.RED])
def test_params_that_are_not_a_mapping_are_refused(params: object) -> None:
    with pytest.raises(TypeError, match="must be a mapping"):
        plain_params(params)


def test_a_model_with_a_dump_method_is_refused_with_that_method_named() -> None:
    from pydantic import BaseModel

    class Settings(BaseModel):
        lr: float = 0.1

    with pytest.raises(TypeError, match=r"Pass its \.model_dump\(\)"):
        plain_params(Settings())


def test_a_dataclass_field_without_a_value_is_refused() -> None:
    @dataclasses.dataclass
    class Late:
        value: int = dataclasses.field(init=False)

    with pytest.raises(ValueError, match=r"Late has no value yet for its field 'value'"):
        plain_params(Late())


def test_torch_values_become_plain_params() -> None:
    torch = pytest.importorskip("torch")
    params = {
        "scalar": torch.tensor(0.5, requires_grad=True),
        "half": torch.tensor([0.5, 1.5], dtype=torch.bfloat16),
        "shape": torch.Size([2, 3]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "flag": torch.tensor(True),
    }
    assert plain_params(params) == {
        "scalar": 0.5, "half": [0.5, 1.5], "shape": [2, 3], "dtype": "torch.float32", "device": "cpu", "flag": True,
    }  # fmt: skip
    assert "meta" in str(plain_params({"m": torch.empty(2, device="meta")})["m"])


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), inner, max_size=3)
        | st.frozensets(_LEAVES, max_size=3)
    ),
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), _VALUES))
def test_whatever_becomes_a_param_survives_messagepack(params: dict[str, object]) -> None:
    plain = plain_params(params)
    assert repr(msgspec.msgpack.decode(msgspec.msgpack.encode(plain))) == repr(plain)
    assert len(plain) >= len(params)


@given(st.dictionaries(st.text(), st.text() | st.dictionaries(st.text(), st.text())))
def test_params_of_any_text_are_stored_or_refused_with_a_value_error(params: dict[str, object]) -> None:
    try:
        plain = plain_params(params)
    except ValueError:
        return
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plain)) == plain


# --- tags


def test_tags_become_texts() -> None:
    tags = {"team": "vision", 1: 2, "ok": True, "none": None, "colour": Colour.RED, "x": np.float32(0.5), "l": (1, 2)}
    assert plain_tags(tags) == {
        "team": "vision", "1": "2", "ok": "True", "none": "None", "colour": "red", "x": "0.5", "l": "[1, 2]",
    }  # fmt: skip


def test_tags_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(TypeError, match="tags must be a mapping"):
        plain_tags(["a"])
    with pytest.raises(TypeError, match=r"tag 'a': tags are flat.*log_params"):
        plain_tags({"a": {"b": 1}})
    with pytest.raises(ValueError, match=r"tags\[1\] and tags\['1'\]"):
        plain_tags({1: "a", "1": "b"})
    with pytest.raises(ValueError, match="not valid Unicode"):
        plain_tags({"a": "\ud800"})
    with pytest.raises(ValueError, match="empty"):
        plain_tags({"": "a"})


# --- names


@pytest.mark.parametrize(
    "name", ["loss", "train/loss", "a b", "精度", "👩\u200d🔬 ok", "x" * 5000, "a\\b", "a\u00a0b", " "]
)
def test_names_of_any_script_and_length_are_kept(name: str) -> None:
    assert metric_name(name) == name


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "a\rb", "\x1b[0m", "a\x7f", "a\x85b", "a\u2028b", "\ud800"])
def test_names_that_cannot_be_stored_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="metric name"):
        metric_name(name)


@pytest.mark.parametrize("name", [None, 1, b"loss", ["loss"]])
def test_names_that_are_not_texts_are_refused(name: object) -> None:
    with pytest.raises(TypeError, match="tag name must be a str"):
        check_name(name, "tag name")


def test_a_name_of_a_str_subclass_becomes_a_plain_str() -> None:
    assert type(metric_name(np.str_("loss"))) is str


@given(st.text())
def test_a_name_is_kept_exactly_or_refused(name: str) -> None:
    try:
        kept = metric_name(name)
    except ValueError:
        assert not name.isprintable() or not name
    else:
        assert kept == name
        assert kept.encode().decode() == name


@pytest.mark.parametrize("name", ["a", "a/b.txt", "a\\b", "..a", "a..", ".hidden", "a b/c", "...", "C:\\x"])
def test_relative_artifact_names_are_kept(name: str) -> None:
    assert artifact_name(name) == name


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("/etc/passwd", "'etc/passwd'"),
        ("../x", "'x'"),
        ("a/../b", "'a/b'"),
        ("a//b", "'a/b'"),
        ("a/", "'a'"),
        ("./a", "'a'"),
        ("a\0b", "control"),
        ("..", "must not contain"),
        ("", "empty"),
    ],
)
def test_artifact_names_that_leave_their_directory_are_refused_with_one_that_does_not(name: str, fix: str) -> None:
    with pytest.raises(ValueError, match="artifact name") as caught:
        artifact_name(name)
    assert fix in str(caught.value)


@given(st.text("ab./\\", max_size=12))
def test_an_artifact_name_never_leaves_its_directory(name: str) -> None:
    try:
        kept = artifact_name(name)
    except ValueError:
        return
    root = Path("/root/artifacts")
    assert (root / kept).parts[: len(root.parts)] == root.parts
    assert ".." not in Path(kept).parts
    assert str(Path(kept)) == kept


# --- times and steps


def test_seconds_become_nanoseconds() -> None:
    assert time_ns_of(0) == 0
    assert time_ns_of(1_700_000_000) == 1_700_000_000 * 10**9
    assert time_ns_of(-1.5) == -1_500_000_000
    assert time_ns_of(np.int64(3)) == 3 * 10**9
    assert time_ns_of(np.float32(0.5)) == 500_000_000


@given(st.floats(0, 9e9))
def test_a_float_of_seconds_is_as_exact_as_the_float(seconds: float) -> None:
    assert abs(Fraction(time_ns_of(seconds)) - Fraction(seconds) * 10**9) <= Fraction(1, 2) + Fraction(1, 1000)


def test_left_out_means_now() -> None:
    assert abs(time_ns_of(None) - datetime.now(UTC).timestamp() * 1e9) < 60e9


@given(st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1), timezones=st.just(timezone(timedelta(hours=5)))))
def test_an_aware_datetime_is_exact_to_the_microsecond(moment: datetime) -> None:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert time_ns_of(moment) == (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000


def test_a_naive_datetime_is_local_time() -> None:
    moment = datetime(2026, 7, 1, 12, 30, 15, 250)
    assert time_ns_of(moment) == time_ns_of(moment.astimezone())
    assert abs(time_ns_of(moment) - moment.timestamp() * 1e9) < 1000


def test_a_pandas_timestamp_keeps_its_nanoseconds() -> None:
    import pandas as pd

    assert time_ns_of(pd.Timestamp("2026-01-01T00:00:00.123456789", tz="UTC")) % 10**9 == 123456789
    assert time_ns_of(pd.Timestamp("2026-01-01T00:00:00.123456789")) % 10**9 == 123456789
    with pytest.raises(ValueError, match="NaT"):
        time_ns_of(pd.NaT)


@pytest.mark.parametrize("timestamp", [math.nan, math.inf, 1.7e12, 10**30, -1e10, datetime(1, 1, 1, tzinfo=UTC)])
def test_a_time_that_nanoseconds_cannot_hold_is_refused(timestamp: object) -> None:
    with pytest.raises(ValueError, match="timestamp"):
        time_ns_of(timestamp)


@pytest.mark.parametrize("timestamp", ["2026-01-01", True, [1], np.datetime64("2026-01-01"), timedelta(1), 1j])
def test_what_is_not_a_time_is_refused(timestamp: object) -> None:
    with pytest.raises(TypeError, match="timestamp must be seconds since the epoch or a datetime"):
        time_ns_of(timestamp)


@given(st.integers(-(2**63), 2**63 - 1))
def test_steps_are_kept(step: int) -> None:
    assert step_of(step) == step
    assert step_of(np.int64(step)) == step
    assert type(step_of(np.int64(step))) is int


def test_a_torch_step_is_its_integer() -> None:
    torch = pytest.importorskip("torch")
    assert step_of(torch.tensor(3)) == 3
    for refused in (torch.tensor(3.0), torch.tensor(True), torch.tensor([1, 2])):
        with pytest.raises(TypeError, match="step must be an integer"):
            step_of(refused)


@pytest.mark.parametrize("step", [1.0, np.float64(1), "1", None, True, np.bool_(True), np.array([1, 2]), [1]])
def test_a_step_that_is_not_an_integer_is_refused(step: object) -> None:
    with pytest.raises(TypeError, match="step must be an integer"):
        step_of(step)


def test_a_float_step_is_refused_with_the_fix() -> None:
    with pytest.raises(TypeError, match=r"int\(step\)"):
        step_of(2.0)


@settings(max_examples=20)
@given(st.integers(min_value=2**63) | st.integers(max_value=-(2**63) - 1))
def test_a_step_beyond_64_bit_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="64 bit"):
        step_of(step)
