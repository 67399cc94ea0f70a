"""The memory that reading and writing take, beside transformers in eager fp32: each in a process of its own.

    python benchmarks/engine_memory.py [--new-tokens 32]

The model of engine.py, 135 million parameters with random weights. Memory is what is resident in the process, by Linux,
less what was before the model was loaded (libraries, and a tiny model that was used once): after loading; after all
weights were used; and the most while prompts of 512 and 2048 tokens are read, and 1 and 32 texts are written after
prompts of 128. Both map the weights' file into memory, so that pages of it count when they are first read.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine import PROMPT, SIZES, TEXTS
from loading import PEERS, forget_peak, opened, peak, resident, use
from rich.console import Console
from rich.table import Table

from rhapsode.base.machine import prepare, processor, threads
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.step import block_bytes
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import WEIGHTS, save_model
from rhapsode.model.initialization import initialise
from rhapsode.model.model import new_model
from rhapsode.tokenizer.train import train_tokenizer

TINY_SIZES = (266, 64, 2, 4, 2, 16, 128, 2048)
TASKS = {
    "512 tokens read": (1, 512, 1),
    "2048 tokens read": (1, 2047, 1),
    "1 text written": (1, PROMPT, 0),
    f"{TEXTS} texts written": (TEXTS, PROMPT, 0),
}
"""Texts, tokens of each prompt, new tokens (0: as many as the command line says)."""


def write_folder(folder: Path, sizes: tuple[int, ...]) -> None:
    """A Llama with random weights, whose vocabulary may be larger than its tokenizer's."""
    folder.mkdir()
    model = new_model(FAMILIES["llama"].config(*sizes, tied_embeddings=True))
    initialise(model, 0)
    save_model(folder, model, train_tokenizer(["To be, or not to be."], "bpe", 266), {"parent": None})
    (folder / "rhapsode.json").unlink()


def prompts(texts: int, tokens: int) -> torch.Tensor:
    """Ids (texts, tokens), no two texts alike."""
    return torch.randint(0, 256, (texts, tokens), generator=torch.Generator().manual_seed(0))


def opened_by(peer: str, folder: Path) -> Any:
    if peer == "rhapsode":
        import rhapsode

        return rhapsode.load(folder, "cpu")
    return opened(peer, folder)


@torch.inference_mode()
def write(peer: str, model: Any, ids: torch.Tensor, new_tokens: int) -> None:
    """Continue all texts by the likeliest tokens, with nothing that would end them.

    Ours through the engine; transformers' as one batch, by its own model and cache, computing of the prompt only the
    last logits.
    """
    if peer == "rhapsode":
        engine, sampling = model.engine(), Sampling(temperature=0, max_new_tokens=new_tokens)
        requests = [engine.submit(prompt, [sampling], ()) for prompt in ids.tolist()]
        while not engine.idle:
            engine.step()
        assert all(len(request.waiting) == new_tokens for request in requests)
        return
    from transformers import DynamicCache

    cache = DynamicCache()
    last = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1)
    for _ in range(new_tokens - 1):
        last = model(last[:, None], past_key_values=cache).logits[:, -1].argmax(-1)


def measure(peer: str, folder: Path, task: str, new_tokens: int) -> dict[str, int]:
    """Bytes after loading, after all weights were used, and at most during the task, in this process."""
    prepare("cpu")
    texts, tokens, new = TASKS[task]
    write(peer, opened_by(peer, folder.with_name("tiny")), prompts(2, 64), 2)
    gc.collect()
    before = resident()
    model = opened_by(peer, folder)
    loaded = resident() - before
    use(model.model if peer == "rhapsode" else model)
    used = resident() - before
    forget_peak()
    write(peer, model, prompts(texts, tokens), new or new_tokens)
    return {"loaded": loaded, "used": used, "peak": peak() - before}


def in_fresh_process(peer: str, folder: Path, task: str, new_tokens: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--measure", peer, str(folder), task, "--new-tokens", str(new_tokens)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where the weights may lie meanwhile, 540 MB")
    parser.add_argument("--measure", nargs=3, metavar=("PEER", "FOLDER", "TASK"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        peer, folder, task = a.measure
        print(json.dumps(measure(peer, Path(folder), task, a.new_tokens)))
        return
    print(f"{processor()}, {threads()} threads")
    with tempfile.TemporaryDirectory(prefix="rhapsode-memory-", dir=a.folder) as temporary:
        folder = Path(temporary) / "model"
        write_folder(folder, SIZES)
        write_folder(folder.with_name("tiny"), TINY_SIZES)
        size = (folder / WEIGHTS).stat().st_size
        (folder / WEIGHTS).read_bytes()  # into the page cache, for both
        found = {task: {peer: in_fresh_process(peer, folder, task, a.new_tokens) for peer in PEERS} for task in TASKS}
    model = new_model(FAMILIES["llama"].config(*SIZES, tied_embeddings=True))
    context = model.config.context_length
    cache = block_bytes(model.config) * -(-context // BLOCK)
    print(f"weights: {size / 1e6:,.0f} MB; cache of a text of {context} tokens: {cache / 1e6:,.0f} MB")
    table = Table(title="MB resident, less what was before loading; of tasks the most")
    for heading in ("", "rhapsode", "of weights", "transformers", "of weights"):
        table.add_column(heading, justify="right")
    first = next(iter(found.values()))
    rows = {
        name: {peer: first[peer][key] for peer in PEERS}
        for name, key in (("loaded", "loaded"), ("weights used", "used"))
    }
    rows |= {task: {peer: found[task][peer]["peak"] for peer in PEERS} for task in TASKS}
    for name, values in rows.items():
        cells = [cell for peer in PEERS for cell in (f"{values[peer] / 1e6:,.0f}", f"{values[peer] / size:.2f}")]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
