"""Redaction: what counts as a secret, and what is left of a text that has some."""

from __future__ import annotations

import time

import pytest

from trackhub import redaction


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://h/?token=abcd&x=1", "http://h/?token=(hidden)&x=1"),
        ("http://h/?x=1&my_api_key=abcd", "http://h/?x=1&my_api_key=(hidden)"),
        ("http://h/?a?token=abcd", "http://h/?a?token=(hidden)"),
        ("http://h/?token?x=abcd", "http://h/?token?x=(hidden)"),
        ("http://h/?a=1", "http://h/?a=1"),
    ],
)
def test_secret_parameters_of_a_url_are_hidden(text: str, hidden: str) -> None:
    assert redaction.hide(text) == hidden


@pytest.mark.parametrize("text", ["?" * 12_000 + "=", "?token" * 1_500 + " ="], ids=["marks", "words"])
def test_a_long_text_is_searched_in_a_moment(text: str) -> None:
    before = time.process_time()
    assert redaction.hide(text) == text
    assert time.process_time() - before < 3.0
