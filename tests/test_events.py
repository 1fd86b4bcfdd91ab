"""Events are frozen dataclasses, although only a part of what makes them so is generated."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace
from typing import Any

import pytest

from acache import Event, events
from acache.events import Hit, Miss, Stored

KINDS = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
HIT = Hit(namespace="n", key="k", tier="near")


def one_of(kind: type[Event]) -> Event:
    values: dict[str, Any] = {field.name: f"some {field.name}" for field in fields(kind)}
    return kind(**values)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_cannot_be_changed(kind: type[Event]):
    """Observers see the same value, whatever the others do."""
    event = one_of(kind)
    for field in fields(event):
        with pytest.raises(FrozenInstanceError, match=field.name):
            setattr(event, field.name, "other")
        with pytest.raises(FrozenInstanceError, match=field.name):
            delattr(event, field.name)
        assert getattr(event, field.name) == f"some {field.name}"
    with pytest.raises(AttributeError):
        event.other = 1  # type: ignore[attr-defined]
    assert not hasattr(event, "__dict__")


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_equal(kind: type[Event]):
    event = one_of(kind)
    for same in (
        one_of(kind),
        copy.copy(event),
        copy.deepcopy(event),
        pickle.loads(pickle.dumps(event)),
        replace(event),
    ):
        assert same == event
        assert hash(same) == hash(event)
    for field in fields(event):
        other = replace(event, **{field.name: "other"})
        assert other != event
        assert type(other) is kind


def test_events_of_other_kinds_and_other_things_are_not_equal():
    assert Miss(namespace="n", key="k") != Event(namespace="n", key="k")
    assert Stored(namespace="n", key="k", ttl=1.0) != ("n", "k", 1.0)
    assert len({HIT, replace(HIT), replace(HIT, key="other")}) == 2


def test_an_event_is_a_dataclass():
    assert is_dataclass(HIT)
    assert asdict(HIT) == {"namespace": "n", "key": "k", "tier": "near", "stale": False}
    assert repr(HIT) == "Hit(namespace='n', key='k', tier='near', stale=False)"
    match HIT:
        case Hit(tier="near", key=key):
            assert key == "k"
        case _:
            pytest.fail("it does not match")
    with pytest.raises(TypeError, match="tier"):
        Hit(namespace="n", key="k")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        Hit(namespace="n", key="k", tier="near", other=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Hit("n", "k", "near")  # type: ignore[call-arg]
