"""The glass box: every number is the server's, the slider asks nobody, and another token begins another branch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from rhapsode.tokenizer.tokenizer import TURN_END, Tokenizer

from .conftest import Chat


def bars(chat: Chat) -> list[dict[str, Any]]:
    """The rows of the table: token, numbers, and widths of the bars in percent."""
    rows: list[dict[str, Any]] = chat.page.locator("#glass tbody tr").evaluate_all(
        """rows => rows.map(row => ({
            id: row.dataset.id ?? "others",
            drawn: row.classList.contains("drawn"),
            figures: [...row.querySelectorAll(".figure")].map(each => each.textContent),
            widths: [...row.querySelectorAll(".bar")].map(each => parseFloat(each.style.width)),
        }))"""
    )
    return rows


def expect_numbers(chat: Chat, told: Any, temperature: float) -> None:
    """Every bar at this temperature is as wide as the server's number."""
    (distribution,) = [each for each in told["distributions"] if math.isclose(each["temperature"], temperature)]
    rows = bars(chat)
    assert [row["id"] for row in rows] == [*(str(token["id"]) for token in told["tokens"]), "others"]
    for column, step in enumerate(distribution["steps"]):
        shares = [*step["probabilities"], step["others"]]
        assert [row["widths"][column] for row in rows] == pytest.approx([100 * share for share in shares], abs=1e-3)
        for row, share in zip(rows, shares, strict=True):
            figure = row["figures"][column]
            assert figure in ("–", "0 %", "<0.1 %") if share < 0.0005 else figure == f"{100 * share:.1f} %"


@pytest.mark.parametrize("model", ["tuned", "base"])
def test_every_bar_is_the_servers_number(chat: Chat, model: str) -> None:
    chat.open(model, repetition_penalty=1.2, min_p=0.01)
    chat.say("What is honour?")
    page = chat.page
    for k in (0, 4, chat.tokens().count() - 1):
        asked = chat.look_into(k)
        told = chat.ask("/v1/next", asked)
        (node,) = [asked["prompt"][: asked["prompt_length"]]]
        assert len(asked["prompt"]) == len(node) + k and len(asked["tokens"]) == 1
        names = page.locator("#glass thead th").all_text_contents()
        assert names == ["Token", *(step["name"] for step in told["distributions"][-1]["steps"])]
        assert {"model", "repetition penalty", "temperature", "top-k", "top-p", "min-p"} <= set(names)
        expect_numbers(chat, told, 1.0)
        assert [row["id"] for row in bars(chat) if row["drawn"]] == [str(asked["tokens"][0])]
        expect(page.locator("#glass h2")).to_have_text(f"Token {k + 1} of {chat.tokens().count()}")
    page.get_by_role("button", name="Token before").click()
    expect(page.locator("#glass h2")).to_have_text(f"Token {chat.tokens().count() - 1} of {chat.tokens().count()}")
    page.keyboard.press("Escape")
    expect(page.locator("#glass")).to_be_hidden()


def test_the_slider_redraws_at_once_and_asks_nobody(chat: Chat) -> None:
    chat.open()
    chat.say("What is honour?")
    told = chat.ask("/v1/next", chat.look_into(2))
    assert len(told["distributions"]) == 41
    before = len(chat.requests)
    slider = chat.page.locator("#glass-temperature")
    for place in (40, 27, 1, 0):
        slider.fill(str(place))
        if place:
            expect_numbers(chat, told, place / 20)
    rows = bars(chat)  # at 0 there is one token, and the filters have nothing to do
    assert [row["widths"][-1] for row in rows] == [100, *[0] * (len(rows) - 1)]
    expect(chat.page.locator("#glass output")).to_have_text("0")
    later = [path for path, _ in chat.requests[before:]]
    assert set(later) <= {"/v1/tokenize"}  # the meter's, which waits a little after an answer


@pytest.mark.parametrize("model", ["tuned", "base"])
def test_another_token_begins_another_branch(chat: Chat, model: str) -> None:
    chat.open(model)
    chat.say("What is honour?")
    first, ids = chat.text(), chat.asked("/v1/next")
    page, k = chat.page, 5
    asked = chat.look_into(k)
    told = chat.ask("/v1/next", asked)
    kept = "".join(chat.tokens().nth(place).text_content() or "" for place in range(k))
    chosen = next(token for token in told["tokens"] if token["id"] != asked["tokens"][0] and not token["special"])
    page.locator(f"#glass tr[data-id='{chosen['id']}'] button").click()
    chat.written()
    body = chat.asked("/v1/completions")[-1]
    assert body["prompt"] == [*asked["prompt"], chosen["id"]] and body["temperature"] == 1.0
    rest = chat.ask("/v1/completions", {**body, "stream": False})["choices"][0]
    whole = chat.text()
    assert whole.startswith(kept) and whole.endswith(rest["text"])
    expect(chat.tokens()).to_have_count(k + 1 + len(rest["token_ids"]))
    again = chat.look_into(k)  # the new branch can be looked into as well
    assert again["prompt"] == asked["prompt"] and again["tokens"] == [chosen["id"]]
    assert page.locator("#glass tr.drawn").get_attribute("data-id") == str(chosen["id"])
    page.keyboard.press("Escape")
    page.get_by_role("button", name="The version before").click()
    assert chat.text() == first and ids == []


def test_a_token_that_ends_the_text_ends_it(chat: Chat, folders: dict[str, Path]) -> None:
    chat.open()
    chat.say("What is honour?")
    page = chat.page
    asked = chat.look_into(0)
    ends = Tokenizer.load(folders["tuned"]).special_tokens[TURN_END]

    def with_the_end(route: Any) -> None:
        answer = route.fetch(post_data={**route.request.post_data_json, "tokens": [*asked["tokens"], ends]})
        route.fulfill(response=answer)

    page.route("**/v1/next", with_the_end)
    chat.look_into(3)
    page.locator(f"#glass tr[data-id='{ends}'] button").click()
    expect(page.locator(".told").last).to_contain_text("4 tokens · ended by itself")
    expect(chat.tokens()).to_have_count(4)
    assert chat.asked("/v1/completions") == []
    expect(chat.tokens().nth(3)).to_have_text("")


def test_characters_in_parts(chat: Chat) -> None:
    """Wherever a text is cut into tokens, it is the same text."""
    chat.open()
    add = """async ([before, chosen]) => (await import("/page/pieces.js")).added(before, chosen)"""
    text = "a🦙🏽é日"
    data = text.encode()
    for size in (1, 2, 3, 5):
        tokens: list[dict[str, Any]] = []
        for start in range(0, len(data), size):
            part = list(data[start : start + size])
            added = chat.page.evaluate(add, [tokens, {"id": 1, "text": "?", "bytes": part}])
            tokens.append({"id": 1, "text": added, "bytes": part})
        assert "".join(token["text"] for token in tokens) == text
    names = """async (name) => (await import("/page/pieces.js")).namedBytes(name)"""
    assert chat.page.evaluate(names, "bytes:\\xe2\\x80") == [0xE2, 0x80]
    assert chat.page.evaluate(names, "bytes:\\xzz") is None and chat.page.evaluate(names, "lord") is None


@pytest.mark.parametrize("model", ["tuned", "base"])
def test_what_was_written_is_cut_in_parts_of_characters_too(chat: Chat, model: str) -> None:
    """At a high temperature most tokens are bytes: a branch in the middle of a character still spells its bytes."""
    chat.open(model, temperature=2, top_k=0, top_p=1, max_tokens=60, seed=11)
    chat.say("日本")
    parts = [k for k in range(chat.tokens().count()) if not chat.tokens().nth(k).text_content()]
    assert parts, "no token of this answer is a part of a character: take another seed"
    k = parts[0] + 1
    asked = chat.look_into(k)
    drawn = asked["tokens"][0]
    before = chat.text()
    whole = "".join(chat.tokens().nth(place).text_content() or "" for place in range(k + 1))
    chat.page.locator(f"#glass tr[data-id='{drawn}'] button").click()  # the same token again, with the same seed
    chat.written()
    assert chat.text().startswith(whole)
    assert chat.text()[: len(before)] == before


def test_the_colours_are_the_probabilities(chat: Chat) -> None:
    chat.open(seed=3)
    chat.say("What is honour?")
    page = chat.page
    asked = chat.asked("/v1/chat/completions")[0]
    answer = chat.ask("/v1/chat/completions", {**asked, "stream": False})["choices"][0]
    for k, token in enumerate(answer["logprobs"]["content"]):
        shade = sum(math.exp(token["logprob"]) >= least for least in (0.01, 0.05, 0.2, 0.5))
        assert f"p{shade}" in (chat.tokens().nth(k).get_attribute("class") or "").split()
    unlikely = chat.page.locator(".tokens .p0").first
    colour = "element => getComputedStyle(element).backgroundColor"
    assert unlikely.evaluate(colour) == "rgba(0, 0, 0, 0)"
    page.locator("#colour").click()
    expect(page.locator("#colour")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#legend")).to_be_visible()
    assert unlikely.evaluate(colour) != "rgba(0, 0, 0, 0)"
    page.reload()
    chat.ready()
    expect(page.locator("#legend")).to_be_visible()
