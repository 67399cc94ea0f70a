"""Conversations: which models answer, that nobody's words become a control token, what is kept when it gets long."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.inference.chat import Chat, ChatTemplate, Turn, is_tuned_for_chat
from rhapsode.inference.kernels.choice import SWITCH
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.sampling import Sampling
from rhapsode.tokenizer.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, TURN_END, TURN_START, Tokenizer

FEW = Sampling(max_new_tokens=4, temperature=1.0)


@pytest.fixture(scope="module")
def tuned(byte_pair_folder: Path, make_folder: Callable[..., Path]) -> LanguageModel:
    tokenizer = Tokenizer.load(byte_pair_folder)
    return load(make_folder(tokenizer, never=SPECIAL_TOKENS, objective="chat"), "cpu")


@pytest.fixture(scope="module")
def base(byte_pair_folder: Path, make_folder: Callable[..., Path]) -> LanguageModel:
    return load(make_folder(Tokenizer.load(byte_pair_folder), never=SPECIAL_TOKENS), "cpu")


def said(chat: Chat, text: str) -> str:
    return "".join(piece.text for piece in chat.say(text))


def test_a_model_of_ours_says_whether_it_is_tuned(tuned: LanguageModel, base: LanguageModel) -> None:
    assert is_tuned_for_chat(tuned)
    assert not is_tuned_for_chat(base)
    assert base.tokenizer.chat_template is not None  # the template alone says nothing


def test_a_model_made_elsewhere_is_tuned_when_its_template_writes_its_end(
    byte_pair_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(byte_pair_folder, tmp_path / "model")
    (folder / "rhapsode.json").unlink()
    assert not is_tuned_for_chat(load(folder, "cpu"))  # ends with <|endoftext|>, which the template does not write
    path = folder / "generation_config.json"
    ends = [load(folder, "cpu").tokenizer.special_tokens[name] for name in (END_OF_TEXT, TURN_END)]
    path.write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    assert is_tuned_for_chat(load(folder, "cpu"))
    (folder / "chat_template.jinja").unlink()
    assert not is_tuned_for_chat(load(folder, "cpu"))


def test_ids_equal_transformers(tuned: LanguageModel, byte_pair_folder: Path) -> None:
    from transformers import AutoTokenizer

    turns = [Turn("system", "Be kind."), Turn("user", "Grüße!"), Turn("assistant", "Hello"), Turn("user", "Who? 🦙")]
    messages = [dataclasses.asdict(turn) for turn in turns]
    theirs = AutoTokenizer.from_pretrained(byte_pair_folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ChatTemplate(tuned).ids(turns) == theirs


@settings(deadline=None, max_examples=12)
@given(
    st.lists(
        st.lists(
            st.sampled_from(
                [*SPECIAL_TOKENS, "<", "|", "<|im_", "end|>", "<|im_start", "|>", "<<|im_end|>", "a", "\n"]
            ),
            max_size=6,
        ).map("".join),
        min_size=1,
        max_size=3,
    )
)
def test_words_never_become_control_tokens(tuned: LanguageModel, contents: list[str]) -> None:
    template = ChatTemplate(tuned)
    roles = ("user", "assistant")
    turns = [Turn(roles[number % 2], content) for number, content in enumerate(contents)]  # type: ignore[arg-type]
    special = tuned.tokenizer.special_tokens
    ids = template.ids(turns)
    found = [id for id in ids if id in special.values()]
    assert found == [special[TURN_START], special[TURN_END]] * len(turns) + [special[TURN_START]]
    expected = "".join(f"{TURN_START}{turn.role}\n{turn.content}{TURN_END}\n" for turn in turns)
    assert tuned.tokenizer.decode(ids, skip_special=False) == f"{expected}{TURN_START}assistant\n"


def test_control_tokens_cannot_be_put_together_from_pieces(tuned: LanguageModel) -> None:
    tokenizer = Tokenizer(
        tuned.tokenizer.definition,
        chat_template="{% for message in messages %}{{ message.content | trim }}{% endfor %}|im_end|>",
    )
    glued = LanguageModel(tuned.model, tokenizer, where="model")
    ids = ChatTemplate(glued).ids([Turn("user", "<|im_"), Turn("assistant", "start|>"), Turn("user", "a <")])
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == "<|im_start|>a <|im_end|>"


def test_tokens_that_are_not_special_are_text_in_the_mouth_of_a_user(tuned: LanguageModel, tmp_path: Path) -> None:
    """<think> and the like stand in vocabularies as added tokens: the model may write them, a user may not."""
    definition = json.loads(tuned.tokenizer.definition)
    number = tuned.tokenizer.vocabulary_size
    plain = definition["added_tokens"][0] | {"id": number, "content": "<think>", "special": False}
    definition["added_tokens"].append(plain)
    tokenizer = Tokenizer(json.dumps(definition), chat_template=tuned.tokenizer.chat_template)
    assert tokenizer.encode("<think>") == [number]
    larger = LanguageModel.__new__(LanguageModel)
    larger.tokenizer, larger.where = tokenizer, "model"
    template = ChatTemplate(larger)
    assert number not in template.ids([Turn("user", "<think>")])
    assert template.ids([Turn("user", "a"), Turn("assistant", "<think>"), Turn("user", "b")]).count(number) == 1


@pytest.mark.parametrize("end", [TURN_END, END_OF_TEXT])
def test_a_tuned_model_stops_at_the_end_of_its_turn(
    tuned: LanguageModel, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter([*tuned.tokenizer.encode("Yes."), tuned.tokenizer.special_tokens[end]])

    def head(hidden: torch.Tensor) -> torch.Tensor:
        said = torch.zeros(len(hidden), tuned.config.vocabulary_size)
        said[:, next(script)] = 9.0
        return said

    monkeypatch.setattr(tuned.model.head, "forward", head)
    monkeypatch.setenv(SWITCH, "0")  # kernels read the weights, whatever the modules say
    monkeypatch.setattr(tuned, "_engine", None)
    chat = Chat(tuned, Sampling(temperature=0.0))
    pieces = list(chat.say("Well?"))
    assert pieces[-1].finish_reason == "end of text"
    assert chat.turns[-1] == Turn("assistant", "Yes.")


def test_a_conversation_grows_and_a_reply_can_be_had_again(tuned: LanguageModel) -> None:
    chat = Chat(tuned, FEW, "Be kind.")
    first = said(chat, "Hello")
    assert chat.turns == [Turn("system", "Be kind."), Turn("user", "Hello"), Turn("assistant", first)]
    again = "".join(piece.text for piece in chat.regenerate())
    assert chat.turns == [Turn("system", "Be kind."), Turn("user", "Hello"), Turn("assistant", again)]
    assert again != first
    assert chat.sampling.seed == 1
    assert chat.transcript() == f"system: Be kind.\n\nuser: Hello\n\nassistant: {again}"
    chat.reset()
    assert chat.turns == [Turn("system", "Be kind.")]
    with pytest.raises(InputError, match="no reply yet"):
        list(chat.regenerate())


def test_a_stopped_reply_stays_in_the_conversation(tuned: LanguageModel) -> None:
    chat = Chat(tuned, FEW)
    reply = chat.say("Hello")
    begun = next(reply).text + next(reply).text
    reply.close()  # type: ignore[attr-defined]
    assert chat.turns[-1] == Turn("assistant", begun)


def test_a_base_model_continues_one_text(base: LanguageModel) -> None:
    chat = Chat(base, FEW)
    first = said(chat, "ROMEO:")
    assert first == base.generate("ROMEO:", FEW).text
    assert chat.transcript() == "ROMEO:" + first
    more = said(chat, "")  # goes on without a break
    assert more == base.generate("ROMEO:" + first, FEW).text
    assert chat.transcript() == "ROMEO:" + first + more
    before = chat.transcript()
    line = said(chat, "JULIET:")
    assert chat.transcript() == f"{before}{'' if before.endswith(chr(10)) else chr(10)}JULIET:{line}"


def test_a_long_text_keeps_its_end(base: LanguageModel) -> None:
    chat = Chat(base, FEW)
    said(chat, "word " * 100)
    limit = base.config.context_length - FEW.max_new_tokens
    assert chat.forgotten == len(base.tokenizer.encode("word " * 100)) - limit > 0


def test_a_long_conversation_forgets_its_oldest_turns_and_never_the_system(tuned: LanguageModel) -> None:
    chat = Chat(tuned, FEW, "Be kind.")
    counts = []
    for number in range(4):
        said(chat, f"{number}?")
        counts.append(chat.forgotten)
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1] and counts[-1] % 2 == 0
    assert len(chat.turns) == 1 + 8  # the transcript keeps everything


def test_one_turn_longer_than_the_context_is_refused_and_forgotten(tuned: LanguageModel) -> None:
    chat = Chat(tuned, FEW)
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens; the model's context has 64"):
        said(chat, "word " * 100)
    assert chat.turns == []
    assert said(chat, "Hi")


def test_a_template_that_refuses_the_conversation_is_named(base: LanguageModel) -> None:
    definition = base.tokenizer.definition
    tokenizer = Tokenizer(definition, chat_template="{{ raise_exception('System role not supported') }}")
    model = LanguageModel(base.model, tokenizer, provenance={"objective": "chat"}, where="some/model")
    with pytest.raises(InputError, match="some/model: the chat template does not work: System role not supported"):
        said(Chat(model, FEW, "Be kind."), "Hi")
