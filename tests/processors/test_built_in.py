"""The processors that come with trackhub, each by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trackhub.errors import SettingsError
from trackhub.processing import Pipeline
from trackhub.processors.naming import Patterns
from trackhub.records import (
    ArtifactLogged,
    Deliverable,
    ImageLogged,
    MetricsLogged,
    ModelLogged,
    ParamsLogged,
    StoredFile,
    TagsSet,
    TextLogged,
)

FILE = StoredFile("blobs/x", 1)
NAME = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
SIMPLE = st.text("ab/._-", min_size=1, max_size=6)


def metrics(step: int = 0, **values: float) -> MetricsLogged:
    return MetricsLogged(1, step, values)


def process(chosen: str | list[str], *records: Deliverable) -> tuple[list[Deliverable], list[tuple[str, str, str]]]:
    """What becomes of the records, and what is noted."""
    pipeline = Pipeline(["redact:off", *([chosen] if isinstance(chosen, str) else chosen)])
    shown = [one for record in records for one in pipeline.process(type(record), [record])]
    return shown, pipeline.drain_notes()


def metric_values(chosen: str, values: dict[str, float], step: int = 0) -> dict[str, float]:
    shown, _ = process(chosen, MetricsLogged(1, step, values))
    return {
        name: value for record in shown if isinstance(record, MetricsLogged) for name, value in record.values.items()
    }


# --- patterns


@given(NAME)
def test_a_name_without_wildcards_matches_itself_alone(name: str) -> None:
    assume(not set(name) & set("*?[|") and name == name.strip())
    pattern = Patterns(name)
    assert pattern.match(name)
    assert not pattern.match(name + "x")
    assert not pattern.match("x" + name)


@given(st.lists(SIMPLE, min_size=1, max_size=4), SIMPLE)
def test_a_star_stands_for_any_text(parts: list[str], name: str) -> None:
    pattern = "*".join(parts)
    assert Patterns(pattern).match(name) == bool(re.fullmatch(".*".join(map(re.escape, parts)), name))
    assert Patterns(pattern).match(pattern.replace("*", name))


@given(st.lists(SIMPLE, min_size=1, max_size=4), SIMPLE)
def test_of_several_patterns_one_is_enough(patterns: list[str], name: str) -> None:
    assert Patterns("|".join(patterns)).match(name) == any(Patterns(one).match(name) for one in patterns)


def test_a_long_name_takes_no_time_to_match() -> None:
    assert not Patterns("*a*a*a*a*a*a*a*a*b").match("a" * 100_000)
    assert metric_values("rename:*a*a*a*a*a*a*b=*1*2*3*4*5*6*7", {"a" * 100_000: 1.0}) == {"a" * 100_000: 1.0}


# --- include and exclude

ONE_OF_EACH: list[Deliverable] = [
    metrics(loss=1.0),
    ParamsLogged(1, {"lr": 0.1}),
    TagsSet(1, {"team": "vision"}),
    TextLogged(1, "note", FILE),
    ArtifactLogged(1, "file.txt", FILE),
    ModelLogged(1, "model", FILE),
    ImageLogged(1, "sample", FILE, 1, 1),
]


@given(st.dictionaries(NAME, st.floats(), min_size=1), NAME)
def test_include_and_exclude_share_all_out_between_them_and_count_it(values: dict[str, float], name: str) -> None:
    assume(not set(name) & set("?[|:") and name == name.strip())
    pattern = f"{name[0]}*"
    assume(pattern.strip() == pattern)
    record = MetricsLogged(1, 3, values)
    (included, left_out), (excluded, left_out_too) = (
        process(f"include:{pattern}", record),
        process(f"exclude:{pattern}", record),
    )
    names = [set(shown[0].values) if shown else set() for shown in (included, excluded)]  # type: ignore[union-attr]
    assert names[0] == {one for one in values if one.startswith(name[0]) or name[0] == "*"}
    assert names[0] | names[1] == set(values)
    assert not names[0] & names[1]
    assert len(left_out) + len(left_out_too) == len(values)
    for shown in (*included, *excluded):
        assert shown.step == 3  # type: ignore[union-attr]
        assert all(shown.values[one] is values[one] for one in shown.values)  # type: ignore[union-attr]


def test_include_goes_for_every_kind() -> None:
    shown, notes = process("include:l*|file.*", *ONE_OF_EACH)
    assert shown == [ONE_OF_EACH[0], ONE_OF_EACH[1], ONE_OF_EACH[4]]
    assert notes == [("left out by include:l*|file.*", name, "") for name in ("team", "note", "model", "sample")]


@pytest.mark.parametrize(
    ("chosen", "gone"),
    [("include:metrics:x", 0), ("exclude:params:*", 1), ("exclude:images:*", 6), ("exclude:artifacts:*", 4)],
)
def test_with_a_kind_it_goes_for_that_kind_alone(chosen: str, gone: int) -> None:
    shown, notes = process(chosen, *ONE_OF_EACH)
    assert shown == [record for at, record in enumerate(ONE_OF_EACH) if at != gone]
    assert len(notes) == 1


def test_what_is_not_a_kind_is_part_of_the_pattern() -> None:
    assert metric_values("exclude:gpu:*", {"gpu:0": 1.0, "gpu": 2.0}) == {"gpu": 2.0}


def test_a_record_of_which_nothing_is_left_out_stays_the_same_object() -> None:
    for chosen in ("include:*", "exclude:nothing", "every:1", "rename:nothing=something", "redact:patient"):
        for record in ONE_OF_EACH:
            (shown,), notes = process(chosen if "redact" not in chosen else [], record)
            assert shown is record
            assert notes == []


# --- every


@given(st.integers(1, 50), st.lists(st.integers(-(2**40), 2**40), unique=True, max_size=50))
def test_every_keeps_the_steps_that_its_number_divides_whatever_came_before(number: int, steps: list[int]) -> None:
    shown, notes = process(f"every:{number}", *(metrics(step, a=1.0, b=2.0) for step in steps))
    kept = [record.step for record in shown if isinstance(record, MetricsLogged)]
    assert kept == [step for step in steps if step % number == 0]
    assert [name for _, name, _ in notes] == ["a", "b"] * (len(steps) - len(kept))
    # Begun anywhere, it gives the same for what is left.
    middle = len(steps) // 2
    again, _ = process(f"every:{number}", *(metrics(step, a=1.0, b=2.0) for step in steps[middle:]))
    assert again == [record for record in shown if record.step in steps[middle:]]  # type: ignore[union-attr]


def test_every_leaves_other_kinds_and_other_names_alone() -> None:
    image = ImageLogged(1, "sample", FILE, 1, 1, 3)
    shown, notes = process("every:10:train/*", image, MetricsLogged(1, 3, {"train/loss": 1.0, "val/loss": 2.0}))
    assert shown == [image, MetricsLogged(1, 3, {"val/loss": 2.0})]
    assert notes == [("left out by every:10:train/*", "train/loss", "")]


# --- rename


@given(
    st.dictionaries(SIMPLE, st.floats(allow_nan=False), min_size=1),
    st.lists(st.tuples(SIMPLE, SIMPLE), min_size=1, max_size=4),
)
def test_rename_loses_no_value_whatever_names_meet(values: dict[str, float], pairs: list[tuple[str, str]]) -> None:
    shown, notes = process("rename:" + "|".join(f"{old}=x{new}" for old, new in pairs), MetricsLogged(1, 0, values))
    (record,) = shown
    assert isinstance(record, MetricsLogged)
    assert list(record.values.values()) == list(values.values())
    wanted = dict(reversed([(old, f"x{new}") for old, new in pairs]))
    for old, new in zip(values, record.values, strict=True):
        assert new in (old, wanted.get(old))
        if new != wanted.get(old, old):
            assert ("not renamed, the name is taken", old, repr(wanted[old])) in notes
        elif new != old:
            assert ("renamed as asked", old, f"to {new!r}") in notes


@given(SIMPLE, SIMPLE, SIMPLE, SIMPLE)
def test_a_star_is_carried_over(before: str, after: str, new: str, middle: str) -> None:
    assert metric_values(f"rename:{before}*{after}={new}*", {before + middle + after: 1.0}) == {new + middle: 1.0}


@pytest.mark.parametrize(
    ("pairs", "name", "new"),
    [
        ("train/*=training/*", "train/loss", "training/loss"),
        ("*/loss=loss/*", "train/a/loss", "loss/train/a"),
        ("*_*=*/*", "a_b_c", "a/b_c"),
        ("a=b|a=c", "a", "b"),
        ("a=b|b=c", "a", "b"),
        ("a*=b*|aa=c", "aa", "ba"),
        ("*=lab/*", "x", "lab/x"),
        ("a=b=c", "a", "b=c"),
        ("a?=b?", "ab", "ab"),
        ("aba*aba=x*", "aba", "aba"),
    ],
)
def test_the_first_pair_that_fits_counts(pairs: str, name: str, new: str) -> None:
    assert metric_values(f"rename:{pairs}", {name: 1.0}) == {new: 1.0}


def test_names_may_be_swapped() -> None:
    assert metric_values("rename:a=b|b=a", {"a": 1.0, "b": 2.0}) == {"b": 1.0, "a": 2.0}


def test_of_names_that_would_be_one_each_keeps_its_own() -> None:
    shown, notes = process("rename:a=c|b=c", metrics(a=1.0, b=2.0), metrics(a=1.0, c=3.0))
    assert [record.values for record in shown] == [{"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 3.0}]  # type: ignore[union-attr]
    assert [note[:2] for note in notes] == [("not renamed, the name is taken", name) for name in ("a", "b", "a")]


def test_that_things_logged_apart_become_one_is_said() -> None:
    shown, notes = process("rename:a=c", metrics(0, a=1.0), metrics(1, c=2.0))
    assert [record.values for record in shown] == [{"c": 1.0}, {"c": 2.0}]  # type: ignore[union-attr]
    assert notes[1:] == [("logged apart and shown as one", "c", "'c' and 'a'")]
    _, notes = process("rename:a=c", metrics(0, c=1.0), metrics(1, a=2.0))
    assert notes[1:] == [("logged apart and shown as one", "c", "'a' and 'c'")]
    # Of different kinds, they are different things.
    assert [note[0] for note in process("rename:a=c", metrics(c=1.0), TagsSet(1, {"a": "x"}))[1]] == [
        "renamed as asked"
    ]


def test_what_has_a_name_itself_is_renamed_and_keeps_all_else() -> None:
    model = ModelLogged(1, "best", FILE, "registered")
    assert process("rename:best=digits/best", model)[0] == [ModelLogged(1, "digits/best", FILE, "registered")]
    assert process("rename:metrics:best=x", model)[0] == [model]


# --- redact


def redacted(params: dict[str, Any], *chosen: str) -> dict[str, Any]:
    pipeline = Pipeline(chosen)
    (record,) = pipeline.process(ParamsLogged, [ParamsLogged(1, params)])
    assert isinstance(record, ParamsLogged)
    return record.params


GONE = "(redacted)"


def test_redact_is_on_by_default_for_params_and_tags() -> None:
    pipeline = Pipeline([])
    params, tags = ParamsLogged(1, {"api_key": "k", "lr": 0.1}), TagsSet(1, {"hf_token": "t", "team": "vision"})
    assert pipeline.process(ParamsLogged, [params]) == [ParamsLogged(1, {"api_key": GONE, "lr": 0.1})]
    assert pipeline.process(TagsSet, [tags]) == [TagsSet(1, {"hf_token": GONE, "team": "vision"})]
    assert pipeline.drain_notes() == [("redacted", "api_key", ""), ("redacted", "hf_token", "")]
    assert not pipeline.handles(MetricsLogged)
    # What was logged stays as it was.
    assert params.params["api_key"] == "k"


def test_redact_looks_into_lists_and_mappings() -> None:
    clients = [{"url": "u", "api_key": "k"}, [{"auth": {"token": "t", "kind": "bearer"}}]]
    assert redacted({"clients": clients, "betas": [0.9, 0.99]}) == {
        "clients": [{"url": "u", "api_key": GONE}, [{"auth": {"token": GONE, "kind": "bearer"}}]],
        "betas": [0.9, 0.99],
    }
    assert clients[0]["api_key"] == "k"  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [None, True, False, "", 0.5, float("nan"), [], {}])
def test_what_cannot_be_a_secret_stays(value: Any) -> None:
    assert redacted({"use_auth_token": value})["use_auth_token"] is value


@pytest.mark.parametrize("value", ["x", 1234, ["a"], {"user": "u"}])
def test_what_can_be_one_does_not(value: Any) -> None:
    assert redacted({"password": value}) == {"password": GONE}


def test_redact_can_be_turned_off_and_extended_and_told_of_exceptions() -> None:
    params = {"api_key": "k", "patient_name": "Ada", "patient_age": 3.5, "auth/token": "word"}
    assert redacted(params, "redact:off") == params
    assert redacted(params, "redact:patient_*") == dict.fromkeys(params, GONE)
    assert redacted(params, "redact:patient_*|!patient_age|!auth/*") == {
        **params,
        "api_key": GONE,
        "patient_name": GONE,
    }
    assert redacted(params, "redact:!*|patient_name") == {**params, "patient_name": GONE}


def test_redact_goes_by_the_names_that_were_logged_wherever_it_is_written() -> None:
    for chosen in (["rename:api_key=note"], ["rename:api_key=note", "redact:x"]):
        assert redacted({"api_key": "k"}, *chosen) == {"note": GONE}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["lr", "api_key", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_no_text_behind_a_secrets_name_is_left_however_deep_it_lies(value: Any) -> None:
    def behind_secrets(value: Any) -> list[Any]:
        if isinstance(value, dict):
            below = [one for name, inner in value.items() if name != "api_key" for one in behind_secrets(inner)]
            return [*([value["api_key"]] if "api_key" in value else []), *below]
        return [one for inner in value for one in behind_secrets(inner)] if isinstance(value, list) else []

    shown = redacted({"config": value})["config"]
    assert all(one in (None, True, False, "", GONE, [], {}) or isinstance(one, float) for one in behind_secrets(shown))
    assert len(behind_secrets(shown)) <= len(behind_secrets(value))


# --- what is refused


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            "evry:10",
            "no processor is called 'evry'; did you mean 'every'? Installed processors: every, exclude, include",
        ),
        ("", "no processor is called ''"),
        ("every", "'every' is not accepted: it needs a whole number: every:10 keeps the steps 0, 10, 20 and so on"),
        ("every:0", "the number must be 1 or more, not 0"),
        ("every:ten", "it needs a whole number"),
        ("every:2:", "a pattern is missing"),
        ("include", "a pattern is missing: write one, or several with | between"),
        ("exclude:metrics:", "a pattern is missing"),
        ("include:a||b", "a pattern is missing"),
        ("rename:a", "'a' is not OLD=NEW"),
        ("rename:a=", "'a=' is not OLD=NEW"),
        ("rename:a*=b", "needs as many * on the right as on the left"),
        ("redact:a|", "a pattern is missing"),
        ("redact:!", "a pattern is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(chosen: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        Pipeline([chosen])


def test_redact_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"redact is written twice: write its patterns in one, with \| between"):
        Pipeline(["redact:a", "every:2", "redact:off"])
