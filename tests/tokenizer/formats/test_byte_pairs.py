"""Vocabulary and merges in two files: the ids are those of the tokenizer.json, and of transformers, for each family."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from rhapsode.base.errors import InputError
from rhapsode.tokenizer.encoders import merges_of
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from ..texts import any_text, stitched
from .conftest import Write

texts = any_text | stitched


def files_of(tokenizer: Tokenizer, *names: str) -> tuple[dict[str, int], str]:
    """vocab.json and merges.txt of a byte-level tokenizer, with `names` as tokens after it."""
    model = tokenizer.content["model"]
    vocabulary = dict(model["vocab"])
    for name in names:
        vocabulary.setdefault(name, len(vocabulary))
    return vocabulary, "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges_of(model))


# Each family by its settings, and by the tokens it cannot do without.
FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "GPT2Tokenizer": ({}, ["<|endoftext|>"]),
    "RobertaTokenizer": ({}, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "BartTokenizer": ({"add_prefix_space": True}, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "Qwen2Tokenizer": ({}, ["<|endoftext|>"]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, plays: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A small vocabulary as we open it, and as transformers does by the class that its settings name."""
    from transformers import AutoTokenizer

    config, names = FAMILIES[request.param]
    pattern = "qwen2" if request.param.startswith("Qwen") else "gpt-2"
    vocabulary, merges = files_of(train_tokenizer([plays[:60_000]], "bpe", 700, pre_tokenizer=pattern), *names)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    config = config | {"tokenizer_class": request.param}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_any_text_has_the_ids_of_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    for name in ours.special_tokens:
        text = text.replace(name, "")
    front, back = ours.frame
    ids = ours.encode(text)
    assert [*front, *ids, *back] == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)


def test_special_tokens_are_those_of_transformers(pair: tuple[Tokenizer, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    ours.save(tmp_path)
    for tokenizer in (ours, Tokenizer.load(tmp_path)):
        assert tokenizer.end_of_text_id == theirs.eos_token_id
        assert tokenizer.mask_id == theirs.mask_token_id
        assert tokenizer.vocabulary_size == len(theirs)
        assert tokenizer.special_tokens == {
            name: theirs.convert_tokens_to_ids(name) for name in theirs.all_special_tokens
        }


def test_gpt2_under_both_pairs_of_names(shared_data: Path, gpt2: Tokenizer, write: Write, plays: str) -> None:
    source = shared_data / "tokenizers" / "gpt2"
    encoder, pairs = (source / "encoder.json").read_bytes(), (source / "vocab.bpe").read_bytes()
    renamed = write(vocab__json=encoder, merges__txt=pairs, config__json={"model_type": "gpt2"})
    for path in (source / "encoder.json", source / "vocab.bpe", renamed):
        opened = Tokenizer.load(path)
        assert (opened.pre_tokenizer, opened.end_of_text_id) == ("gpt-2", 50256)
        assert opened.encode(plays[:50_000] + " é🦙") == gpt2.encode(plays[:50_000] + " é🦙")
        assert merges_of(opened.content["model"]) == merges_of(gpt2.content["model"])


def test_roberta_from_its_parts(shared_data: Path, write: Write, plays: str) -> None:
    packed = shared_data / "tokenizers" / "roberta_base_tokenizer.json.gz"
    published = Tokenizer.load(packed)
    model = json.loads(gzip.decompress(packed.read_bytes()))["model"]
    merges = "".join(f"{left} {right}\n" for left, right in merges_of(model))
    opened = Tokenizer.load(write(vocab__json=model["vocab"], merges__txt="#version: 0.2\n" + merges))
    assert opened.encode(plays[:50_000]) == published.encode(plays[:50_000])
    assert opened.frame == published.frame == ([0], [2])
    assert opened.mask_id == published.mask_id == 50264
    assert opened.special_tokens == published.special_tokens


def test_a_vocabulary_that_lacks_bytes_says_so(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchtune's small pair, whose file names are not the usual ones; its tokenizer.json has the same model."""
    folder = shared_data / "tokenizers" / "torchtune_tiny_bpe"
    published = Tokenizer.load(folder)
    for name in ("tiny_bpe_vocab.json", "tiny_bpe_merges.txt"):
        opened = Tokenizer.load(folder / name)
        assert "160 of the 256 bytes have no token" in capsys.readouterr().err
        assert opened.pre_tokenizer == published.pre_tokenizer == "qwen2"
        text = "def f(x):\n    return x ** 2  # 1984 don't"
        assert opened.encode(text) == published.encode(text)


def test_clip(shared_data: Path, write: Write) -> None:
    from transformers import CLIPTokenizer

    alone = Tokenizer.load(shared_data / "tokenizers" / "clip_bpe_simple_vocab_16e6.txt.gz")
    assert alone.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]  # as OpenAI's notebook shows
    assert (alone.vocabulary_size, alone.frame) == (49408, ([49406], [49407]))
    model = alone.content["model"]
    merges = "".join(f"{left} {right}\n" for left, right in merges_of(model))
    folder = write(vocab__json=model["vocab"], merges__txt="#version: 0.2\n" + merges)
    pair, theirs = Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder)
    for text in ("Hello,  WORLD! don't 1984 é🦙", "日本語 ﬁ ½ e\u0301 \u00a0x", "a" * 50, "<|startoftext|> </w>"):
        ids = alone.encode(text)
        assert pair.encode(text) == ids
        if "<|" not in text:
            assert [49406, *ids, 49407] == theirs(text)["input_ids"]
            assert alone.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"vocab__json": '{"a": 0}', "merges__txt": "a b c\n"}, r"merges\.txt:1: is not two parts"),
        ({"vocab__json": '{"a": 0}', "merges__txt": "#version: 0.2\na\n"}, r"merges\.txt:2: is not two parts"),
        ({"vocab__json": '{"a": 0, "b": 1}', "merges__txt": "#version: 0.2\na b\n"}, "'ab' is no token"),
        ({"vocab__json": '{"a": 0, "b": 0}', "merges__txt": "#version: 0.2\n"}, "'a' and 'b' both have the id 0"),
        ({"vocab__json": '{"a": -1}', "merges__txt": "#version: 0.2\n"}, "-1 is no id"),
        ({"vocab__json": '{"a": 4294967295}', "merges__txt": "#version: 0.2\n"}, "4294967295 is no id"),
        ({"vocab__json": '{"a": 1.5}', "merges__txt": "#version: 0.2\n"}, "1.5 is no id"),
        ({"vocab__json": '["a"]', "merges__txt": "#version: 0.2\n"}, "not a JSON object of tokens"),
        ({"vocab__json": "{", "merges__txt": "#version: 0.2\n"}, r"vocab\.json:1:2: is not JSON"),
        ({"vocab__json": '{"\\ud800": 1}', "merges__txt": "#version: 0.2\n"}, "half a character"),
        ({"vocab__json": '{"日": 0}', "merges__txt": "#version: 0.2\n"}, "no byte-level vocabulary"),
    ],
)
def test_what_is_damaged_is_one_message(write: Write, files: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        Tokenizer.load(write(**files))
    assert "\n" not in caught.value.message


def test_merges_alone_are_refused(write: Write, trained: dict[str, Tokenizer]) -> None:
    _, merges = files_of(trained["bpe"])
    with pytest.raises(InputError, match=r"the vocabulary of these merges is missing.*vocab\.json"):
        Tokenizer.load(write(merges__txt=merges) / "merges.txt")


def test_the_pre_tokeniser_can_be_named(write: Write, trained: dict[str, Tokenizer]) -> None:
    vocabulary, merges = files_of(trained["bpe"])
    for name in ("gpt-2", "llama-bpe", "qwen2"):
        config = {"rhapsode": {"pre_tokenizer": name}}
        opened = Tokenizer.load(write(vocab__json=vocabulary, merges__txt=merges, tokenizer_config__json=config))
        assert opened.pre_tokenizer == name
    config = {"rhapsode": {"pre_tokenizer": ["gpt-2"]}}
    with pytest.raises(InputError, match=r"there is no pre-tokeniser.*\"llama-bpe\""):
        Tokenizer.load(write(vocab__json=vocabulary, merges__txt=merges, tokenizer_config__json=config))
