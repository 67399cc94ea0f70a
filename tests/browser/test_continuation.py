"""A text that a model continues: it grows, is edited anywhere, and branches, and what was there is never lost."""

from __future__ import annotations

import random
from typing import Any

from playwright.sync_api import expect

from .conftest import Chat


def edit(chat: Chat, text: str) -> None:
    chat.page.get_by_role("button", name="Edit the text").click()
    chat.page.get_by_role("textbox", name="The whole text").fill(text)
    chat.page.get_by_role("button", name="Save").click()


def shown(chat: Chat) -> str:
    """The whole text, without the arrows in it."""
    parts: list[str] = chat.page.locator(".sheet > :not(.arrows)").all_text_contents()
    return "".join(parts)


def test_a_text_grows(chat: Chat) -> None:
    chat.open("base")
    page = chat.page
    expect(page.locator("#kind")).to_have_text("continues text")
    chat.say("ROMEO:\n")
    asked = chat.asked("/v1/completions")[0]
    assert asked["prompt"] == "ROMEO:\n"
    answer = chat.ask("/v1/completions", {**asked, "stream": False})["choices"][0]
    assert shown(chat) == "ROMEO:\n" + answer["text"]

    chat.say("")  # let it go on: after its own ids, which may end within a character
    onwards = chat.asked("/v1/completions")[1]
    ended = answer["finish_reason"] == "stop"
    assert onwards["prompt"] == answer["prompt_token_ids"] + answer["token_ids"][: -1 if ended else None]

    whole = shown(chat)
    chat.say(" And so")
    assert chat.asked("/v1/completions")[2]["prompt"] == whole + " And so"
    assert shown(chat).startswith(whole + " And so")


def test_an_empty_text_is_begun(chat: Chat) -> None:
    chat.open("base")
    chat.say("")
    assert chat.asked("/v1/completions")[0]["prompt"] == "" and chat.tokens().count() > 0
    chat.look_into(1)
    expect(chat.page.locator("#glass tr.drawn")).to_have_count(1)


def test_edits_keep_the_tokens_before_them(chat: Chat) -> None:
    chat.open("base")
    page = chat.page
    chat.say("ROMEO:\n")
    before = shown(chat)
    ids = chat.look_into(6)["prompt"]
    page.keyboard.press("Escape")
    texts = [chat.tokens().nth(k).text_content() or "" for k in range(6)]
    whole = max(k for k in range(6) if texts[k]) + 1  # tokens; what is left after them is no character yet
    kept = "ROMEO:\n" + "".join(texts)
    edit(chat, kept + "!!")
    assert shown(chat) == kept + "!!"
    expect(chat.tokens()).to_have_count(whole)
    assert chat.look_into(whole - 1)["prompt"] == ids[: len(ids) - 6 + whole - 1]  # what stayed can be looked into
    page.keyboard.press("Escape")
    chat.say("")
    assert chat.asked("/v1/completions")[-1]["prompt"] == kept + "!!"
    page.get_by_role("button", name="The version before").first.click()
    assert shown(chat) == before


def test_another_continuation(chat: Chat) -> None:
    chat.open("base", seed=None)
    page = chat.page
    chat.say("ROMEO:\n")
    first = shown(chat)
    page.get_by_role("button", name="Another continuation").click()
    chat.written()
    assert shown(chat) != first and shown(chat).startswith("ROMEO:\n")
    expect(page.locator(".sheet .arrows")).to_have_text("‹2/2›")
    page.get_by_role("button", name="The version before").click()
    assert shown(chat) == first
    page.reload()
    chat.ready()
    page.locator(".conversation").first.click()
    assert shown(chat) == first


def test_the_other_model_begins_another_conversation(chat: Chat) -> None:
    chat.open("base")
    chat.say("Once")
    chat.page.locator("#model").select_option("tuned")
    expect(chat.page.locator("#kind")).to_have_text("answers")
    expect(chat.page.locator(".message")).to_have_count(0)
    chat.say("Hello")
    chat.page.locator(".conversation", has_text="Once").click()
    expect(chat.page.locator("#model")).to_have_value("base")
    expect(chat.page.locator("#kind")).to_have_text("continues text")


def test_whatever_is_edited_the_text_is_as_edited_and_nothing_is_lost(chat: Chat) -> None:
    """The tree itself, through many random edits of texts of random tokens."""
    chat.open("base")
    run = """async ([tokens, edits, sampling]) => {
        const { Conversation, ROOT } = await import("/page/conversation.js");
        const { conversationOf, plain } = await import("/page/form.js");
        const talk = new Conversation({ mode: "continuation" });
        const told = [];
        const write = (parent) => talk.add(parent, {
            role: "model", model: "base", prompt: [1], sampling, finish: "stop", speed: null,
            text: tokens.join(""), tokens: tokens.map((text, id) => ({ id, text, logprob: -1 })),
        });
        write(talk.add(ROOT, { role: "user", text: "Once" }));
        for (const text of edits) {
            const before = JSON.stringify(talk.nodes.map(({ shown, ...node }) => node));
            const last = talk.rewrite(text);
            const kept = JSON.stringify(talk.nodes.map(({ shown, ...node }) => node)).startsWith(before.slice(0, -1));
            told.push([talk.textTo(talk.last()), last === talk.last(), kept]);
            if (talk.nodes.length % 3 === 0) write(last);
            conversationOf(JSON.parse(JSON.stringify(plain(talk))));
        }
        return told;
    }"""
    noise = random.Random(0)
    tokens = ["a", "", "bc", "d", "ab", "", "🦙", "a"]
    edits = []
    for _ in range(200):
        text = "Once" + "".join(tokens) * noise.randint(0, 2)
        start = noise.randint(0, len(text))
        edits.append(text[:start] + noise.choice(["", "x", "ab", "Once"]) + text[start + noise.randint(0, 3) :])
    ones = ("temperature", "top_p", "typical_p", "repetition_penalty", "max_tokens")
    zeros = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")
    sampling = dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0)
    told: list[Any] = chat.page.evaluate(run, [tokens, edits, sampling])
    assert [text for text, _, _ in told] == edits
    assert all(last and kept for _, last, kept in told)
