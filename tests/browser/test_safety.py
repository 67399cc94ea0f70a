"""What is hostile, broken, full or gone: shown as text, refused with the place, or said in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from rhapsode.serving.limits import Limits
from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import PHONE, Chat, expect_none_running, serving

MARKUP = "<script>document.title = 'taken'</script><img src=x onerror=\"alert(1)\"><b>bold</b> &amp; </textarea>"
RIGHT_TO_LEFT = "שלום עולם \u202eabc\u202c مرحبا بالعالم"
LONG_WORD = "unbreakable" * 800
FILES = resources.files("rhapsode.serving") / "page"


@pytest.mark.parametrize("model", ["tuned", "base"])
def test_hostile_text_is_text(make_chat: Callable[..., Chat], artefacts: Path, model: str) -> None:
    chat = make_chat(viewport=PHONE).open(model, max_tokens=3, temperature=0.0)
    page = chat.page
    said = f"{MARKUP}\n{RIGHT_TO_LEFT}\n{LONG_WORD[:2000]}"
    chat.say(said)
    shown = page.locator(".user .text" if model == "tuned" else ".written")
    assert shown.text_content() == said
    assert page.title() == f"{said[:60]}… · Rhapsode"
    assert page.locator("#transcript").locator("script, img, b").count() == 0
    for element in ("documentElement", "querySelector('#scroll')", "querySelector('#drawer')"):
        assert page.evaluate(f"document.{element}.scrollWidth <= document.{element}.clientWidth")
    page.screenshot(path=artefacts / f"hostile-{model}.png")
    page.locator("#drawer-open").click()
    expect(page.locator(".conversation")).to_have_text(f"{said[:60]}…")
    if model == "tuned":
        page.locator("#drawer-close").click()
        page.get_by_role("button", name="Edit").click()
        expect(page.get_by_role("textbox", name="Your message")).to_have_value(said)


def test_right_to_left_text_runs_from_the_right(chat: Chat) -> None:
    chat.open(max_tokens=3)
    chat.say("مرحبا بالعالم")
    direction = "element => getComputedStyle(element).direction"
    assert chat.page.locator(".user .text").evaluate(direction) == "rtl"


def test_no_file_of_the_page_makes_markup_of_text() -> None:
    for file in FILES.iterdir():
        text = file.read_text(encoding="utf-8")
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|https?://(?!www\.w3\.org/2000/svg)"
        assert not re.search(forbidden, text), file.name
        if file.name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text), file.name


def test_every_file_comes_under_the_policy_and_nothing_else_comes(address: str) -> None:
    names = [file.name for file in FILES.iterdir() if not file.name.endswith(".html")]
    for path in ("/", "/docs", *(f"/page/{name}" for name in names)):
        answer = httpx.get(address + path)
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}.get(
            path.rpartition(".")[2], "text/html"
        )
        assert answer.headers["Content-Type"].partition(";")[0] == kind
    traps = ("index.html", "docs.html", "..%2fapp.py", "%2e%2e/app.py", "a/b", "", "main.js%00")
    for path in (*(f"/page/{name}" for name in traps), "/redoc", "/docs/oauth2-redirect"):
        assert httpx.get(address + path).status_code == 404, path


def test_the_description_tells_every_route_and_field(chat: Chat) -> None:
    api = httpx.get(f"{chat.address}/openapi.json").json()
    page = chat.page
    page.goto(f"{chat.address}/docs")
    text = page.locator("main").inner_text()
    for path, methods in api["paths"].items():
        assert path in text and all(method.upper() in text for method in methods)
    for name in ("CompletionRequest", "ChatRequest", "NextRequest", "TokenizeRequest", "Message"):
        section = page.locator(f"[id='{name}']")
        names = section.locator("tbody th").all_inner_texts()
        assert names == list(api["components"]["schemas"][name]["properties"])
    row = page.locator("[id=CompletionRequest] tr", has_text="top_p")
    expect(row).to_contain_text("above 0")
    expect(row).to_contain_text("at most 1")
    assert page.locator("script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


NODE = {"parent": -1, "shown": None, "role": "user", "text": "hi"}
TALK = {"title": "", "mode": "chat", "system": "", "changed": 1, "shown": 0, "nodes": [NODE]}
ONES = ("temperature", "top_p", "typical_p", "repetition_penalty", "max_tokens")
ZEROS = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "seed")
ANSWER = {
    "parent": 0,
    "shown": None,
    "role": "model",
    "text": "ab",
    "model": "m",
    "prompt": [1],
    "finish": "stop",
    "speed": None,
    "sampling": dict.fromkeys(ONES, 1) | dict.fromkeys(ZEROS, 0),
    "tokens": [{"id": 1, "text": "a", "logprob": -1}, {"id": 2, "text": "b", "logprob": None}],
}
ANSWERED = {**TALK, "nodes": [NODE | {"shown": 1}, ANSWER]}


def of(*conversations: Any) -> dict[str, Any]:
    return {"format": "rhapsode-conversations", "version": 1, "conversations": list(conversations)}


def answer(**fields: Any) -> dict[str, Any]:
    """A file whose only answer is otherwise."""
    return of({**ANSWERED, "nodes": [NODE | {"shown": 1}, ANSWER | fields]})


def nodes(*changes: dict[str, Any]) -> dict[str, Any]:
    """A file whose only conversation has these nodes."""
    return of({**TALK, "nodes": [NODE | change for change in changes]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "It is not JSON"),
        ("[" * 100_000, "It is not JSON"),
        ("[]", "must be an object"),
        ({**of(), "format": "other"}, "format: must be one of rhapsode-conversations"),
        ({**of(), "version": 2}, "version: must be one of 1"),
        ({**of(), "more": 1}, "more: is not known"),
        ('{"format": "rhapsode-conversations", "version": 1, "conversations": [], "__proto__": {"taken": 1}}',
         "__proto__: is not known"),
        (of(3), "conversations[0]: must be an object"),
        (of(TALK, {**TALK, "mode": "evil"}), "conversations[1].mode: must be one of chat, continuation"),
        (of({**TALK, "title": "a" * 201}), "conversations[0].title: is longer than 200 characters"),
        (nodes({"parent": 0}), "conversations[0].shown: is no child of this node"),
        (nodes({}, {"parent": 1}), "conversations[0].nodes[1].parent: must stand before"),
        (nodes({}, {"parent": 2}, {"parent": 1}), "nodes[1].parent: must stand before"),
        (of({**TALK, "shown": 9}), "conversations[0].shown: is no child of this node"),
        (nodes({"role": "system"}), "nodes[0].role: must be one of user, model"),
        (answer(tokens=ANSWER["tokens"][:1]), "conversations[0].nodes[1].tokens: do not spell the text"),
        (answer(tokens=[{"id": -1, "text": "ab", "logprob": -1}]), "nodes[1].tokens[0].id: must be a whole number"),
        (answer(tokens=[{"id": 1, "text": "ab", "logprob": 3}]), "nodes[1].tokens[0].logprob: must be a number from"),
        (answer(sampling={"temperature": 1}), "conversations[0].nodes[1].sampling.top_p: is missing"),
        (answer(finish="evil"), "conversations[0].nodes[1].finish: must be one of"),
        (answer(prompt="text"), "conversations[0].nodes[1].prompt: must be a list"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_with_the_place(
    broken: Chat, tmp_path: Path, content: Any, message: str
) -> None:
    file = tmp_path / "talks.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    broken.page.locator("#file").set_input_files(file)
    notice = broken.page.locator("#notices")
    expect(notice).to_contain_text(message)
    expect(notice).to_contain_text("talks.json was not taken in.")
    expect(broken.page.locator(".conversation")).to_have_count(0)
    assert broken.page.evaluate("({}).taken === undefined && localStorage.length === 1")
    broken.page.get_by_role("button", name="Dismiss").click()


@pytest.fixture(scope="module")
def broken(browser: Any, address: str) -> Any:
    """One page for all the broken files: what was refused leaves nothing behind."""
    context = browser.new_context()
    said: list[str] = []
    chat = Chat(context.new_page(), address)
    chat.page.on("console", lambda message: said.append(message.text))
    chat.page.on("pageerror", lambda error: said.append(str(error)))
    yield chat.open()
    context.close()
    assert said == []


def test_a_hostile_file_in_the_right_form_does_no_harm(chat: Chat, tmp_path: Path) -> None:
    chat.open()
    file = tmp_path / f"{MARKUP[:7]}.json".replace("/", "")
    node = {**ANSWER, "text": MARKUP, "model": MARKUP, "tokens": [{"id": 7, "text": MARKUP, "logprob": -1}]}
    file.write_text(json.dumps(of({**ANSWERED, "title": MARKUP, "nodes": [NODE | {"shown": 1, "text": MARKUP}, node]})))
    chat.page.locator("#file").set_input_files(file)
    expect(chat.page.locator(".conversation")).to_have_text(MARKUP)
    assert chat.text() == MARKUP and chat.page.locator("main").locator("script, img, b").count() == 0
    chat.allowed.append("404")
    chat.tokens().first.click()
    expect(chat.page.locator("#glass")).to_contain_text("there is no model")
    assert chat.page.title() == f"{MARKUP} · Rhapsode"


def test_a_kept_conversation_that_is_broken_is_left_out(chat: Chat) -> None:
    chat.open()
    chat.say("Good")
    chat.page.evaluate("localStorage.setItem('rhapsode.conversation.bad', '{\"nodes\": 3}')")
    chat.page.reload()
    expect(chat.page.locator("#notices")).to_contain_text("1 of the kept conversations cannot be read")
    expect(chat.page.locator(".conversation")).to_have_text(["Good"])


def test_a_full_storage_is_said(chat: Chat) -> None:
    chat.open()
    fill = """() => {
        for (let size = 2 ** 22; size > 0; size >>= 1) {
            try { for (;;) localStorage.setItem(crypto.randomUUID(), "x".repeat(size)); } catch {}
        }
    }"""
    chat.page.evaluate(fill)
    chat.say("Hello")
    expect(chat.page.locator("#notices")).to_contain_text("The browser's storage is full")
    chat.page.get_by_role("button", name="Regenerate").click()  # all else works
    chat.written()
    expect(chat.page.locator(".model .arrows")).to_have_text("‹2/2›")


def test_without_storage_the_page_works(chat: Chat) -> None:
    """Nor without what browsers give only to pages that came encrypted."""
    chat.page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no') }})")
    chat.page.add_init_script("delete Crypto.prototype.randomUUID; delete Navigator.prototype.clipboard")
    chat.page.goto(chat.address)
    chat.ready()
    expect(chat.page.locator("#notices")).to_contain_text("This browser keeps nothing for this page")
    chat.page.locator("#model").select_option("tuned")
    chat.ready()
    chat.page.locator("#settings-open").click()
    chat.page.locator("#set-max_tokens").fill("5")
    chat.page.locator("#settings-close").click()
    chat.page.get_by_role("button", name="Dismiss").click()
    chat.say("Hello")
    expect(chat.page.locator(".told")).to_be_visible()
    expect(chat.page.locator("#notices")).to_be_empty()  # said once
    chat.page.locator(".model").get_by_role("button", name="Copy").click()
    expect(chat.page.locator("#notices")).to_contain_text("The browser does not let this page copy.")


def test_a_conversation_that_is_too_long_is_said_with_both_numbers(chat: Chat) -> None:
    chat.open(max_tokens=3)
    message = {"role": "user", "content": "word " * 4000}
    chat.say(message["content"])
    told = chat.ask("/v1/tokenize", {"model": "tuned", "messages": [message]})
    expected = f"The conversation has {told['count']} tokens, and the model can read 4096."
    expect(chat.page.locator(".model .error")).to_contain_text(expected)
    assert chat.asked("/v1/chat/completions") == []


def test_a_busy_server_says_when_to_come_back(make_chat: Callable[..., Chat], folders: dict[str, Path]) -> None:
    with serving(folders, limits=Limits(texts=1)) as address:
        chat = make_chat(address).open(max_tokens=5)
        chat.allowed += ["503", "ERR_CONNECTION_REFUSED"]  # the server ends before the page
        never = {str(id): -100 for id in Tokenizer.load(folders["tuned"]).special_tokens.values()}
        body = {"model": "tuned", "prompt": "Speak", "max_tokens": 4000, "stream": True, "logit_bias": never}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as busy:
            lines = busy.iter_lines()  # to be kept: the stream is closed with it
            assert next(lines).startswith("data: {")
            chat.say("Hello")
            error = chat.page.locator(".model .error")
            expect(error).to_contain_text("1 texts of this key are being written, of 1 at most")
            expect(error).to_contain_text("Try again in 5 seconds.")
        expect_none_running(chat.page, address)
        chat.page.get_by_role("button", name="Try again").click()
        chat.written()
        expect(chat.tokens()).to_have_count(5)
        expect(chat.page.locator(".arrows")).to_have_count(0)  # it stands where the error stood


def test_a_dead_server_is_said_and_a_new_one_goes_on(
    make_chat: Callable[..., Chat], folders: dict[str, Path], artefacts: Path
) -> None:
    with serving(folders) as address:
        chat = make_chat(address).open()
        chat.say("Hello")
        written = chat.text()
    chat.allowed += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"]
    chat.page.locator("#input").fill("And now?")
    chat.page.locator("#input").press("Enter")
    expect(chat.page.locator(".model .error")).to_have_text("The server cannot be reached. Is it still running?")
    assert chat.text(0) == written
    chat.page.screenshot(path=artefacts / "dead-server.png")
    with serving(folders, port=int(address.rpartition(":")[2])):
        chat.page.get_by_role("button", name="Try again").click()
        chat.written()
        expect(chat.page.locator(".error")).to_have_count(0)
        expect(chat.page.locator(".told")).to_have_count(2)
