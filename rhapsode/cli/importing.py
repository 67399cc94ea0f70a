"""`rhapsode import SOURCE --out FOLDER`: a model of others as a model folder."""

from __future__ import annotations

from pathlib import Path


def import_(source: Path, /, *, out: Path, tokenizer: Path | None = None, force: bool = False) -> None:
    """Bring in a model of others.

    Writes a model folder in fp32, with the digests of what it came from, reads it again and compares.

        rhapsode import model.gguf --out model

        rhapsode import HuggingFaceTB/SmolLM2-135M --out smol

    Parameters
    ----------
    source: Path
        A model folder, a GGUF file, a checkpoint of llama2.c, or owner/name@revision on the Hugging Face hub:
        theirs/, model.gguf, stories260K.bin, HuggingFaceTB/SmolLM2-135M.
    out: Path
        The folder to write.
    tokenizer: Path
        The tokenizer's file or folder, where it is not found beside the model.
    force: bool
        Replace what is there.
    """
    from shlex import quote

    from rhapsode.base.machine import prepare
    from rhapsode.cli.exporting import show
    from rhapsode.exchange.doors import ParityError, import_model
    from rhapsode.inference.language_model import load

    prepare("cpu")
    try:
        passage = import_model(source, out, tokenizer=tokenizer, force=force)
    except ParityError as error:
        show(error.parity)
        raise
    show(passage.parity, passage.notices)
    kind = load(passage.path, "cpu").config.kind
    print(f"\n{passage.path}\nnext: rhapsode {NEXT[kind].format(model=quote(str(passage.path)))}")


NEXT = {
    "decoder": 'generate {model} "Once upon a time"',
    "encoder": "similar WORD --model {model}",
    "encoder-decoder": "translate {model} TEXT",
}
"""What to do with a model of a kind."""
