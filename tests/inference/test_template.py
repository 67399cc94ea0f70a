"""Chat templates of published models make what they make in transformers; hostile ones end with one message."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rhapsode.base.errors import InputError
from rhapsode.inference.template import render

CONVERSATION = [
    {"role": "user", "content": "Hi  there "},
    {"role": "assistant", "content": "Hello\n"},
    {"role": "user", "content": "Grüße, 日本?\n{{ 7 * 7 }}"},
]
VARIABLES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}

# Of each maker one, and every construct that templates use: filters, namespaces, slices, macros, loop controls.
PUBLISHED = [
    "chujiezheng/chatml.jinja",
    "chujiezheng/gemma-it.jinja",
    "chujiezheng/granite-3.0-instruct.jinja",
    "chujiezheng/llama-2-chat.jinja",
    "chujiezheng/phi-3.jinja",
    "chujiezheng/zephyr.jinja",
    "llama_cpp/Qwen-Qwen2.5-7B-Instruct.jinja",
    "llama_cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
    "llama_cpp/meta-llama-Llama-3.1-8B-Instruct.jinja",
    "llama_cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja",
    "mistral/v3.jinja",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_transformers(shared_data: Path, name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (shared_data / "chat_templates" / name).read_text(encoding="utf-8")
    theirs, _ = render_jinja_template(
        [CONVERSATION], chat_template=template, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    ours = render(template, VARIABLES | {"messages": CONVERSATION, "add_generation_prompt": True}, name)
    assert ours == theirs[0]
    assert "{{ 7 * 7 }}" in ours  # what users write is never a template


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ 'a' * 2 ** 25 }}", "makes more than 16,777,216 characters"),
        ("\n{{ x", "line 2: unexpected end of template"),
        ("{{ raise_exception('Roles must alternate.') }}", "does not work: Roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("x" * (2**20 + 1), "longer than 1,048,576 characters"),
    ],
)
def test_a_hostile_or_broken_template_ends_with_one_message(template: str, words: str) -> None:
    with pytest.raises(InputError, match="model: the chat template does not work: ") as caught:
        render(template, {"messages": []}, "model")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsode.inference.template.SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(InputError, match="takes longer than 1 seconds"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {}, "model")
    assert time.monotonic() - start < 8


def test_memory_that_doubles_is_stopped() -> None:
    doubling = "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    with pytest.raises(InputError, match=r"MemoryError|uses too much|takes longer"):
        render(doubling, {}, "model")
