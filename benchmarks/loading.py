"""How fast and in how much memory a model folder is loaded, beside transformers' `from_pretrained`.

    python benchmarks/loading.py [--megaparameters 500] [--rounds 5] [--types F32 BF16]

A folder with random weights is written. Then `rhapsode.load` and transformers open it in turn, each in a fresh process
that has opened a tiny one before: what it takes to import either library is not counted. Both map fp32 weights into
memory, so that pages come from the disk when they are first used: each is measured after loading, and again after
every weight was read. Memory is the most that was resident at any moment, mapped pages of the file included, less
what was resident before. Both compute in fp32: of a bf16 file, twice its size is the least there can be, and the bar
is on the fp32 weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from rhapsode.model.config import ModelConfig
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import WEIGHTS, save_model
from rhapsode.model.model import new_model
from rhapsode.tokenizer.train import train_tokenizer

LARGEST_SHARE = 1.2  # of the file, in memory
PEERS = ("rhapsode", "transformers")
TINY = "tiny"
IDS = [5, 6, 7, 8]


def shape(megaparameters: float, vocabulary: int = 32_000) -> ModelConfig:
    """A Llama of at least so many million parameters, in the proportions of small models of today."""
    for layers in range(1, 200):
        config = FAMILIES["llama"].config(vocabulary, 1280, layers, 20, 5, 64, 3456, 2048, tied_embeddings=False)
        if config.parameters >= megaparameters * 1e6:
            break
    return config


def write_folder(folder: Path, config: ModelConfig, kind: str) -> None:
    """A model folder with random weights of a type."""
    folder.mkdir()
    model = new_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokenizer = train_tokenizer(["To be, or not to be."], "bpe", 266)
    save_model(folder, model, tokenizer, {"parent": None})
    (folder / "rhapsode.json").unlink()  # as others' folders: the vocabulary is larger than the tokenizer's
    if kind == "BF16":
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes of this process that were in memory since `forget_peak`, by Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(peer: str, folder: Path) -> dict[str, float]:
    """Load in this process: seconds, and bytes of memory, after loading and after all weights were used."""
    use(opened(peer, folder.with_name(TINY)))
    gc.collect()
    before = resident()
    forget_peak()
    began = time.perf_counter()
    model = opened(peer, folder)
    loaded = time.perf_counter() - began
    memory = peak() - before
    use(model)
    used = time.perf_counter() - began
    return {"loaded": loaded, "loaded memory": memory, "used": used, "used memory": peak() - before}


def opened(peer: str, folder: Path) -> Any:
    """The model and its tokenizer, in fp32."""
    if peer == "rhapsode":
        import rhapsode

        return rhapsode.load(folder, "cpu").model
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def use(model: Any) -> None:
    """Have every weight read: by a few tokens, and by a sum, for of an embedding they take a few rows."""
    model(torch.tensor([IDS]))
    for parameter in model.parameters():
        parameter.sum()


def in_fresh_process(peer: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", peer, str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(config: ModelConfig, kind: str, rounds: int, place: Path | None) -> tuple[Table, bool]:
    """The table of one type, and whether ours is within its limits."""
    with tempfile.TemporaryDirectory(prefix="rhapsode-loading-", dir=place) as temporary:
        folder = Path(temporary) / "model"
        write_folder(folder, config, kind)
        write_folder(folder.with_name(TINY), shape(1, 300), kind)
        size = (folder / WEIGHTS).stat().st_size
        (folder / WEIGHTS).read_bytes()  # into the page cache, for both
        found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for turn in range(rounds):
            for peer in PEERS if turn % 2 == 0 else PEERS[::-1]:
                found[peer].append(in_fresh_process(peer, folder))
    title = f"{config.parameters / 1e6:.0f} million parameters in {kind}, a file of {size / 1e9:.2f} GB"
    table = Table(title=f"{title}; medians of {rounds}")
    for heading in ("", "loaded", "memory", "of file", "and used", "memory", "of file"):
        table.add_column(heading, justify="right")
    medians = {
        peer: {key: statistics.median(one[key] for one in found[peer]) for key in found[peer][0]} for peer in PEERS
    }
    for peer, values in medians.items():
        cells = []
        for when in ("loaded", "used"):
            memory = values[f"{when} memory"]
            cells += [f"{values[when]:.2f} s", f"{memory / 1e9:.2f} GB", f"{memory / size:.2f}"]
        table.add_row(peer, *cells)
    ours, theirs = medians["rhapsode"], medians["transformers"]
    fp32 = 4 * config.parameters  # what the weights take in memory, whatever they take on disk
    within = ours["used memory"] <= LARGEST_SHARE * max(size, fp32)
    return table, within and ours["loaded"] <= theirs["loaded"] and ours["used"] <= theirs["used"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megaparameters", type=float, default=500.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", nargs="+", default=["F32", "BF16"], choices=["F32", "BF16"])
    parser.add_argument("--folder", type=Path, help="where the weights may lie meanwhile: twice their size")
    parser.add_argument("--measure", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        peer, folder = arguments.measure
        print(json.dumps(measure(peer, Path(folder))))
        return
    good = True
    for kind in arguments.types:
        table, within = compare(shape(arguments.megaparameters), kind, arguments.rounds, arguments.folder)
        Console().print(table)
        good &= within
    if not good:
        sys.exit(f"more than {LARGEST_SHARE} times the weights in memory, or slower than transformers")


if __name__ == "__main__":
    main()
