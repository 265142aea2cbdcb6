"""The third-party files of the chat page are the published ones, and the page itself needs nothing from outside."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from string import Formatter
from types import ModuleType

import pytest

from qafila.agent.reasons import ENGLISH

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "src" / "qafila" / "server" / "pages"
OURS = sorted(p for kind in ("*.js", "*.css", "*.html") for p in PAGES.rglob(kind) if "vendor" not in p.parts)


@pytest.fixture(scope="module")
def check_vendor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_vendor", ROOT / "scripts" / "check_vendor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PAGES / "vendor", tmp_path / "vendor"))


def test_vendored_files_are_the_recorded_ones(check_vendor: ModuleType) -> None:
    assert check_vendor.problems() == []
    assert check_vendor.main([]) == 0


def test_a_changed_file_is_named(check_vendor: ModuleType, copy: Path) -> None:
    with (copy / "dompurify" / "purify.min.js").open("ab") as file:
        file.write(b" ")
    assert [line.partition(":")[0] for line in check_vendor.problems(copy)] == ["dompurify/purify.min.js"]


def test_missing_unlisted_and_unlicensed_files_are_named(check_vendor: ModuleType, copy: Path) -> None:
    (copy / "katex" / "katex.min.js").unlink()
    (copy / "markdown-it" / "LICENSE").unlink()
    (copy / "stray.js").write_text("1")
    lines = check_vendor.problems(copy)
    assert len(lines) == 3
    assert any("katex.min.js: missing" in line for line in lines)
    assert any("markdown-it/LICENSE is missing" in line for line in lines)
    assert any("stray.js: not listed" in line for line in lines)


def test_an_entry_with_other_fields_is_named(check_vendor: ModuleType, copy: Path) -> None:
    entries = json.loads((copy / "vendor.json").read_text(encoding="utf-8"))
    del entries[0]["sha256"]
    (copy / "vendor.json").write_text(json.dumps(entries), encoding="utf-8")
    assert any("has the fields" in line for line in check_vendor.problems(copy))


def test_our_own_files_are_small_and_ask_nothing_of_other_hosts() -> None:
    assert OURS
    for path in OURS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, f"{path.name}: split it"
        for url in re.findall(r"https?://[^\s\"'`)]+", text):
            assert url.startswith("http://www.w3.org/"), f"{path.name} names {url}"


def test_the_page_has_nothing_inline() -> None:
    """The Content-Security-Policy allows neither inline scripts nor inline styles: they would silently do nothing."""
    html = (PAGES / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assert "<style" not in html
    assert not re.search(r"\s(?:style|on[a-z]+)=", html)


def test_both_languages_have_the_same_strings() -> None:
    keys = {}
    for language in ("en", "ar"):
        text = (PAGES / "js" / f"strings_{language}.js").read_text(encoding="utf-8")
        keys[language] = re.findall(r"^  ([a-zA-Z]+):", text, re.MULTILINE)
        assert len(keys[language]) == len(set(keys[language])), f"a string is given twice in {language}"
    assert set(keys["en"]) == set(keys["ar"])


def test_every_reason_is_told_in_arabic() -> None:
    """An Arabic text may leave out a value, but names none that the English words do not have."""
    text = (PAGES / "js" / "strings_ar.js").read_text(encoding="utf-8")
    table = re.search(r"^  reasons: \{\n(.*?)^  \},", text, re.MULTILINE | re.DOTALL)
    assert table is not None
    told = dict(re.findall(r"^    (\w+): \"(.*)\",$", table[1], re.MULTILINE))
    assert set(told) == set(ENGLISH)
    for code, words in told.items():
        names = {name for _, name, _, _ in Formatter().parse(ENGLISH[code]) if name}
        assert set(re.findall(r"\{(\w+)\}", words)) <= names, code
        assert not re.search("[a-zA-Z]", re.sub(r"\{\w+\}", "", words)), code


def test_every_string_asked_for_exists_and_every_string_is_used() -> None:
    defined = set(
        re.findall(r"^  ([a-zA-Z]+):", (PAGES / "js" / "strings_en.js").read_text(encoding="utf-8"), re.MULTILINE)
    )
    used: set[str] = set()
    for path in OURS:
        if not path.name.startswith("strings_"):
            text = path.read_text(encoding="utf-8")
            used |= set(re.findall(r"\b(?:t|tn|say|list)\(\s*\"([a-zA-Z]+)\"", text))
            used |= set(re.findall(r"data-t(?:-[a-z]+)?=\"([a-zA-Z]+)\"", text))
            used |= set(re.findall(r"/\* t \*/ \"([a-zA-Z]+)\"", text))
    assert used - defined == set(), "asked for and not defined"
    assert defined - used == set(), "defined and not used"
