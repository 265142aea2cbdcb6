"""Threads that wait for each other on a machine with other work."""

from __future__ import annotations

import os

import pytest

from qafila.train.threads import wait_briefly


@pytest.mark.parametrize(
    ("set_before", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_openmp_spins_briefly_unless_the_user_says_otherwise(
    set_before: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    wait_briefly()
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert {**before, **added}.get("GOMP_SPINCOUNT") == spins
