"""A conversation: streamed, stopped, written anew, edited, kept, taken out and in; by keyboard, and on a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, expect

from .conftest import PHONE, Chat, expect_none_running, running

LONG = {"temperature": 0.0, "max_tokens": 4000}  # at random weights the likeliest tokens go round in circles, endlessly


def test_an_answer_is_what_the_server_writes(chat: Chat) -> None:
    chat.open()
    chat.say("What is honour?")
    (asked,) = chat.asked("/v1/chat/completions")
    assert asked["messages"] == [{"role": "user", "content": "What is honour?"}] and asked["seed"] == 5
    (choice,) = chat.ask("/v1/chat/completions", {**asked, "stream": False})["choices"]
    assert chat.text() == choice["message"]["content"]
    expect(chat.tokens()).to_have_count(len(choice["token_ids"]))
    told = chat.page.locator(".told")
    reason = "reached the limit of tokens" if choice["finish_reason"] == "length" else "ended by itself"
    expect(told).to_have_text(re.compile(rf"^{len(choice['token_ids'])} tokens · [\d.]+ tokens/s · {reason}$"))
    first_line = choice["message"]["content"].strip().split("\n")[0]
    expect(chat.page.locator("#spoken")).to_contain_text(first_line)


def test_a_stream_grows_and_stop_stops_it(chat: Chat) -> None:
    chat.open(**LONG)
    page = chat.page
    for stop in (lambda: page.locator("#stop").click(), lambda: page.keyboard.press("Escape")):
        answers = page.locator("[data-tokens]").count()
        page.locator("#input").fill("Speak")
        page.locator("#input").press("Enter")
        expect(page.locator("[data-tokens]")).to_have_count(answers + 1)
        expect(chat.tokens().nth(5)).to_be_attached()
        first = chat.tokens().count()
        assert running(chat.address) == 1
        expect(page.locator("#speed")).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))
        expect(chat.tokens().nth(first + 5)).to_be_attached()
        stop()
        chat.written()
        expect_none_running(page, chat.address)
        written = chat.tokens().count()
        assert first < written < LONG["max_tokens"]
        expect(page.locator(".told").last).to_have_text(re.compile(rf"^{written} tokens · .* · stopped$"))
    page.reload()
    chat.ready()
    page.locator(".conversation").first.click()
    expect(chat.tokens()).to_have_count(written)  # what was written stays


def test_an_answer_that_was_cut_goes_on(chat: Chat) -> None:
    chat.open(**LONG | {"max_tokens": 10})
    chat.say("Speak")
    begun = chat.text()
    chat.page.get_by_role("button", name="Go on").click()
    chat.written()
    expect(chat.tokens()).to_have_count(20)
    (body,) = chat.asked("/v1/completions")
    assert chat.text() == begun + chat.ask("/v1/completions", {**body, "stream": False})["choices"][0]["text"]


def test_regenerating_and_editing_branch_and_arrows_step_between(chat: Chat) -> None:
    chat.open(seed=None)
    page = chat.page
    chat.say("One?")
    texts = [chat.text()]
    for _ in range(2):
        page.get_by_role("button", name="Regenerate").click()
        chat.written()
        texts.append(chat.text())
    assert len(set(texts)) == 3
    arrows = page.locator(".model .arrows")
    expect(arrows).to_have_text("‹3/3›")
    expect(page.get_by_role("button", name="The next version")).to_be_disabled()
    page.get_by_role("button", name="The version before").click()
    expect(arrows).to_have_text("‹2/3›")
    assert chat.text() == texts[1]
    chat.say("Two?")  # goes on from the second version
    assert [each["content"] for each in chat.asked("/v1/chat/completions")[-1]["messages"]] == [
        "One?",
        texts[1],
        "Two?",
    ]

    page.locator(".user").first.hover()
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Your message").fill("Another one?")
    page.get_by_role("textbox", name="Your message").press("Control+Enter")
    chat.written()
    assert chat.asked("/v1/chat/completions")[-1]["messages"] == [{"role": "user", "content": "Another one?"}]
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".user .arrows")).to_have_text("‹2/2›")
    page.locator(".user").get_by_role("button", name="The version before").click()
    expect(page.locator(".message")).to_have_count(4)  # all of the first branch, as it was shown
    assert chat.text(0) == texts[1]

    page.locator(".user").first.hover()
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Your message").press("Escape")  # changes nothing
    expect(page.locator(".message")).to_have_count(4)


def test_the_system_prompt_and_the_meter(chat: Chat) -> None:
    chat.open()
    page = chat.page
    page.locator("#settings-open").click()
    page.locator("#system").fill("Be brief.")
    page.locator("#input").fill("Grüße! 🦙")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße! 🦙"}]
    counted = chat.ask("/v1/tokenize", {"model": "tuned", "messages": messages})
    expect(page.locator("#meter")).to_have_attribute("aria-valuenow", str(counted["count"]))
    expect(page.locator("#meter-text")).to_have_text(f"{counted['count']} of 4\u202f096 tokens")
    chat.say("Grüße! 🦙")
    assert chat.asked("/v1/chat/completions")[0]["messages"] == messages
    page.reload()
    chat.ready()
    page.locator(".conversation").first.click()
    page.locator("#settings-open").click()
    expect(page.locator("#system")).to_have_value("Be brief.")


def test_the_settings_are_what_is_asked_for_and_are_kept(chat: Chat) -> None:
    chat.open(seed=None)
    page = chat.page
    styles = httpx.get(f"{chat.address}/v1/styles").json()
    page.locator("#summary").click()
    page.locator("#style").select_option("chat")
    page.locator("#set-top_k").fill("7")
    page.locator("#set-max_tokens").fill("3")
    page.locator("#set-max_tokens").press("Tab")
    page.locator("#set-seed").fill("-4")  # cannot be, and so is not taken
    page.locator("#set-seed").press("Tab")
    expect(page.locator("#set-seed")).to_have_value("")
    expect(page.locator("#style")).to_have_value("own")
    expect(page.locator("#summary")).to_have_text("temperature 0.7 · top-p 0.9 · top-k 7")
    chat.say("Hm")
    asked = chat.asked("/v1/chat/completions")[0]
    expected = {**styles["default"], **styles["styles"]["chat"], "top_k": 7, "max_tokens": 3}
    del expected["max_new_tokens"]
    assert {name: asked[name] for name in expected} == expected
    page.get_by_role("button", name="Regenerate").click()
    chat.written()
    seeds = {each["seed"] for each in chat.asked("/v1/chat/completions")}
    assert len(seeds) == 2  # another each time
    page.reload()
    chat.ready()
    expect(page.locator("#summary")).to_have_text("temperature 0.7 · top-p 0.9 · top-k 7")


def exported(page: Page) -> Any:
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def test_several_conversations_are_kept_renamed_deleted_and_taken_out_and_in(
    chat: Chat, make_chat: Callable[..., Chat], tmp_path: Path
) -> None:
    chat.open()
    page = chat.page
    for text in ("First", "Second"):
        page.get_by_role("button", name="New conversation").click()
        chat.say(text)
    page.get_by_role("button", name="Regenerate").click()
    chat.written()
    expect(page.locator(".conversation")).to_have_text(["Second", "First"])
    page.get_by_role("button", name="Rename Second").click()
    page.get_by_role("textbox", name="Title").fill("A better name")
    page.get_by_role("textbox", name="Title").press("Enter")
    page.reload()
    chat.ready()
    expect(page.locator(".conversation")).to_have_text(["A better name", "First"])
    before = exported(page)
    assert [each["title"] for each in before["conversations"]] == ["A better name", ""]
    assert [len(each["nodes"]) for each in before["conversations"]] == [3, 2]

    page.locator(".conversation").first.click()
    shown = chat.text()
    page.get_by_role("button", name="Delete A better name").click()
    expect(page.locator(".conversation")).to_have_text(["First"])
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".conversation")).to_have_text(["A better name", "First"])
    assert chat.text() == shown

    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(before), encoding="utf-8")
    other = make_chat().open()
    other.page.locator("#file").set_input_files(file)
    expect(other.page.locator(".conversation")).to_have_text(["A better name", "First"])
    assert exported(other.page) == before
    assert other.text() == shown
    other.say("On we go")  # what came in is as alive as what was written here
    assert other.asked("/v1/chat/completions")[0]["messages"][:2] == [
        {"role": "user", "content": "Second"},
        {"role": "assistant", "content": shown},
    ]


def test_two_windows_do_not_overwrite_each_other(chat: Chat) -> None:
    chat.open()
    chat.say("Here")
    second = chat.page.context.new_page()
    second.goto(chat.address)
    other = Chat(second, chat.address)
    other.ready()
    other.say("There")
    expect(chat.page.locator(".conversation")).to_have_text(["There", "Here"])
    chat.page.reload()
    expect(chat.page.locator(".conversation")).to_have_text(["There", "Here"])


def test_a_conversation_by_keyboard_alone(chat: Chat) -> None:
    chat.open()
    page = chat.page

    def focused() -> Any:
        return page.evaluate("document.activeElement.id || document.activeElement.className")

    def tab_to(name: str, key: str = "Shift+Tab", most: int = 30) -> None:
        for _ in range(most):
            if focused() == name:
                return
            page.keyboard.press(key)
        raise AssertionError(f"{name} cannot be reached by {key}: {focused()} has the focus")

    assert focused() == "input"
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    chat.written()
    assert chat.asked("/v1/chat/completions")[0]["messages"][0]["content"] == "One\ntwo"
    assert focused() == "input"
    page.keyboard.press("Shift+Tab")
    while "token" not in focused():
        page.keyboard.press("Shift+Tab")

    def token() -> int:
        return int(page.evaluate("document.activeElement.dataset.k"))

    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none" and token() == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert token() == 2
    page.keyboard.press("ArrowLeft")
    assert token() == 1
    page.keyboard.press("End")
    assert token() == chat.tokens().count() - 1
    page.keyboard.press("ArrowRight")
    assert token() == chat.tokens().count() - 1
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(chat.tokens().nth(1)).to_have_attribute("role", "button")
    page.keyboard.press("Enter")
    expect(page.locator("#glass")).to_have_attribute("aria-busy", "false")
    assert focused() == "glass-temperature"
    reading = page.locator("#glass output")
    expect(reading).to_have_text("1")
    page.keyboard.press("ArrowRight")
    expect(reading).to_have_text("1.05")
    tab_to("alternative", "Tab")
    page.keyboard.press("ArrowDown")
    chosen = page.evaluate("document.activeElement.closest('tr').dataset.id")
    page.keyboard.press("Enter")
    chat.written()
    assert str(chat.asked("/v1/completions")[0]["prompt"][-1]) == chosen
    page.keyboard.press("Shift+Tab") if focused() == "input" else None
    while "token" not in focused():
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#glass")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#glass")).to_be_hidden()
    assert "token" in focused()
    for name in ("settings-open", "theme", "colour", "model", "import", "export", "new"):
        tab_to(name, most=60)


def test_a_phone(make_chat: Callable[..., Chat], artefacts: Path) -> None:
    chat = make_chat(viewport=PHONE, has_touch=True, is_mobile=True).open()
    page = chat.page
    chat.say("A question that is somewhat longer than a line of a telephone, to see it break.")

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.evaluate("document.getElementById('scroll').scrollWidth") <= PHONE["width"]

    fits()
    for name in ("#input", "#send", "#model", "#drawer-open", "#settings-open"):
        box = page.locator(name).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        assert box["y"] + box["height"] <= PHONE["height"]
    drawer = page.locator("#drawer")
    expect(drawer).to_be_hidden()
    page.locator("#drawer-open").tap()
    expect(drawer).to_be_visible()
    page.screenshot(path=artefacts / "phone-drawer.png")
    page.get_by_role("button", name="New conversation").tap()
    expect(drawer).to_be_hidden()
    page.locator("#drawer-open").tap()
    page.locator(".conversation").tap()
    expect(drawer).to_be_hidden()
    chat.tokens().nth(3).tap()
    expect(page.locator("#glass")).to_have_attribute("aria-busy", "false")
    sheet = page.locator("#glass").bounding_box()
    assert sheet is not None and (sheet["x"], sheet["width"]) == (0, PHONE["width"])
    token = chat.tokens().nth(3).bounding_box()
    assert token is not None and token["y"] > 0 and token["y"] + token["height"] < sheet["y"]
    assert sheet["y"] > 100 and round(sheet["y"] + sheet["height"]) == PHONE["height"]
    fits()
    page.screenshot(path=artefacts / "phone-glass-box.png")
    page.get_by_role("button", name="Close the glass box").tap()
    page.locator("#settings-open").tap()
    expect(page.locator("#set-temperature")).to_be_visible()
    fits()


def test_the_theme(make_chat: Callable[..., Chat]) -> None:
    for scheme, own in (("light", "rgb(252, 251, 248)"), ("dark", "rgb(23, 22, 20)")):
        chat = make_chat(color_scheme=scheme).open()

        def background(page: Page = chat.page) -> Any:
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        assert background() == own
        chat.page.locator("#theme").click()  # light
        assert background() == "rgb(252, 251, 248)"
        chat.page.locator("#theme").click()  # dark
        assert background() == "rgb(23, 22, 20)"
        chat.page.reload()
        chat.ready()
        assert background() == "rgb(23, 22, 20)"
