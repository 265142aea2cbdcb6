"""The agent in the chat page, in a real browser over a real server: steps, approvals, memory, and time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import Answer, ScriptedAgent

from qafila.agent.journal import Journal
from qafila.server.assemble import assemble
from qafila.server.local_models import local_entry
from qafila.server.models import Entry, Models
from qafila.server.settings import AgentSettings, Settings

Open = Callable[..., Any]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
BEFORE = "one\n<img src=x onerror=\"document.title='owned'\">\nموعد الاجتماع: ١٢ مايو\n"
AFTER = "one\ntwo\nموعد الاجتماع: ١٣ مايو\n"
READ = [("read_file", {"path": "notes.txt"})]
WRITE = [("write_file", {"path": "notes.txt", "text": AFTER})]


@dataclass
class Place:
    """One server with an agent for the tests of this file: what its model does next is in ``client``."""

    url: str
    folder: Path
    database: str
    client: ScriptedAgent

    def follows(self, script: Sequence[Answer], delay: float = 0.0) -> None:
        """Let runs from now on go by this script, over the file as it was."""
        self.client.answers, self.client.delay = script, delay
        (self.folder / "notes.txt").write_text(BEFORE, encoding="utf-8")

    def notes(self) -> str:
        return (self.folder / "notes.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory, serving) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("agent")
    workspace = folder / "workspace"
    workspace.mkdir()
    client = ScriptedAgent([])

    async def load() -> ScriptedAgent:
        return client

    models = Models({"scripted": Entry("scripted", "scripted", load)})
    database = f"sqlite:///{folder}/agent.sqlite3"
    agent = AgentSettings(workspace, database=database)
    with serving(assemble(models, Settings(), agent=agent)) as url:
        yield Place(url, workspace, database, client)


def begin(page: Any, goal: str) -> None:
    """Begin a run, as a reader would, and wait for its page."""
    page.click("#mode-agent")
    page.locator(".side-link").first.click()
    page.fill("#goal", goal)
    page.keyboard.press("Control+Enter")
    page.locator(".run-head h1", has_text=goal).wait_for()


def state(page: Any, word: str) -> None:
    """Wait for the run that is shown to be in a state."""
    page.locator(".run-head .mark-state", has_text=word).wait_for()


def test_what_is_decided_on_hides_and_turns_round_no_letters(open_page: Open, place: Place) -> None:
    place.follows([[("write_file", {"path": "a\u202etxt.exe", "text": "safe \u2066evil\u2069 \x1b[2J\n"})], "done"])
    page = open_page(place.url)
    begin(page, "write it")
    state(page, "Waiting for you")
    card = page.locator(".approval")
    assert card.locator("figcaption .path").inner_text() == "a<U+202E>txt.exe"
    assert card.locator("ins .diff-text").inner_text() == "safe <U+2066>evil<U+2069> <U+001B>[2J"
    card.locator("summary").click()
    assert card.locator(".long-text").first.inner_text() == "a<U+202E>txt.exe"
    assert "\u202e" not in page.locator("details.step summary").first.inner_text()
    card.locator(".deny").click()
    state(page, "Done")


def test_steps_unfold_and_nothing_is_written_before_it_is_allowed(open_page: Open, place: Place) -> None:
    place.follows([READ, WRITE, "**Done**, <b>as you said</b>."])
    page = open_page(place.url)
    begin(page, "put the notes in order")
    state(page, "Waiting for you")
    # The call that waits is next, but no key that is pressed by habit allows it.
    card = page.locator(".approval")
    page.until("document.activeElement.matches('.approval h2')")
    for _ in range(3):
        page.keyboard.press("Enter")
        page.keyboard.press("Space")
    seen = []
    for _ in range(5):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.className"))
    assert seen[-3:] == ["reason", "button danger deny", "button allow"]
    assert place.notes() == BEFORE
    step = page.locator("details.step[data-event]").first
    assert "read_file" in step.locator("> summary").inner_text()
    assert not step.locator(".call").is_visible()
    step.locator("> summary").click()
    assert "<img src=x" in step.locator(".call .long-text").last.inner_text()
    assert page.locator(".agent-page img").count() == 0
    assert [line.inner_text() for line in card.locator("del .diff-text").all()] == BEFORE.splitlines()[1:]
    assert card.locator("ins .offscreen").first.text_content() == "Added: "
    # Where the path comes from: no word of the reader's, and no text that was read.
    assert card.locator(".sources li").inner_text() == "path notes.txt · in nothing that was read: the model’s own"
    # It waits in the inbox too, and after the page was loaded anew.
    assert page.locator("#agent-badge").inner_text().startswith("1")
    page.locator(".side-link", has_text="Approvals").click()
    page.reload()
    page.locator(".approval .allow").click()
    page.get_by_text("Nothing waits for your word.").wait_for()
    page.locator(".side a.conversation").first.click()
    state(page, "Done")
    assert place.notes() == AFTER
    answer = page.locator(".run-answer .prose")
    assert answer.locator("strong").inner_text() == "Done"
    assert "<b>as you said</b>" in answer.inner_text()
    page.click("[data-tool=undo]")
    page.keyboard.press("Enter")  # the question's own answer is no
    assert place.notes() == AFTER
    page.click("[data-tool=undo]")
    page.click("#confirm-action")
    page.get_by_text("1 change was taken back").first.wait_for()
    assert place.notes() == BEFORE
    assert "owned" not in page.title()


def test_calls_of_one_step_are_decided_together_or_one_by_one(open_page: Open, place: Place) -> None:
    writes = [("write_file", {"path": f"{name}.txt", "text": name}) for name in ("a", "b", "c")]
    place.follows([writes, "Two of them."])
    page = open_page(place.url)
    begin(page, "write three files")
    state(page, "Waiting for you")
    all_of_them = page.locator(".approval-all")
    assert "3 calls of one step wait together" in all_of_them.inner_text()
    page.locator("#agent-badge", has_text="3").wait_for()
    page.locator(".approval .deny").nth(1).click()
    page.get_by_text("2 calls of one step wait together").wait_for()
    assert (
        page.locator(".approval h2").all_inner_texts()
        == ["The agent wants to call\nwrite_file\nChanges, can be undone"] * 2
    )
    assert not (place.folder / "a.txt").exists()  # the others are to be decided first
    page.locator(".side-link", has_text="Approvals").click()
    page.locator(".approval-all .allow").click()
    page.get_by_text("Nothing waits for your word.").wait_for()
    page.locator(".side a.conversation").first.click()
    state(page, "Done")
    assert sorted(file.name for file in place.folder.glob("?.txt")) == ["a.txt", "c.txt"]


def test_a_no_in_arabic_on_a_phone_and_the_run_over_time(open_page: Open, place: Place) -> None:
    place.follows([READ, WRITE, "حسنًا، لن أغيّر شيئًا."])
    page = open_page(place.url, locale="ar", **PHONE)
    page.click("#sidebar-toggle")
    page.click("#mode-agent")
    page.fill("#goal", "عدّل notes.txt إلى ١٣")
    page.get_by_role("button", name="ابدأ").click()
    page.locator(".approval .reason").fill("لا داعي لذلك")
    assert page.locator(".approval .diff-lines").evaluate("element => getComputedStyle(element).direction") == "ltr"
    assert page.locator(".sources").count() == 0  # the path stands in the goal
    page.locator(".approval .deny").click()
    state(page, "اكتمل")
    assert place.notes() == BEFORE
    assert place.client.asked[-1].messages[-1].text == "refused: لا داعي لذلك"
    step = page.locator("details.step[data-event]").nth(1)
    assert "لم يُنفَّذ" in step.locator("> summary").inner_text()
    assert page.locator(".run-answer .prose p").evaluate("element => getComputedStyle(element).direction") == "rtl"
    page.click("[data-tool=fold]")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("[data-tool=time]")
    rows = page.locator(".timeline tbody tr")
    kinds = rows.evaluate_all("rows => rows.map((row) => row.className)")
    assert kinds == ["model", "tool", "model", "wait", "tool", "model"]
    assert rows.nth(0).locator("td.count").all_inner_texts()[2::2] == ["10", "2"]
    assert re.fullmatch(r"4 40\W*%\W*", rows.nth(0).locator("td.count").nth(3).inner_text())
    boxes = [rows.nth(i).locator(".time-bar").first.bounding_box() for i in (0, 2, 5)]
    assert boxes[0]["x"] > boxes[1]["x"] > boxes[2]["x"], "time goes from right to left"
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_reasons_of_our_own_are_told_in_arabic(open_page: Open, tmp_path: Path, serving) -> None:
    """Names in them stand by themselves, whatever their direction; a policy's own words stay as they are."""
    workspace, policy = tmp_path / "workspace", tmp_path / "policy.toml"
    workspace.mkdir()
    (workspace / "notes.txt").write_text(BEFORE, encoding="utf-8")
    policy.write_text(
        '[effects]\nwrite = "allow"\n[[rule]]\ntool = "calculate"\nthen = "deny"\nwhy = "No sums today."\n'
        '[[rule]]\ntool = "delete_file"\nthen = "deny"\n',
        encoding="utf-8",
    )
    script = [READ, WRITE, [("calculate", {"expression": "1+1"})], [("delete_file", {"path": "a"})]]
    client = ScriptedAgent(script)

    async def load() -> ScriptedAgent:
        return client

    models = Models({"scripted": Entry("scripted", "scripted", load)})
    agent = AgentSettings(workspace, policy=policy, database=f"sqlite:///{tmp_path}/agent.sqlite3")
    with serving(assemble(models, Settings(), agent=agent)) as url:
        page = open_page(url, locale="ar")
        page.click("#mode-agent")
        page.fill("#goal-steps", "4")
        page.fill("#goal", "رتّب ما عندي")
        page.get_by_role("button", name="ابدأ").click()
        state(page, "ينتظرك")
        page.locator(".side-link", has_text="الموافقات").click()
        why = page.locator(".approval .why")
        assert why.inner_text() == "سبب السؤال: ما في path ليس من كلامك، بل قرأه النموذج أو أتى به من عنده"
        assert why.locator("bdi").all_inner_texts() == ["path"]
        assert why.evaluate("element => getComputedStyle(element).direction") == "rtl"
        page.locator(".approval .deny").click()
        page.locator(".side a.conversation").first.click()
        state(page, "توقف")
        assert page.locator(".run-note").last.inner_text() == "توقف: استُنفدت الخطوات. حد الخطوات: 4"
        page.click("[data-tool=fold]")
        calls = page.locator("section.call")
        assert calls.nth(1).locator(".reason-words").all_inner_texts() == [
            "ما في path ليس من كلامك، بل قرأه النموذج أو أتى به من عنده",
            "رُفض الاستدعاء",
        ]
        assert calls.nth(2).locator(".long-text").last.inner_text() == "No sums today."
        assert calls.nth(3).locator(".reason-words").inner_text() == "policy.toml، السطر 7"
        page.click("#language-switch")
        assert page.locator(".run-note").last.inner_text().endswith("the budget of 4 steps is used up")


def test_a_run_is_told_something_stopped_gone_on_with_and_forked(open_page: Open, place: Place) -> None:
    place.follows([[("calculate", {"expression": f"{number} + 1"})] for number in range(40)], delay=0.2)
    page = open_page(place.url)
    page.click("#mode-agent")
    page.fill("#goal-steps", "100")
    begin(page, "count")
    page.locator("details.step[data-event]").first.wait_for()
    page.locator(".agent .composer textarea").fill("<b>faster</b>")
    page.keyboard.press("Enter")
    page.locator(".flow .bubble", has_text="<b>faster</b>").wait_for()
    page.click("[data-tool=stop]")
    state(page, "Stopped")
    place.client.delay, place.client.answers = 0.0, []
    page.click("[data-tool=resume]")
    state(page, "Done")
    steps = page.locator("details.step[data-event]").count()
    page.locator("details.step[data-event] > summary").first.click()
    first = page.url
    page.get_by_role("button", name="Fork from here").first.click()
    page.until(f"location.href !== '{first}'")
    page.locator(".run-head h1").wait_for()
    assert page.locator("details.step[data-event]").count() < steps
    page.click("#mode-chats")
    page.locator("#prompt").wait_for()
    page.go_back()
    page.locator(".run-head h1").wait_for()


def test_a_stream_that_breaks_off_is_taken_up_where_it_was(open_page: Open, place: Place) -> None:
    place.follows([READ, [("calculate", {"expression": "2 + 3"})], "five"])
    page = open_page(place.url)
    asked = []

    def cut(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
            return
        whole = route.fetch().text()
        route.fulfill(status=200, content_type="text/event-stream", body=whole[: whole.index("event: observed")])

    page.route("**/events*", cut)
    begin(page, "add")
    state(page, "Done")
    page.locator(".run-answer", has_text="five").wait_for()
    assert [url.rpartition("events")[2] for url in asked] == ["", "?after=1"]
    assert page.locator("details.step[data-event]").count() == 3


def test_memory_is_searched_edited_kept_added_and_forgotten(open_page: Open, place: Place) -> None:
    memory, owner = Journal(place.database).memory, ""  # of this machine's own user
    memory.add(owner, "profile", "Prefers tea")
    words = "الاجتماع <b>الخميس</b>"
    memory.add(owner, "fact", words, source="read_file", trusted=False, state="proposed")

    def kept() -> dict[str, bool]:
        return {one.text: one.trusted for one in memory.list(owner, state="kept") if one.kind != "episode"}

    page = open_page(place.url)
    page.click("#mode-agent")
    page.locator(".side-link", has_text="Memory").click()
    proposed = page.locator(".memory-item", has_text=words)
    assert "Untrusted source" in proposed.inner_text()
    assert proposed.locator(".memory-text").evaluate("element => getComputedStyle(element).direction") == "rtl"
    proposed.get_by_role("button", name="Keep").click()
    page.get_by_role("heading", name="Facts").wait_for()
    assert kept() == {"Prefers tea": True, words: False}
    page.locator(".memory-item", has_text="Prefers tea").get_by_role("button", name="Edit").click()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.press("Control+A")
    page.keyboard.type("Prefers coffee")
    page.get_by_role("button", name="Keep").click()
    page.locator(".memory-text", has_text="Prefers coffee").wait_for()
    page.locator(".memory-add textarea").fill("Works on Sundays")
    page.get_by_role("button", name="Add").click()
    page.get_by_text("Works on Sundays").wait_for()
    page.locator(".agent-page input[type=search]").fill("SUNDAY")
    page.until("document.querySelectorAll('.memory-item').length === 1")
    page.locator(".memory-item").get_by_role("button", name="Forget").click()
    page.keyboard.press("Enter")  # the question's own answer is no
    assert "Works on Sundays" in kept()
    page.locator(".memory-item").get_by_role("button", name="Forget").click()
    page.click("#confirm-action")
    page.get_by_text("Nothing found.").wait_for()
    assert kept() == {"Prefers coffee": True, words: False}


def test_a_step_shows_its_odds_and_is_explained(open_page: Open, default_gguf, tmp_path, serving) -> None:
    models = Models({"default": local_entry("default", default_gguf, {"threads": 1})})
    agent = AgentSettings(tmp_path, tools=("calculate",), database=f"sqlite:///{tmp_path}/agent.sqlite3")
    with serving(assemble(models, Settings(), agent=agent)) as url:
        page = open_page(url)
        page.click("#mode-agent")
        page.fill("#goal-steps", "1")
        page.fill("#goal", "What is 23*17?")
        page.keyboard.press("Enter")
        step = page.locator("details.step[data-event]")
        step.locator("> summary").click()
        assert step.locator(".odds-row").count() == 2
        assert "%" in step.locator(".odds-row.chosen .share").inner_text()
        step.get_by_role("button", name="Explain this step").click()
        step.locator(".cause").first.wait_for()
        changes = step.locator(".cause > .share").all_inner_texts()
        sizes = [abs(float(text.replace("−", "-"))) for text in changes]
        assert len(sizes) == 2
        assert sizes == sorted(sizes, reverse=True)
        assert "Goal" in step.locator(".cause-part").all_inner_texts()


def test_a_server_without_an_agent_has_no_place_for_one(open_page: Open, scripted_server: Callable[..., Any]) -> None:
    url, _ = scripted_server(["Fine."])
    page = open_page(url)
    page.ask("hello")
    assert not page.locator("#modes").is_visible()
    page.goto(f"{url}/#/agent")
    page.reload()
    page.get_by_text("This server has no agent").wait_for()
