"""Conversations with tools, published with their token ids by the makers of the models."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from rhapsode.inference.call import Call, Tool
from rhapsode.inference.chat import ChatTemplate, Turn
from rhapsode.inference.language_model import LanguageModel
from rhapsode.tokenizer.tokenizer import Tokenizer


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_ids_equal_the_published_ones(shared_data: Path, version: str) -> None:
    """Up to the first result: the makers' program writes results that are JSON as JSON, their template as a string."""
    with tarfile.open(shared_data / "chat_templates" / "mistral" / "samples.tar.xz") as tar:
        files = {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}  # type: ignore[union-attr]
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "mistral" / "mistral_instruct_tokenizer_240323.model.v3")
    tokenizer.chat_template = (shared_data / "chat_templates" / "mistral" / f"{version}.jinja").read_text("utf-8")
    tokenizer.settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    model = LanguageModel.__new__(LanguageModel)
    model.tokenizer, model.where = tokenizer, version
    template = ChatTemplate(model)
    result = tokenizer.special_tokens["[TOOL_RESULTS]"]
    seen = []
    for name in {name.rpartition("/")[0] for name in files}:
        sample = json.loads(files[f"{name}/sample.json"])
        sample = sample.get("request", sample)
        published = json.loads(files[f"{name}/tokens_{version}.json"])["tokens"]
        turns = []
        for message in sample["messages"]:
            made = [(call["function"], call["id"]) for call in message.get("tool_calls") or ()]
            calls = tuple(Call(function["name"], function["arguments"], id) for function, id in made)
            turns.append(
                Turn(message["role"], message.get("content") or "", calls, call_id=message.get("tool_call_id"))
            )
        functions = [tool["function"] for tool in sample.get("tools") or ()]
        tools = [Tool(each["name"], each["description"], each["parameters"]) for each in functions]
        ids = template.ids(turns, tools)
        size = published.index(result) if result in published else len(published)
        assert ids[:size] == published[:size] and (size < len(ids) or ids == published)
        seen.append(size)
    assert len(seen) == 4 and max(seen) > 400
