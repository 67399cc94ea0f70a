"""The model that the evaluation harness asks, against transformers asked one text at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import LanguageModel
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

from .conftest import CONTEXT

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rhapsode[harness]'")
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows

from rhapsode.inference.harness import HarnessModel, fitted, sampling_of

PAIRS = [
    ("To be, or not to", " be"),
    ("KING RICHARD:\n", "My lord"),
    ("My lord, I will ", "go"),  # the space belongs to what follows
    ("", "Hear me speak"),  # after an end of text
    ("日本", "語 🦙🏽"),  # tokens that are no whole characters
    ("One <|im_end|>", " two <|im_start|>"),  # as a chat template would write it
    ("Now is the winter of our discontent made glorious summer by this sun of York; " * 3, "and all"),
]


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def ours(by_byte_pairs: LanguageModel) -> HarnessModel:
    return HarnessModel(by_byte_pairs)


@pytest.fixture(scope="module")
def transformers_model(byte_pair_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(byte_pair_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def transformers_tokenizer(byte_pair_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(byte_pair_folder)


@torch.no_grad()
def by_transformers(model: Any, context: list[int], following: list[int], length: int) -> tuple[float, bool]:
    """One text read alone, its beginning cut as the harness's class for transformers does."""
    ids = (context + following)[-(length + 1) :]
    logits = model(torch.tensor([ids[:-1]])).logits[0, -len(following) :].double()
    log_p = logits.log_softmax(-1)[torch.arange(len(following)), torch.tensor(following)]
    return log_p.sum().item(), logits.argmax(-1).tolist() == following


def test_log_likelihoods_are_those_of_transformers(
    ours: HarnessModel, transformers_model: Any, transformers_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ours.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, following), (log_p, greedy) in zip(PAIRS, found, strict=True):
        read = transformers_tokenizer.encode(context.rstrip()) if context else []
        predicted = transformers_tokenizer.encode(context + following)[len(read) :]  # as the harness has it
        expected = by_transformers(
            transformers_model, read or [transformers_tokenizer.eos_token_id], predicted, CONTEXT
        )
        assert log_p == pytest.approx(expected[0], rel=1e-5), context
        assert greedy == expected[1], context
    assert capsys.readouterr().err.count("1 of 7 contexts are too long for the model") == 1


def test_what_greedy_search_writes_is_greedy(ours: HarnessModel) -> None:
    """Texts are searched whose likeliest next token is encoded as that token again."""
    model, found = ours.language_model, 0
    for size in range(1, 60):
        context = ("But soft! What light through yonder window breaks? " * 2)[:size].rstrip()
        ids = ours.tok_encode(context)
        best = int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        following = model.token_text(best)
        whole = ours.tok_encode(context + following)
        if whole != [*ids, best] or not following.strip() or following in SPECIAL_TOKENS:
            continue
        other = " X" if following != " X" else " Y"
        asked = instances("loglikelihood", (context, following), (context, other))
        assert [greedy for _, greedy in ours.loglikelihood(asked, disable_tqdm=True)] == [True, False]
        found += 1
    assert found >= 5


@pytest.mark.parametrize("length", [CONTEXT, 10])
def test_whole_texts_are_those_of_transformers(
    by_byte_pairs: LanguageModel, transformers_model: Any, transformers_tokenizer: Any, length: int
) -> None:
    texts = ["O", "Give me my robe, put on my crown; I have immortal longings in me. " * 4, "日本語 🦙🏽 " * 9]
    asked = instances("loglikelihood_rolling", *((text,) for text in texts))
    found = HarnessModel(by_byte_pairs, max_length=length).loglikelihood_rolling(asked, disable_tqdm=True)
    for text, log_p in zip(texts, found, strict=True):
        ids = transformers_tokenizer.encode(text)
        windows = get_rolling_token_windows(ids, transformers_tokenizer.eos_token_id, length, 1)
        expected = 0.0
        for read, predicted in windows:
            with torch.no_grad():
                rows = transformers_model(torch.tensor([read])).logits[0, -len(predicted) :].double().log_softmax(-1)
            expected += rows[torch.arange(len(predicted)), torch.tensor(predicted)].sum().item()
        assert log_p == pytest.approx(expected, rel=1e-5)


def test_answers_are_what_the_model_writes(ours: HarnessModel, capsys: pytest.CaptureFixture[str]) -> None:
    model = ours.language_model
    settings = {"until": ["e", "\n"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}
    contexts = ["ROMEO:", "My lord", "", "Once more unto the breach, dear friends, once more; " * 3, "ROMEO:"]
    asked = instances("generate_until", *((context, settings) for context in contexts))
    written = ours.generate_until(asked, disable_tqdm=True)
    for context, text in zip(contexts[:3], written, strict=False):
        assert text == model.generate(context, temperature=0, max_new_tokens=20, stop=("e", "\n")).text
    room = model.tokenizer.encode(contexts[3])[-(CONTEXT - 20) :]
    sampling = sampling_of(settings, (), seed=3)
    assert written[3] == "".join(piece.text for piece in model.stream_ids(room, [sampling]))
    assert written[4] == written[0]
    assert any(text for text in written)
    assert "1 of 5 contexts are too long for the model" in capsys.readouterr().err


def test_drawn_answers_to_the_same_question_differ_and_come_again(ours: HarnessModel) -> None:
    asked = instances("generate_until", *[("ROMEO:", {"do_sample": True, "max_gen_toks": 12})] * 4)
    written = ours.generate_until(asked, disable_tqdm=True)
    assert len(set(written)) == 4
    assert ours.generate_until(asked, disable_tqdm=True) == written


IDS = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(IDS, st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(12, 50))
def test_contexts_are_cut_from_the_left(context: list[int], following: list[int], length: int) -> None:
    cut, same = fitted(context, following, length)
    assert same == following
    assert cut
    assert cut + following == (context + following)[-(length + 1) :]


def test_what_follows_is_never_cut() -> None:
    with pytest.raises(InputError, match="13 tokens at once; the model's context has 12"):
        fitted([1], [2] * 13, 12)


def test_settings_of_answers() -> None:
    greedy = sampling_of({"until": "\n\n", "do_sample": False, "temperature": 0.8, "top_p": 0.9}, (), seed=1)
    assert (greedy.temperature, greedy.stop, greedy.max_new_tokens, greedy.seed) == (0.0, ("\n\n",), 256, 1)
    assert sampling_of({}, (), seed=0).temperature == 0.0
    assert sampling_of({"temperature": 0.5, "max_new_tokens": 7}, (), seed=0).temperature == 0.5
    drawn = sampling_of({"do_sample": True, "max_gen_toks": 8, "max_tokens": 9, "top_k": 4}, (), seed=0)
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.max_new_tokens) == (1.0, 1.0, 4, 8)
    stopped = sampling_of({"until": ["<|im_end|>", "", "\n"]}, {"<|im_end|>": 3}, seed=0)
    assert (stopped.stop, stopped.stop_tokens) == (("<|im_end|>", "\n"), ("<|im_end|>",))
    assert sampling_of({"repetition_penalty": 1.2}, (), seed=0).repetition_penalty == 1.2
    with pytest.raises(InputError, match="generation_kwargs: 'num_beams' is unknown"):
        sampling_of({"num_beams": 4}, (), seed=0)
    with pytest.raises(InputError, match="top_p"):
        sampling_of({"top_p": 2.0}, (), seed=0)


def test_what_stands_before_every_text(by_byte_pairs: LanguageModel) -> None:
    settings = {"bos_token": "<|im_start|>", "add_bos_token": True}
    framed = Tokenizer(by_byte_pairs.tokenizer.definition, settings=settings)
    model = HarnessModel(LanguageModel(by_byte_pairs.model, framed))
    beginning = framed.special_tokens["<|im_start|>"]
    plain = framed.encode("My lord")
    assert model.prefix_token_id == beginning
    assert model.tok_encode("My lord") == [beginning, *plain]
    assert model.tok_encode("<|im_start|>My lord") == [beginning, *plain]
    assert model.tok_encode("My lord", add_special_tokens=False) == plain


TALK = [{"role": "user", "content": "Who are you? "}, {"role": "assistant", "content": " I am Hamlet, "}]


def test_conversations_go_through_the_chat_template(ours: HarnessModel, transformers_tokenizer: Any) -> None:
    theirs = transformers_tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(TALK[:1]) == theirs
    begun = ours.apply_chat_template(TALK, add_generation_prompt=False)
    assert begun == transformers_tokenizer.apply_chat_template(TALK, tokenize=False, continue_final_message=True)
    assert begun.endswith("I am Hamlet, ")
    assert ours.tok_encode(begun) == transformers_tokenizer.encode(begun)
    assert ours.chat_template(True) == ours.language_model.tokenizer.chat_template


def test_a_chat_template_that_changes_the_begun_turn_is_refused(by_byte_pairs: LanguageModel) -> None:
    template = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    shouting = Tokenizer(by_byte_pairs.tokenizer.definition, chat_template=template)
    model = HarnessModel(LanguageModel(by_byte_pairs.model, shouting))
    with pytest.raises(InputError, match="changes the turn"):
        model.apply_chat_template(TALK, add_generation_prompt=False)


def test_refusals(ours: HarnessModel, by_byte_pairs: LanguageModel) -> None:
    with pytest.raises(InputError, match=f"between 1 and the model's context of {CONTEXT}, not {CONTEXT + 1}"):
        HarnessModel(by_byte_pairs, max_length=CONTEXT + 1)
    with pytest.raises(InputError, match=r"256 new tokens leave no room .* Set max_gen_toks"):
        ours.generate_until(instances("generate_until", ("a", {"max_gen_toks": 5}), ("a", {})), disable_tqdm=True)
    assert by_byte_pairs.engine().idle  # the first one is not left behind
    with pytest.raises(InputError, match="empty"):
        ours.loglikelihood(instances("loglikelihood", ("To be", "")), disable_tqdm=True)


def test_the_harness_knows_it_by_name(byte_pair_folder: Path) -> None:
    from lm_eval.api.registry import get_model

    made = get_model("rhapsode").create_from_arg_string(
        f"pretrained={byte_pair_folder},max_length=32", {"device": "cpu", "batch_size": 1, "max_batch_size": None}
    )
    assert isinstance(made, HarnessModel)
    assert made.max_length == 32
    assert made.get_model_info()["model"] == "rhapsode"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of four questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"verse": f"Verse {number}: my lord", "ends": ["speaks", "goes"], "right": number % 2} for number in range(4)
    ]
    (folder / "verses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "verses",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "verses.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{verse}}",
        "doc_to_choice": "ends",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "verses.yaml").write_text(json.dumps(task), encoding="utf-8")
    missing = task | {"task": "missing", "dataset_kwargs": {"data_files": {"test": str(folder / "none.jsonl")}}}
    (folder / "missing.yaml").write_text(json.dumps(missing), encoding="utf-8")
    return folder


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rhapsode", "evaluate", *words, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )


@pytest.mark.peers
def test_command(byte_pair_folder: Path, tasks: Path, ours: HarnessModel) -> None:
    model = str(byte_pair_folder)
    done = command(model, "--tasks", "verses", "--include-path", str(tasks), "--limit", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = [json.loads(line) for line in (tasks / "verses.jsonl").read_text(encoding="utf-8").splitlines()][:3]
    right = 0
    for row in rows:  # the harness puts a space before a choice
        asked = instances("loglikelihood", *((row["verse"], " " + end) for end in row["ends"]))
        values = [log_p for log_p, _ in ours.loglikelihood(asked, disable_tqdm=True)]
        right += values.index(max(values)) == row["right"]
    assert found["results"]["verses"]["acc,none"] == pytest.approx(right / 3)
    assert found["results"]["verses"]["sample_len"] == 3
    shown = command(model, "--tasks", "verses", "--include-path", str(tasks))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[:3] == ["task", "version", "examples"]
    assert "verses" in shown.stdout.splitlines()[1]


@pytest.mark.peers
@pytest.mark.parametrize(
    ("task", "words"),
    [("missing", "missing: the data of a task cannot be had"), ("nonsense", "the harness has no task 'nonsense'")],
)
def test_tasks_that_cannot_be_done(byte_pair_folder: Path, tasks: Path, task: str, words: str) -> None:
    done = command(str(byte_pair_folder), "--tasks", task, "--include-path", str(tasks))
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "verses", "--stride", "4"), "--stride: is about texts"),
        (("--tasks", "verses", "--skip-bad"), "--skip-bad: is about texts"),
        (("other.txt", "--tasks", "verses"), "TEXT: is about texts"),
        (("other.txt", "--limit", "3"), "--limit: is about --tasks"),
        (("--tasks", ","), "--tasks: there is no task"),
    ],
)
def test_what_does_not_go_together(
    byte_pair_folder: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from rhapsode.cli.main import run

    assert run(["evaluate", str(byte_pair_folder), *words]) == 2
    assert message in capsys.readouterr().err
