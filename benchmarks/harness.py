"""The EleutherAI harness asks the same weights in four ways: the same figures, and how long each takes.

    python benchmarks/harness.py ../shared/data [--questions 100] [--model FOLDER]

lm-eval's own class for transformers, our class, and `local-completions` at `rhapsode serve`, with prompts as ids and
as text. Tasks: ARC-Easy, the last words of LAMBADA's texts and of verses, words written after LAMBADA's texts, and
perplexity of texts that are longer than the context. A small decoder is trained on plays unless --model names one.
Log likelihoods must agree within a part in 10,000 each, and everything else exactly: otherwise it ends with 1.
Nothing is asked of a network.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

import rhapsode
from rhapsode.base.machine import prepare, processor, threads
from rhapsode.corpus.examples import example

TOLERANCE = 1e-4  # of a log likelihood, relative
BATCH = 16
TEXTS_OF_A_DOCUMENT = 8  # so that it is longer than the context
WAYS = ("hf", "rhapsode", "local-completions, ids", "local-completions, text")
WAIT = 120  # seconds for the server to start
TRAINING = ("--vocabulary-size", "1000", "--context-length", "512", "--minutes", "1", "--device", "cpu")

ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
    "doc_to_target": " {{text.rsplit(' ', 1)[1]}}",
    "metric_list": [*ACCURACY, {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
}
TASKS: dict[str, dict[str, Any]] = {
    "arc": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": ACCURACY,
    },
    "lambada": LAST_WORD,
    "plays": LAST_WORD,
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
        "doc_to_target": " {{text.rsplit(' ', 1)[1]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 32, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        ],
    },
}


def rows(path: Path, count: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def write_tasks(data: Path, folder: Path, questions: int) -> None:
    """A task of the harness for each of TASKS, its documents beside it."""
    arc = [
        {
            "question": row["question"]["stem"],
            "choices": [choice["text"] for choice in row["question"]["choices"]],
            "answer": [choice["label"] for choice in row["question"]["choices"]].index(row["answerKey"]),
        }
        for row in rows(data / "eval/arc_easy_test.jsonl.gz", questions)
    ]
    lambada = [{"text": row["text"]} for row in rows(data / "eval/lambada_test.jsonl.gz", questions)]
    long = [
        "\n\n".join(row["text"] for row in lambada[at : at + TEXTS_OF_A_DOCUMENT])
        for at in range(0, len(lambada), TEXTS_OF_A_DOCUMENT)
    ]
    lines = example("shakespeare").read_text(encoding="utf-8").splitlines()
    plays = [{"text": line} for line in lines if line.count(" ") > 5][-questions:]
    documents = {
        "arc": arc,
        "lambada": lambada,
        "plays": plays,
        "writing": lambada[: questions // 4],
        "rolling": [{"text": text} for text in long],
    }
    for name, task in TASKS.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in documents[name]), encoding="utf-8")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
        # JSON is YAML
        (folder / f"{name}.yaml").write_text(
            json.dumps({"task": f"here_{name}", **source, "num_fewshot": 0, **task}), encoding="utf-8"
        )


@contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """The address of a server of the model, which writes its log to a file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "rhapsode", "serve", str(folder), "--port", str(port), "--device", "cpu"]
    with log.open("wb") as file:
        server = subprocess.Popen(words, stderr=file)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT
    try:
        while True:
            try:
                urlopen(f"{address}/health")
                break
            except URLError:
                if time.monotonic() > end or server.poll() is not None:
                    raise SystemExit(f"the server does not start: {log.read_text(encoding='utf-8')}") from None
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


def answers(samples: list[dict[str, Any]]) -> list[Any]:
    """What the model said to each request of a task, in the order of the documents."""
    return [said for sample in sorted(samples, key=lambda one: one["doc_id"]) for (said,) in sample["resps"]]


def differences(kind: str, found: list[Any], expected: list[Any]) -> tuple[float, int]:
    """The greatest relative difference of log likelihoods, and how many other answers differ."""
    if len(found) != len(expected):
        return math.inf, len(expected)
    if kind == "generate_until":
        return 0.0, sum(one != other for one, other in zip(found, expected, strict=True))
    if kind == "loglikelihood_rolling":
        found, expected = [(one, False) for one in found], [(one, False) for one in expected]
    pairs = list(zip(found, expected, strict=True))
    farthest = max(abs(one - other) / abs(other) for (one, _), (other, _) in pairs)
    return farthest, sum(one != other for (_, one), (_, other) in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the shared data folder")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="the first is what the others must equal")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        # read when the libraries are imported
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": f"{temporary}/datasets"}
        raise SystemExit(compare(a.data, a.questions, a.model, a.ways, Path(temporary)))


def compare(data: Path, questions: int, model: Path | None, chosen: Sequence[str], temporary: Path) -> int:
    prepare("cpu")
    print(f"{processor()}, {threads()} threads")
    if model is None:
        run = temporary / "run"
        words = ["train", str(example("shakespeare")), "--out", str(run), *TRAINING]
        subprocess.run([sys.executable, "-m", "rhapsode", *words], check=True, stdout=subprocess.DEVNULL)
        model = run / "model"

    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rhapsode.inference.harness import HarnessModel

    ours = rhapsode.load(model, "cpu")
    context = ours.config.context_length
    print(f"{ours.config.parameters:,} parameters, context {context}; {questions} questions of each task")
    tasks = temporary / "tasks"
    tasks.mkdir()
    write_tasks(data, tasks, questions)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    manager.load([f"here_{name}" for name in TASKS])  # the library makes its own files of them, once

    def transformers_() -> Any:
        theirs = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        return HFLM(theirs, tokenizer=tokenizer, batch_size=BATCH, max_length=context - 2)

    def local_completions(address: str, *, tokens: bool) -> Any:
        # It keeps a place for a new token, and one more.
        return LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model=json.load(urlopen(f"{address}/v1/models"))["data"][0]["id"],
            tokenizer=str(model),
            tokenizer_backend="huggingface",
            tokenized_requests=tokens,
            batch_size=BATCH,
            max_length=context,
        )

    table = Table(title="the harness on the same weights")
    for heading in ("task", "way", "figures", "sum of ln p", "greedy", "seconds", "farthest", "others differ"):
        table.add_column(heading, justify="left" if heading in ("task", "way", "figures") else "right")
    failed = False
    with served(model, temporary / "server.log") as address:
        ways: dict[str, Callable[[], Any]] = {
            "hf": transformers_,
            "rhapsode": lambda: HarnessModel(ours, max_length=context - 2),
            "local-completions, ids": lambda: local_completions(address, tokens=True),
            "local-completions, text": lambda: local_completions(address, tokens=False),
        }
        asked = {way: ways[way]() for way in chosen}
        for name, task in TASKS.items():
            kind = task["output_type"]
            expected: list[Any] = []
            figures_expected: dict[str, float] = {}
            for way, lm in asked.items():
                if kind == "loglikelihood_rolling" and way.endswith("text"):
                    continue  # its windows begin within words, and are encoded otherwise as text
                began = time.perf_counter()
                results = evaluate(lm, manager.load([f"here_{name}"]), bootstrap_iters=0)
                seconds = time.perf_counter() - began
                found = answers(results["samples"][f"here_{name}"])
                figures = {
                    key.split(",")[0]: value
                    for key, value in results["results"][f"here_{name}"].items()
                    if isinstance(value, float) and "stderr" not in key
                }
                if way == chosen[0]:
                    expected, figures_expected = found, figures
                farthest, others = differences(kind, found, expected)
                unlike = any(
                    abs(value - figures_expected[key]) > TOLERANCE * abs(value) for key, value in figures.items()
                )
                failed |= farthest > TOLERANCE or others > 0 or unlike
                sums = [one[0] if isinstance(one, tuple) else one for one in found if not isinstance(one, str)]
                table.add_row(
                    name,
                    way,
                    ", ".join(f"{key} {value:.4f}" for key, value in figures.items()),
                    f"{sum(sums):,.3f}" if sums else "",
                    str(sum(one[1] for one in found)) if isinstance(found[0], tuple) else "",
                    f"{seconds:.2f}",
                    f"{farthest:.1e}" if sums else "",
                    str(others),
                )
    Console(width=150).print(table)
    print("they differ" if failed else "the same figures")
    return int(failed)


if __name__ == "__main__":
    main()
