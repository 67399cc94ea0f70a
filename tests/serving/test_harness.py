"""The evaluation harness asks the same weights by its own classes and by ours: the same figures.

    make test-peers

`hf` runs transformers, `local-completions` asks a real server, with prompts as ids and as text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhapsode.inference.language_model import LanguageModel
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS

from .conftest import CONTEXT, Served

for needed in ("lm_eval", "accelerate", "tenacity"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: `make test-peers` installs it")

pytestmark = pytest.mark.peers

QUESTIONS = 20
OTHER_ENDS = (" traîtres 🦙🏽", "日本語", " who is", "\u00a0½ ²")
"""Of several tokens, among them such that are no whole characters."""

ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{verse}}",
        "doc_to_choice": "ends",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": [ACCURACY],
    },
    "last": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{verse}}",
        "doc_to_target": "{{ends[right]}}",
        "metric_list": [ACCURACY, PERPLEXITY],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{verse}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    },
}


def documents(model: LanguageModel, text: str) -> list[dict[str, Any]]:
    """Verses; the right end of every other one is the token that the model thinks likeliest, where it can be."""
    found: list[dict[str, Any]] = []
    lines = [line for line in text.splitlines() if len(line) > 20 and line.isascii()]
    for number, line in enumerate(lines):
        verse = line.rstrip()
        likeliest = model.next_token(verse, top=1)[0]
        again = model.tokenizer.encode(verse + likeliest.text) == [*model.tokenizer.encode(verse), likeliest.id]
        greedy = again and likeliest.text.strip() != "" and likeliest.text not in SPECIAL_TOKENS
        if greedy or len(found) % 2:
            right = len(found) % 4
            ends = list(OTHER_ENDS)
            if greedy:
                ends[right] = likeliest.text
            # Every fifth page is longer than the context.
            page = "\n".join(lines[number : number + (40 if len(found) % 5 == 0 else 2)])
            found.append({"verse": verse, "ends": ends, "right": right, "page": page})
        if len(found) == QUESTIONS:
            break
    return found


@pytest.fixture(scope="module")
def manager(served: Served, shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What loads the tasks, of which nothing is fetched."""
    import datasets.config
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    rows = documents(served.base, shakespeare.read_text(encoding="utf-8")[20_000:60_000])
    assert len(rows) == QUESTIONS
    (folder / "verses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"data_files": {"test": str(folder / "verses.jsonl")}, "cache_dir": str(folder / "cache")}
    for name, task in TASKS.items():
        form = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", "num_fewshot": 0}
        (folder / f"{name}.yaml").write_text(json.dumps(form | task), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def transformers_class(folders: dict[str, Path]) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folders["base"], dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    return HFLM(model, tokenizer=tokenizer, batch_size=4, max_length=CONTEXT - 2)


def asked(lm: Any, manager: Any, task: str) -> tuple[list[Any], dict[str, float]]:
    """What the model answered to each request, and the figures."""
    from lm_eval.evaluator import evaluate

    results = evaluate(lm, manager.load([task]), bootstrap_iters=0)
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    figures = {name: value for name, value in results["results"][task].items() if isinstance(value, float)}
    return [answer for sample in samples for (answer,) in sample["resps"]], figures


@pytest.fixture(scope="module", params=("ours", "ids", "text"))
def other(request: pytest.FixtureRequest, served: Served, folders: dict[str, Path]) -> Any:
    """Each other way to ask the same weights."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from rhapsode.inference.harness import HarnessModel

    if request.param == "ours":
        return HarnessModel(served.base, max_length=CONTEXT - 2)
    return LocalCompletionsAPI(
        base_url=f"{served.address}/v1/completions",
        model="base",
        tokenizer=str(folders["base"]),
        tokenizer_backend="huggingface",
        tokenized_requests=request.param == "ids",
        batch_size=8,
        max_length=CONTEXT,  # it keeps a place for a new token, and one more
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_same_figures(transformers_class: Any, other: Any, manager: Any, task: str) -> None:
    if task == "rolling" and not getattr(other, "tokenized_requests", True):
        pytest.skip("the harness's windows begin within words, and are encoded otherwise as text")
    expected, figures = asked(transformers_class, manager, task)
    found, found_figures = asked(other, manager, task)
    assert found_figures == pytest.approx(figures, rel=1e-4)
    assert len(found) == len(expected) == QUESTIONS * (4 if task == "choices" else 1)
    if task == "writing":
        assert found == expected
        return
    if task == "rolling":
        assert found == pytest.approx(expected, rel=1e-4)
        return
    assert [log_p for log_p, _ in found] == pytest.approx([log_p for log_p, _ in expected], rel=1e-4)
    greedy = [best for _, best in expected]
    assert [best for _, best in found] == greedy
    assert any(greedy) and not all(greedy)
