"""`Policy`: one frozen value that reads every way to write a length of time, and is sound whatever it holds."""

from __future__ import annotations

import dataclasses
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acache import DEFAULT, AcacheError, ConfigurationError, Policy
from acache.clock import FOREVER, seconds, ttl_seconds

LENGTHS = (
    "ttl", "stale_while_revalidate", "stale_if_error", "error_backoff", "load_timeout", "negative_ttl", "lease_ttl", "backend_timeout",
)  # fmt: skip


def test_the_defaults_are_those_of_the_design():
    """Five minutes, no stale windows, no jitter, misses for outages."""
    policy = Policy()
    assert dataclasses.asdict(policy) == {
        "ttl": 300.0, "stale_while_revalidate": 0.0, "stale_if_error": 0.0, "jitter": 0.0, "early_refresh": 0.0,
        "refresh_ahead": None, "soft_timeout": None, "load_timeout": None, "finish_abandoned": False, "error_backoff": 1.0,
        "negative_ttl": None, "lease": False, "lease_ttl": 10.0, "backend_timeout": 1.0, "on_backend_error": "miss",
        "replay": True,
    }  # fmt: skip


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize(
    ("written", "read"), [(5, 5.0), (0.25, 0.25), (timedelta(minutes=1), 60.0), (timedelta(microseconds=1), 1e-6)]
)
def test_lengths_are_seconds_however_written(name: str, written: Any, read: float):
    """Whole numbers, fractions and timedeltas are one thing, and equal policies are equal."""
    policy = Policy(**{name: written})
    assert getattr(policy, name) == read
    assert type(getattr(policy, name)) is float
    assert policy == Policy(**{name: read})
    assert hash(policy) == hash(Policy(**{name: read}))


@pytest.mark.parametrize(
    "name", ["stale_while_revalidate", "stale_if_error", "error_backoff", "jitter", "early_refresh"]
)
def test_zero_switches_off(name: str):
    """Where nothing is a sensible length."""
    assert getattr(Policy(**{name: 0}), name) == 0


def test_a_policy_is_frozen_and_keyword_only():
    """It is shared by caches, views and calls."""
    policy = Policy()
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.ttl = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Policy(60)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="tll"):
        Policy(tll=60)  # type: ignore[call-arg]


def test_a_copy_with_changes_is_checked_again():
    """``dataclasses.replace`` is the way to vary one, and refuses what the constructor refuses."""
    policy = Policy(ttl=60, stale_if_error=60, soft_timeout=1)
    assert dataclasses.replace(policy, ttl=5).stale_if_error == 60
    with pytest.raises(ConfigurationError):
        dataclasses.replace(policy, stale_if_error=0)
    with pytest.raises(ConfigurationError):
        dataclasses.replace(policy, ttl=0)


def test_a_policy_travels():
    """It can be pickled, for people who start processes with it."""
    policy = Policy(ttl=5, jitter=0.1)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_the_longer_window_decides_how_long_a_value_is_kept():
    """``stale_for`` is the larger of the two windows."""
    assert Policy(stale_while_revalidate=5, stale_if_error=60).stale_for == 60
    assert Policy(stale_while_revalidate=70, stale_if_error=60).stale_for == 70


@given(st.floats(0.001, 1e9), st.floats(0, 0.999999))
def test_jitter_only_shortens(ttl: float, jitter: float):
    """By its fraction at most, and never to nothing."""
    policy = Policy(jitter=jitter)
    for _ in range(5):
        assert 0 < policy.shorten(ttl) <= ttl
        assert policy.shorten(ttl) >= ttl * (1 - jitter) * (1 - 1e-9)
    assert policy.shorten(FOREVER) == FOREVER


@given(
    st.one_of(
        st.floats(),
        st.integers(),
        st.timedeltas(),
        st.none(),
        st.text(),
        st.booleans(),
        st.binary(),
        st.complex_numbers(),
    )
)
def test_any_ttl_is_read_or_refused(value: Any):
    """Seconds above zero, for ever, or the one error."""
    try:
        read = ttl_seconds(value)
    except ConfigurationError as error:
        assert isinstance(error, (AcacheError, ValueError))
        assert str(error).startswith("ttl=")
    else:
        assert read > 0
        assert (read == FOREVER) == (value is None)


@given(st.one_of(st.floats(), st.integers(), st.timedeltas(), st.none(), st.text(), st.booleans()), st.booleans())
def test_any_length_is_read_or_refused(value: Any, zero: bool):
    """Finite seconds, from zero or above it, or the one error."""
    try:
        read = seconds(value, "window", zero=zero)
    except ConfigurationError as error:
        assert str(error).startswith("window=")
    else:
        assert math.isfinite(read)
        assert read >= 0
        assert zero or read > 0


def test_default_is_told_from_none():
    """The sentinel shows itself by its name."""
    assert repr(DEFAULT) == "DEFAULT"
    assert DEFAULT is not None
