"""Translations: as transformers writes them from the same folder, in order, and as the folder says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rhapsode.base.errors import InputError
from rhapsode.base.files import write_json
from rhapsode.inference.beams import BeamSearch
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.translation import folder_search
from rhapsode.model.config import StackSizes
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.families.marian import MARIAN
from rhapsode.model.folder import save_model
from rhapsode.tokenizer.train import train_tokenizer

TEXTS = [
    "You are all resolved rather to die than to famish?",
    "Speak.",
    "",
    "we are accounted poor citizens",
    "a b",
    " ",
]


@pytest.fixture(scope="module")
def folder(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian model with weights at random, as training saves one."""
    text = shakespeare.read_text(encoding="utf-8")[:20_000]
    tokenizer = train_tokenizer([text], "bpe", 400, model="encoder-decoder")
    tower = StackSizes(2, 4, 4, 8, 64)
    config = MARIAN.config(
        tokenizer.vocabulary_size, 32, 2, 4, 4, 8, 64, 40, decoder=tower, start_id=tokenizer.padding_id
    )
    model, noise = EncoderDecoder(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gain = float("norm" in name and name.endswith("weight"))
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.3 + gain)
    path = tmp_path_factory.mktemp("marian")
    save_model(path, model, tokenizer, {"objective": "none"})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(folder, "cpu")


def test_as_transformers_writes_them_from_the_folder(folder: Path, model: LanguageModel) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    texts = [text for text in TEXTS if text.strip()]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    answers = theirs.generate(**inputs)  # all else is as generation_config.json says
    found = list(model.translations(texts))
    assert model.usual_search.beams == 5
    assert [each.text for each in found] == tokenizer.batch_decode(answers, skip_special_tokens=True)
    for each, ids in zip(found, answers[:, 1:].tolist(), strict=True):
        assert each.ids == ids[: len(each.ids)]
        assert set(ids[len(each.ids) :]) <= {theirs.generation_config.pad_token_id}


def test_in_order_and_alike_however_they_are_grouped(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TEXTS * 3
    alone = [next(model.translations([text], beams=3, max_new_tokens=8)) for text in texts]
    assert len({each.score for each in alone}) == 5
    assert alone[2].text == alone[5].text == ""  # what is empty stays so

    def equals_alone() -> None:
        together = list(model.translations(texts, beams=3, max_new_tokens=8))
        assert [each.ids for each in together] == [each.ids for each in alone]
        assert [each.score for each in together] == pytest.approx([each.score for each in alone], abs=1e-5)

    equals_alone()
    monkeypatch.setattr("rhapsode.inference.translation.TEXTS_IN_A_POOL", 4)
    monkeypatch.setattr("rhapsode.inference.translation.BEAMS_AT_ONCE", 6)
    equals_alone()


def test_texts_are_read_as_they_are_needed(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsode.inference.translation.TEXTS_IN_A_POOL", 2)
    read = []

    def endless() -> Any:
        while True:
            read.append("a")
            yield "a b"

    translations = model.translations(endless(), beams=1, max_new_tokens=2)
    assert len({next(translations).text for _ in range(3)}) == 1
    assert len(read) == 4


def test_what_cannot_be_translated(model: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"text 2 has \d+ tokens; the model reads 40. Cut it into sentences"):
        model.translate(["a", "ab1 " * 40])
    with pytest.raises(InputError, match="a list of texts is wanted"):
        model.translate("a b")
    with pytest.raises(InputError, match=r"translation: beems: there is no such setting. Did you mean 'beams'"):
        model.translate(["a"], beems=3)


PUBLISHED = {
    "bad_words_ids": [[58100], [1, 2]],
    "suppress_tokens": [7],
    "forced_eos_token_id": 0,
    "forced_bos_token_id": 3,
    "max_length": 512,
    "min_length": 4,
    "num_beams": 4,
    "renormalize_logits": True,
    "length_penalty": 0.8,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "repetition_penalty": 1.2,
}


def test_a_folder_says_how_it_wants_to_be_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "generation_config.json", PUBLISHED)
    assert folder_search(tmp_path) == BeamSearch(
        beams=4,
        length_penalty=0.8,
        early_stopping=True,
        max_new_tokens=511,
        min_new_tokens=3,
        no_repeat_ngram_size=3,
        forced_first_id=3,
        forced_last_ids=(0,),
        forbidden_ids=(58100, 7),
        renormalise=True,
    )
    told = capsys.readouterr().err
    assert "repetition_penalty is not followed" in told
    assert "bad_words_ids of several tokens are not followed" in told
    assert len(told.splitlines()) == 2
    (tmp_path / "generation_config.json").unlink()
    write_json(tmp_path / "config.json", {"num_beams": 2})  # as in older folders
    assert folder_search(tmp_path) == BeamSearch(beams=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", "4"),
        ("num_beams", 0),
        ("max_length", -1),
        ("bad_words_ids", 3),
        ("bad_words_ids", [["a"]]),
        ("forced_eos_token_id", True),
        ("early_stopping", "soon"),
    ],
)
def test_what_a_folder_says_is_checked(folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {name: value}), encoding="utf-8")
    with pytest.raises(InputError, match=r"generation_config\.json"):
        load(copy, "cpu")
