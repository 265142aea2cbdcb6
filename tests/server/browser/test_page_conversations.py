"""Conversations in the chat page: branches, search, files, settings, ratings, keys, and what is told of failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripted_client import ScriptedClient

from qafila.errors import ContextLengthError

Open = Callable[..., Any]
Serve = Callable[..., tuple[str, ScriptedClient]]

DONE = ".message.assistant[aria-busy=false]"


def test_edit_branch_regenerate_and_reload(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["An answer."])
    page = open_page(url)
    page.ask("first question")
    page.ask("second question")
    first = page.locator(".message.user").first
    first.hover()
    first.locator(".edit").click()
    page.locator(".editor textarea").fill("another first question")
    page.keyboard.press("Enter")
    page.get_by_text("2 / 2").wait_for()
    assert page.locator(".message.user").count() == 1
    assert client.asked[-1].messages[-1].text == "another first question"
    page.wait_for_selector(DONE)
    page.click(".regenerate")
    page.wait_for_selector(".assistant .branches")
    page.wait_for_selector(DONE)
    assert page.locator(".assistant .branch-number").inner_text() == "2 / 2"
    seeds = [request.generation.seed for request in client.asked]
    assert len(set(seeds)) == len(seeds), "each answer is drawn anew"
    first.get_by_role("button", name="Previous version").click()
    page.get_by_text("second question").wait_for()
    assert page.locator(".message").count() == 4
    page.reload()
    page.get_by_text("second question").wait_for()
    assert page.locator(".message").count() == 4
    assert page.locator(".message.user .branch-number").inner_text() == "1 / 2"


def test_conversations_are_kept_searched_renamed_exported_and_deleted(
    open_page: Open, scripted_server: Serve, tmp_path: Path
) -> None:
    page = open_page(scripted_server(["Nothing special."])[0])
    page.ask("How tall is a giraffe?")
    page.click("#new-chat")
    page.ask("ما عاصمة الأُردن؟")
    page.click("#new-chat")
    page.until("document.querySelectorAll('.conversation').length === 2")
    page.fill("#search", "GIRAFFE")
    page.until("document.querySelectorAll('.conversation').length === 1")
    page.fill("#search", "الاردن")  # without the hamza and the vowel mark that were written
    page.get_by_role("button", name="ما عاصمة الأُردن؟", exact=False).first.wait_for()
    page.fill("#search", "special giraffe")
    page.locator(".conversation", has_text="giraffe").click()
    page.locator(".prose", has_text="Nothing special.").wait_for()
    page.fill("#search", "")
    page.until("document.querySelectorAll('.conversation').length === 2")

    row = page.locator(".conversation-row", has_text="giraffe")
    row.hover()
    row.locator(".more").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.locator(".rename").fill("Tall animals")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Tall animals", exact=True).wait_for()

    row = page.locator(".conversation-row", has_text="Tall animals")
    row.hover()
    row.locator(".more").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as Markdown").click()
    assert download.value.suggested_filename == "Tall animals.md"
    download.value.save_as(tmp_path / "export.md")
    assert "How tall is a giraffe?" in (tmp_path / "export.md").read_text(encoding="utf-8")

    row.hover()
    row.locator(".more").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.locator("#confirm-action").click()
    page.until("document.querySelectorAll('.conversation').length === 1")
    assert page.locator(".message").count() == 0


def test_ratings_and_choices_are_exported_for_training(open_page: Open, scripted_server: Serve, tmp_path: Path) -> None:
    url, client = scripted_server(["The ", "answer."])
    page = open_page(url)
    page.click("#settings-open")
    page.fill("#system", "Be brief.")
    page.click("#settings-close")
    page.ask("question")
    page.click(".rate.up")
    assert page.locator(".rate.up").get_attribute("aria-pressed") == "true"
    page.click(".compare")
    page.wait_for_selector(".pair .choose:not([disabled])")
    assert page.locator(".pair .message").count() == 2
    client.pieces = ["unused"]
    page.locator(".pair .choose").nth(1).click()
    page.wait_for_selector(".pair", state="detached")
    assert page.locator(".assistant .branch-number").inner_text() == "2 / 2"
    page.click("#settings-open")
    with page.expect_download() as download:
        page.click("#export-ratings")
    assert download.value.suggested_filename.endswith(".jsonl")
    download.value.save_as(tmp_path / "ratings.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "ratings.jsonl").read_text(encoding="utf-8").splitlines()]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question"}]
    completion = [{"role": "assistant", "content": "The answer."}]
    assert lines == [
        {"prompt": prompt, "chosen": completion, "rejected": completion},
        {"prompt": prompt, "completion": completion, "label": True},
    ]


def test_attached_files_go_into_the_message(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["Read."])
    page = open_page(url)
    files = [
        {"name": "notes.md", "mimeType": "text/markdown", "buffer": "نص\n```\ncode\n```\n".encode()},
        {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\x00\xff"},
        {"name": "big.txt", "mimeType": "text/plain", "buffer": b"x" * 300_000},
    ]
    page.set_input_files("#file-input", files)
    page.wait_for_selector(".composer .chip")
    page.until("document.getElementById('toast').textContent.includes('big.txt is too large')")
    assert page.locator(".composer .chip").count() == 1
    page.ask("Summarise")
    assert client.asked[-1].messages[-1].text == "notes.md:\n````md\nنص\n```\ncode\n```\n````\n\nSummarise"
    assert page.locator(".bubble .chip-name").inner_text() == "notes.md"


def test_sampling_controls_are_sent_only_when_set(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["Yes."])
    page = open_page(url)
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    page.ask("one")
    assert {"temperature", "top_p", "max_completion_tokens"} & set(bodies[0]) == set()
    assert bodies[0]["stream_options"] == {"include_usage": True}
    page.click("#settings-open")
    page.locator("#temperature").fill("0.5")
    page.locator("#top-p").fill("0.9")
    page.fill("#max-tokens", "7")
    page.fill("#seed", "42")
    page.click("#settings-close")
    page.ask("two")
    sent = {key: bodies[1][key] for key in ("temperature", "top_p", "max_completion_tokens", "seed")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 7, "seed": 42}
    page.reload()
    page.click("#settings-open")
    assert page.input_value("#seed") == "42"
    page.click("#reset")
    page.click("#settings-close")
    page.ask("three")
    assert "temperature" not in bodies[2]
    assert len(client.asked) == 3


def test_errors_are_told_in_plain_words(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["Fine."])
    page = open_page(url, expected=["Failed to load resource"])
    client.refusal = ContextLengthError("the prompt has 9000 tokens, the model reads 2048")
    page.ask("long")
    notice = page.locator(".notice.error")
    assert "too long for the model" in notice.inner_text()
    assert "9000 tokens" in notice.inner_text()

    client.refusal = None
    notice.get_by_role("button", name="Try again").click()
    page.get_by_text("Fine.").wait_for()
    assert notice.count() == 0

    busy = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": None}}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=busy),
        times=1,
    )
    page.ask("again")
    assert "The server is busy" in notice.inner_text()
    button = notice.get_by_role("button")
    assert button.is_disabled()
    page.get_by_role("button", name="Try again", exact=True).click()  # waits until it can be pressed
    notice.wait_for(state="detached")

    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"), times=1)
    page.ask("anyone there?")
    assert "isn’t answering" in notice.inner_text()


def test_what_is_sent_before_the_models_are_known_is_answered(open_page: Open, scripted_server: Serve) -> None:
    page = open_page(scripted_server(["Here."])[0])
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route), times=1)  # Playwright takes no builtin
    page.reload()
    page.ask("anyone there?")
    assert held
    page.get_by_text("Here.").wait_for()
    assert page.locator(".answer-name").inner_text() == "scripted"
    held[0].continue_()
    page.until("document.getElementById('model').value === 'scripted'")


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page: Open, scripted_server: Serve) -> None:
    page = open_page(scripted_server(["Welcome."])[0], expected=["Failed to load resource"])
    refusal = {"error": {"message": "no key", "type": "authentication_error", "param": None, "code": "invalid_api_key"}}

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    page.route("**/v1/**", guard)
    page.reload()
    page.locator("#key-input").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("didn’t accept that key").wait_for()
    page.locator("#key-input").fill("right")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model option[value=scripted]", state="attached")
    page.ask("hello")
    assert page.answer() == "Welcome."
    assert page.evaluate("[sessionStorage.getItem('qafila.key'), localStorage.getItem('qafila.key')]") == [
        "right",
        None,
    ]
