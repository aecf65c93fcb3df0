"""Passwords and access keys in URLs: whatever form they have, they are cut out of texts, and nothing else is."""

import re

import pytest

from data.credentials import without_credentials

CUT = [
    "http://me:hunter2@host/a",
    "http://hunter2@host/a",
    "http://me:hunt@er2@host/a",
    "http://me:hun'ter2@host/a",
    'http://me:hun"ter2@host/a',
    "http://me:hun/ter2@host/a",
    "http://me:hun?ter2#@host/a",
    r"http\://me\:hunter2@host/a",
    "HTTP://me:hunter2@host/a",
    "two: http://me:hunter2@host/a and http://you:hunter2@host/b",
    *(f"http://host/a{mark}{name}=hunter2" for mark in ("?", ";", "#", "?x=1&") for name in ("pwd", "auth", "token")),
    "http://host/a#access_token=hunter2",
    "http://host/a?x[apiKey]=hunter2",
    r"http\://host/a?token\=hunter2",
    "http://host/a?token=hun'hunter2",
    "http://host/a?X-Amz-Signature=hunter2&X-Amz-Security-Token=hunter2",
    "http://host/a?jwt=hunter2",
]
KEPT = [
    "http://host:8080/a@b",
    "http://host/package@1.0/x.js and me@host",
    "http://host:80",
    "http://host/a?author=me&page=2",
    "s3://bucket/name@2x.png",
    "outputs/token=1",
    "see 'http://host/a', or [http://host/b]",
]


@pytest.mark.parametrize("text", CUT)
def test_what_is_cut(text):
    cut = without_credentials(text)
    assert not re.search("hun|ter2", cut)
    assert "host/a" in cut


@pytest.mark.parametrize("text", KEPT)
def test_what_is_kept(text):
    assert without_credentials(text) == text


def test_what_is_around_a_key_is_kept():
    assert without_credentials("['http://host/a?token=b', 'c']") == "['http://host/a?token=', 'c']"
    assert without_credentials({"http://me:b@host": ("http://c@host",)}) == {"http://host": ["http://host"]}
