"""Keys: shown once, stored as hashes, recognised while they are worth something."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from qafila.cli.keys import seconds
from qafila.cli.main import main
from qafila.database import open_database
from qafila.errors import UsageError
from qafila.server.keys import Key, Keyring, KeyStore, Unknown, static_keys


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> KeyStore:
    return KeyStore(open_database(f"sqlite:///{tmp_path / 'keys.sqlite3'}"), clock)


def test_no_key_is_in_the_database_and_no_two_are_alike(store: KeyStore, tmp_path: Path) -> None:
    texts = [store.create(f"key{i}")[0] for i in range(20)]
    assert len(set(texts)) == 20
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"key7" in kept
    for text in texts:
        secret = text[15:]
        assert len(secret) == 43  # 256 bits
        assert secret.encode() not in kept


def test_a_key_is_recognised_with_its_limits_until_it_expires(store: KeyStore, clock: Clock) -> None:
    text, made = store.create("laptop", scopes=["metrics"], requests_per_minute=5, tokens_per_minute=6, lifetime=60)
    ring = Keyring((), store, clock=clock)
    found = ring.recognise(text)
    assert found == made
    caller = made.caller(share_cache=False)
    assert (caller.name, caller.scopes, caller.requests_per_minute, caller.tokens_per_minute) == (
        "laptop", frozenset({"metrics"}), 5, 6,
    )  # fmt: skip
    clock.now += 59
    assert isinstance(ring.recognise(text), Key)
    clock.now += 1
    assert ring.recognise(text) == Unknown("expired")


def test_wrong_secrets_are_unknown(store: KeyStore, clock: Clock) -> None:
    text, _ = store.create("laptop")
    ring = Keyring((), store, clock=clock)
    other = text[:-1] + ("A" if text[-1] != "A" else "B")
    for wrong in (other, text[:-1], text + "A", "", "qfl_", "none", text.upper(), "\udcff" * 3, "qfl_" + "a" * 4000):
        assert ring.recognise(wrong) == Unknown("unknown"), wrong
    assert isinstance(ring.recognise(text), Key)


def test_what_is_revoked_or_rotated_ends_within_a_second(store: KeyStore, clock: Clock) -> None:
    text, _ = store.create("laptop", scopes=["inference"], requests_per_minute=3)
    ring = Keyring((), store, clock=clock)
    assert isinstance(ring.recognise(text), Key)
    new, key = store.rotate("laptop")
    clock.now += 1.0
    assert ring.recognise(text) == Unknown("unknown")
    found = ring.recognise(new)
    assert isinstance(found, Key)
    assert (found.name, found.scopes, found.requests_per_minute) == ("laptop", frozenset({"inference"}), 3)
    store.revoke("laptop")
    clock.now += 1.0
    assert ring.recognise(new) == Unknown("revoked")
    assert [k.state(clock.now) for k in store.listed()] == ["revoked"]
    again, _ = store.create("laptop")  # the name is free, the old key stays dead
    clock.now += 1.0
    assert ring.recognise(new) == Unknown("revoked")
    assert isinstance(ring.recognise(again), Key)
    assert key.id != ring.recognise(again).id  # type: ignore[union-attr]


def test_a_known_key_is_not_asked_for_again_within_a_second(store: KeyStore, clock: Clock, monkeypatch) -> None:
    text, _ = store.create("laptop")
    ring = Keyring((), store, clock=clock)
    asked = []
    find = KeyStore.find
    monkeypatch.setattr(KeyStore, "find", lambda self, key_id: (asked.append(key_id), find(self, key_id))[1])
    assert not ring.fresh(text)
    for _ in range(100):
        ring.required()
        ring.recognise(text)
    assert len(asked) == 1
    assert ring.fresh(text)
    clock.now += 1.0
    assert not ring.fresh(text)


def test_strangers_do_not_fill_the_memory(store: KeyStore, clock: Clock) -> None:
    ring = Keyring((), store, clock=clock, most=10)
    for i in range(50):
        ring.recognise(f"qfl_{'abcdefghij'[:8]}{'abcdefghijk'[i % 8]}{'mnpqrstuvw'[i // 8]}_{'x' * 43}")
    assert len(ring._seen) == 10


def test_keys_are_required_once_there_was_one_and_for_ever(store: KeyStore, clock: Clock) -> None:
    ring = Keyring((), store, clock=clock)
    assert not ring.required()
    store.create("laptop")
    clock.now += 1.0
    assert ring.required()
    store.revoke("laptop")
    assert Keyring((), store, clock=clock).required()


def test_static_keys(clock: Clock) -> None:
    ring = Keyring(static_keys(["k" * 16, "m" * 40], "QAFILA_API_KEY"), clock=clock)
    assert ring.required()
    found = ring.recognise("m" * 40)
    assert isinstance(found, Key)
    assert found.name == "qafila-api-key-2"
    assert ring.recognise("m" * 39) == Unknown("unknown")
    tenants = {key.caller(share_cache=False).tenant for key in static_keys(["k" * 16, "m" * 40], "x")}
    assert len(tenants) == 2
    assert {key.caller(share_cache=True).tenant for key in static_keys(["k" * 16, "m" * 40], "x")} == {""}
    for bad in ("short", "with a space inside", "tab\tbetween letters", "قافلة" * 5):
        with pytest.raises(UsageError, match="QAFILA_API_KEY: key 1 must be 16") as error:
            static_keys([bad], "QAFILA_API_KEY")
        assert bad not in str(error.value)


def test_names_scopes_and_limits_are_checked(store: KeyStore) -> None:
    store.create("laptop")
    names = {"laptop": "there is a key of that name", "anonymous": "requests without a key"}
    names |= dict.fromkeys(("", "a b", "x" * 65), "name is 1 to 64")
    for name, message in names.items():
        with pytest.raises(UsageError, match=message):
            store.create(name)
    with pytest.raises(UsageError, match="no scope 'root'; there are inference, models, agent, metrics, admin"):
        store.create("other", scopes=["root"])
    with pytest.raises(UsageError, match="--tokens-per-minute: must be above 0"):
        store.create("other", tokens_per_minute=0)
    for change in (store.revoke, store.rotate):
        with pytest.raises(UsageError, match="there is no such key"):
            change("nobody")


def test_lengths_of_time() -> None:
    assert [seconds(text, "--expires") for text in ("30d", "12h", "90m", "45s", "2w")] == [
        30 * 86400, 43200, 5400, 45, 1209600,
    ]  # fmt: skip
    for bad in ("30", "d", "-3d", "0d", "1.5h", "forever", "3y", "9" * 12 + "d"):
        with pytest.raises(UsageError, match=r"--expires: .* is no length of time"):
            seconds(bad, "--expires")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.sqlite3"
    monkeypatch.setenv("QAFILA_DATABASE", f"sqlite:///{file}")
    assert main(["keys", "create", "laptop", "--scope", "inference", "--expires", "30d", "--max-concurrent", "2"]) == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert "laptop" in err
    assert key not in err
    assert main(["keys", "list"]) == 0
    table = capsys.readouterr().out
    assert key[:14] in table
    assert key not in table
    assert "2 at once" in table
    assert main(["keys", "rotate", "laptop", "--json"]) == 0
    rotated = json.loads(capsys.readouterr().out)
    assert rotated["key"].startswith(rotated["prefix"])
    assert rotated["key"] != key
    assert main(["keys", "revoke", "laptop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "revoked"
    assert main(["keys", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["scopes"], row["max_concurrent"]) == ("revoked", ["inference"], 2)
    assert main(["keys", "revoke", "laptop"]) == 2
    assert capsys.readouterr().err == "error: 'laptop': there is no such key; `qafila keys list` names them\n"
    with sqlite3.connect(file) as database:
        assert key not in "\n".join(database.iterdump())
    database.close()
    assert file.stat().st_mode & 0o077 == 0
