"""What the dialect lacks or clients of other servers know: echoes, ids, what comes next, vectors, styles, metrics."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from rhapsode.inference.chat import ChatTemplate, Turn
from rhapsode.inference.sampling import Sampling, distribution
from rhapsode.inference.styles import STYLES

from .conftest import CONTEXT, Served

PROMPTS = ["Before we proceed", "Speak, speak. 日本 語", "Ž"]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)


def post(served: Served, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{served.address}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_an_echo_says_how_likely_the_prompt_was(
    client: openai.OpenAI, served: Served, as_ids: bool, max_tokens: int
) -> None:
    ids = [served.base.encode_prompt(text) for text in PROMPTS]
    prompt: Any = ids if as_ids else PROMPTS
    asked: dict[str, Any] = {"model": "base", "prompt": prompt, "n": 2, "seed": 4, "max_tokens": max_tokens}
    answer = client.completions.create(**asked, echo=True, logprobs=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None and answer.usage.prompt_tokens == sum(map(len, ids))
    assert answer.usage.completion_tokens == 6 * max_tokens
    for choice in answer.choices:
        mine, text = ids[choice.index // 2], PROMPTS[choice.index // 2]
        sampling = Sampling(temperature=1.0, top_p=1.0, seed=4 + choice.index % 2, max_new_tokens=max(1, max_tokens))
        alone = list(served.base.stream_ids(mine, [sampling]))[:max_tokens]
        assert choice.text == text + "".join(piece.text for piece in alone)
        logprobs, written = choice.logprobs, [*mine, *(piece.token for piece in alone)]
        assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
        expected = served.base.logits(torch.tensor([written]))[0, :, : served.base.tokenizer.vocabulary_size]
        expected = expected.log_softmax(-1)
        assert logprobs.token_logprobs[0] is None and len(logprobs.token_logprobs) == len(written)
        for place, value in enumerate(logprobs.token_logprobs[1:]):
            assert value == pytest.approx(float(expected[place, written[place + 1]]), abs=1e-4)
            best = max(logprobs.top_logprobs[place + 1].values())
            assert best == pytest.approx(float(expected[place].max()), abs=1e-4)
    parts = list(client.completions.create(**asked, echo=True, logprobs=2, stream=True))
    for choice in answer.choices:
        mine_of = [part.choices[0] for part in parts if part.choices[0].index == choice.index]
        assert "".join(part.text for part in mine_of) == choice.text
        told = [part.logprobs.token_logprobs for part in mine_of if part.logprobs is not None]
        assert choice.logprobs is not None
        assert [value for values in told for value in values or []] == choice.logprobs.token_logprobs


def test_nothing_is_asked_for(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens: nothing is asked for"):
        client.completions.create(model="base", prompt="a", max_tokens=0)


def test_ids_come_with_the_text(served: Served) -> None:
    ids = served.base.encode_prompt(PROMPTS[0])
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPTS[0], "seed": 4, "return_token_ids": True}
    (choice,) = post(served, "/v1/completions", **asked)["choices"]
    alone = served.base.stream_ids(ids, [Sampling(temperature=1.0, top_p=1.0, seed=4, max_new_tokens=16)])
    assert choice["prompt_token_ids"] == ids and choice["token_ids"] == [piece.token for piece in alone]
    turns = [Turn("user", "Who?")]
    talk: dict[str, Any] = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 9, "seed": 1}
    events = stream(served, "/v1/chat/completions", model="tuned", **talk, return_token_ids=True, logprobs=True)
    prompt = ChatTemplate(served.tuned).ids(turns)
    assert events[0]["choices"][0]["prompt_token_ids"] == prompt
    written = [id for event in events for id in event["choices"][0]["token_ids"]]
    # What was begun with one token more goes on as it would have: what the page does with another token.
    cut = {"model": "tuned", "prompt": prompt + written[:4], "seed": 1, "return_token_ids": True}
    assert stream(served, "/v1/completions", **cut, max_tokens=5)[0]["choices"][0]["token_ids"] == written[4:5]


def stream(served: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    """The events of an answer, but for [DONE]."""
    with httpx.stream("POST", f"{served.address}{path}", json={**body, "stream": True}, timeout=60) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_style_sets_what_is_not_given(client: openai.OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": "Speak", "seed": 3, "max_tokens": 30}
    for style, values in STYLES.items():
        for given in ({}, {"temperature": 1.4}):
            sampling = Sampling(
                **{"temperature": 1.0, "top_p": 1.0, "seed": 3, "max_new_tokens": 30, **values, **given}
            )
            answer = client.completions.create(**asked, **given, extra_body={"style": style})
            assert answer.choices[0].text == served.base.generate("Speak", sampling).text
    assert httpx.get(f"{served.address}/v1/styles").json()["styles"] == STYLES


def test_tokens_of_a_text_and_of_a_conversation(served: Served) -> None:
    found = post(served, "/v1/tokenize", model="base", prompt=PROMPTS[1])
    ids = served.base.encode_prompt(PROMPTS[1])
    assert (found["count"], found["tokens"], found["max_model_len"]) == (len(ids), ids, CONTEXT)
    talk = [{"role": "user", "content": "Who <|im_end|>?"}]
    turns = [Turn("user", "Who <|im_end|>?")]
    assert post(served, "/v1/tokenize", model="tuned", messages=talk)["tokens"] == ChatTemplate(served.tuned).ids(turns)
    assert post(served, "/v1/tokenize", model="base", prompt="e" * 5000)["count"] > CONTEXT
    for body in ({}, {"prompt": "a", "messages": talk}):
        answer = httpx.post(f"{served.address}/v1/tokenize", json={"model": "base", **body})
        assert answer.status_code == 400 and "prompt and messages: give one of them" in answer.text


def test_what_comes_next_step_by_step(served: Served) -> None:
    ids = served.base.encode_prompt(PROMPTS[0])
    logits = served.base.logits(torch.tensor([ids]))[0, -1, : served.base.tokenizer.vocabulary_size].double().numpy()
    shape: dict[str, Any] = {"top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5}
    temperatures = [0, 0.5, 1, 2.5]
    asked = {"model": "base", "prompt": ids, "prompt_length": 2, "temperatures": temperatures, "tokens": [7, 7, 9]}
    found = post(served, "/v1/next", **asked, top=5, **shape)
    shown = [token["id"] for token in found["tokens"]]
    assert shown[:5] == np.argsort(-logits, kind="stable")[:5].tolist() and {7, 9} <= set(shown)
    for told, temperature in zip(found["distributions"], temperatures, strict=True):
        names = [step["name"] for step in told["steps"]]
        filters = ["top-k", "top-p"] if temperature else []
        assert names == ["model", "repetition penalty", "presence penalty", "temperature", *filters]
        sampling = Sampling(temperature=temperature, **shape)
        expected = distribution(logits, sampling, ids, prompt_length=2)
        last = told["steps"][-1]
        assert last["probabilities"] == pytest.approx(expected[shown].tolist(), abs=1e-4)
        for step in told["steps"]:
            assert math.fsum(step["probabilities"]) + step["others"] == pytest.approx(1, abs=1e-9)
    ends = post(served, "/v1/next", model="base", prompt="a", tokens=sorted(served.base.end_ids))["tokens"]
    assert [token["id"] for token in ends if token["end"]] == sorted(served.base.end_ids)
    for body, place in (
        ({"prompt": [10**6]}, "prompt"),
        ({"tokens": [10**6]}, "tokens"),
        ({"prompt_length": 9}, "prompt_length"),
    ):
        answer = httpx.post(f"{served.address}/v1/next", json={"model": "base", "prompt": "a", **body})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == place


def test_vectors(client: openai.OpenAI, served: Served) -> None:
    texts = ["Before we proceed", "any further", "hear me speak"]
    expected = served.base.embed(texts)
    found = client.embeddings.create(model="base", input=texts)
    assert np.array([one.embedding for one in found.data]) == pytest.approx(expected, abs=1e-5)
    plain = client.embeddings.create(model="base", input=texts, encoding_format="float")
    assert np.array([one.embedding for one in plain.data]) == pytest.approx(expected, abs=1e-5)
    ids = [served.base.tokenizer.encode(text) for text in texts]
    of_ids = client.embeddings.create(model="base", input=ids)
    assert np.array([one.embedding for one in of_ids.data]) == pytest.approx(expected, abs=1e-5)
    assert of_ids.usage.prompt_tokens == found.usage.prompt_tokens == sum(map(len, ids))
    for bad, words in (("", "is empty"), ("e" * 10_000, "the model reads"), ([10**6], "there is no token")):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(model="base", input=bad)
    with pytest.raises(openai.BadRequestError, match="dimensions: the vectors of base have 32 numbers"):
        client.embeddings.create(model="base", input="a", dimensions=3)


def test_metrics_count(served: Served) -> None:
    def value(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{served.address}/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    written = value("rhapsode_tokens_total", model="base", kind="completion")
    answered = value("rhapsode_requests_total", path="/v1/completions", status="200")
    post(served, "/v1/completions", model="base", prompt="a", max_tokens=7, logit_bias={"0": -100})
    httpx.get(f"{served.address}/strange/{'x' * 50}")
    assert value("rhapsode_tokens_total", model="base", kind="completion") > written
    assert value("rhapsode_requests_total", path="/v1/completions", status="200") == answered + 1
    assert value("rhapsode_requests_total", path="other", status="404") >= 1
    assert value("rhapsode_model_bytes", model="base") > 0
    assert value("rhapsode_texts_running", model="base") == 0
    assert value("process_resident_memory_bytes") > 0
