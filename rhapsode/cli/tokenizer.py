"""`rhapsode tokenizer train|encode|decode|compare`: make tokenizers, try them, see how they do on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rhapsode.tokenizer.compare import Comparison
    from rhapsode.tokenizer.tokenizer import Tokenizer

app = App(name="tokenizer", help_format="markdown")

Text = Annotated[str, Parameter(allow_leading_hyphen=True)]


@app.command(sort_key=0)
def train(
    *texts: Text,
    out: Path,
    kind: Literal["character", "word", "byte", "bpe", "unigram"] = "bpe",
    vocabulary_size: int | None = None,
    pre_tokenizer: Literal["gpt-2", "llama-bpe", "qwen2"] = "qwen2",
    text_field: str = "text",
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    force: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Make a tokenizer from texts.

    Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, which `tokenizers` and transformers read.
    Of more than 64 million characters of text, an evenly spaced sample is used.

    Parameters
    ----------
    texts
        Files, folders, globs, a corpus made by `rhapsode corpus`, or - for standard input.
    out
        The folder to make.
    kind
        What a token is: a character, a word, a byte, or a piece that is frequent (bpe) or likely (unigram).
    vocabulary_size
        Most tokens there may be, four special ones among them. Without it 8192, or as many as there are characters.
    pre_tokenizer
        How bpe cuts text before it joins pairs, by the names llama.cpp knows. gpt-2 keeps numbers whole, llama-bpe
        cuts them into threes, qwen2 into single digits.
    text_field
        The field of JSON lines, or the column of CSV and parquet files, that holds the text.
    skip_bad
        Drop and count what cannot be read, instead of stopping at it.
    force
        Replace the tokenizer in --out.
    """
    import shlex

    from rhapsode.base.files import new_folder
    from rhapsode.base.progress import note
    from rhapsode.tokenizer.train import train_tokenizer

    _refuse_options(texts, train)
    with new_folder(out, replace=force) as folder:  # refuses before the work when it exists
        read_texts = _read(texts, text_field=text_field, skip_bad=skip_bad, then="Making the vocabulary.")
        tokenizer = train_tokenizer(read_texts, kind, vocabulary_size, pre_tokenizer=pre_tokenizer)
        tokenizer.save(folder)
    read, used = (tokenizer.settings["rhapsode"][name] for name in ("characters_read", "characters_used"))
    if kind not in ("character", "byte") and used < read:
        note(f"The text has {read:,} characters: the tokenizer comes from an evenly spaced sample of {used:,}.")
    if vocabulary_size and kind != "byte" and tokenizer.vocabulary_size < vocabulary_size:
        note(f"The text gives no more than {tokenizer.vocabulary_size:,} of {vocabulary_size:,} tokens.")
    print(f"{out}: {kind}, {tokenizer.vocabulary_size:,} tokens")
    print(f'next: rhapsode tokenizer encode {shlex.quote(str(out))} "Once upon a time" --pieces')


@app.command(sort_key=1)
def encode(
    tokenizer: Path,
    text: Text,
    /,
    *,
    pieces: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print the ids of a text.

    Names of special tokens in it are text like any other. What the vocabulary lacks is counted on standard error.

    Parameters
    ----------
    tokenizer
        A folder with a tokenizer, or a file of one, ours or others'.
    text
        The text, the name of a file of UTF-8 text, or - for standard input.
    pieces
        Show each token beside its id.
    json
        Print one JSON object: ids, pieces, bytes and unknown tokens.
    """
    from json import dumps

    from rhapsode.base.progress import note
    from rhapsode.tokenizer.tokenizer import Tokenizer

    _refuse_options((text,), encode)
    coder = Tokenizer.load(tokenizer)
    content = _content(text)
    ids = coder.encode(content)
    unknown = coder.unknown_count(ids)
    if json:
        shown = [_visible(coder, id) for id in ids]
        size = len(content.encode("utf-8"))
        print(dumps({"ids": ids, "pieces": shown, "bytes": size, "unknown": unknown}, ensure_ascii=False))
        return
    if pieces:
        for id in ids:
            print(f"{id:>8}  {_visible(coder, id)}")
    else:
        print(*ids)
    if unknown:
        note(f"{unknown:,} of {len(ids):,} tokens stand for something that the vocabulary lacks.")


@app.command(sort_key=2)
def decode(
    tokenizer: Path,
    /,
    *ids: Text,
    skip_special: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print the text of ids.

    Parameters
    ----------
    tokenizer
        A folder with a tokenizer, or a file of one, ours or others'.
    ids
        Numbers, as `rhapsode tokenizer encode` prints them, or - to read them from standard input.
    skip_special
        Leave special tokens out.
    """
    import sys

    from rhapsode.base.errors import InputError
    from rhapsode.tokenizer.tokenizer import Tokenizer

    coder = Tokenizer.load(tokenizer)
    words = sys.stdin.read().split() if ids == ("-",) else list(ids)
    numbers = [word.strip("[],") for word in words]
    for word in numbers:
        if not word.isascii() or not word.isdigit():
            raise InputError(
                f"{word!r} is no token id", todo="Give whole numbers, or - to read them from standard input."
            )
    if not numbers:
        raise InputError("there are no ids", todo="Give whole numbers, or - to read them from standard input.")
    text = coder.decode([int(word) for word in numbers], skip_special=skip_special)
    print(text, end="\n" if sys.stdout.isatty() else "")  # a file gets the text and nothing more


@app.command(sort_key=3)
def compare(
    *tokenizers: Path,
    text: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, negative=())],
    text_field: str = "text",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Compare tokenizers on a text: length, unknowns, speed.

    Parameters
    ----------
    tokenizers
        Folders with tokenizers, or files of them, ours or others'.
    text
        A file, folder, glob, a corpus made by `rhapsode corpus`, or - for standard input. May be given several times.
    text_field
        The field of JSON lines, or the column of CSV and parquet files, that holds the text.
    json
        Print one JSON object for each tokenizer.
    """
    from dataclasses import asdict
    from json import dumps

    from rhapsode.base.errors import InputError
    from rhapsode.tokenizer import compare as comparing
    from rhapsode.tokenizer.tokenizer import Tokenizer

    if not tokenizers:
        raise InputError("there is no TOKENIZER", todo="Name folders with tokenizers, or files of them.")
    _refuse_options(text, compare)
    coders = [Tokenizer.load(path) for path in tokenizers]
    rows = comparing.compare(coders, _read(text, text_field=text_field, then="Encoding."))
    if json:
        for path, row in zip(tokenizers, rows, strict=True):
            print(dumps({"tokenizer": str(path)} | asdict(row)))
    else:
        _show(tokenizers, rows)


def _show(paths: Sequence[Path], rows: Sequence[Comparison]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for heading in ("vocabulary", "bytes per\ntoken", "tokens per\nword", "unknown", "MB/s", "exact"):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, row in zip(paths, rows, strict=True):
        table.add_row(
            str(path),
            row.kind,
            f"{row.vocabulary_size:,}",
            f"{row.bytes_per_token:.2f}",
            f"{row.tokens_per_word:.2f}",
            f"{row.unknown:,}",
            f"{row.megabytes_per_second:.1f}",
            "yes" if row.exact else "no",
        )
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _read(texts: Sequence[str], *, text_field: str, then: str, skip_bad: bool = False) -> Iterator[str]:
    """The training text of a prepared corpus, or whatever the corpus reader reads, in parts to encode alone.

    At the end it says what comes `then`, for that may take long as well.
    """
    from rhapsode.base.errors import InputError
    from rhapsode.base.progress import Progress, note, on_terminal
    from rhapsode.corpus.corpus import Corpus
    from rhapsode.corpus.read import read_pieces
    from rhapsode.tokenizer.pre_tokenizers import by_document, safe_parts

    if not texts:
        raise InputError("there is no TEXT", todo="Name files, folders or globs, or - for standard input.")
    with Progress("reading", None, "characters") as progress:
        if len(texts) == 1 and Corpus.is_corpus(Path(texts[0])):
            pieces = Corpus.open(Path(texts[0])).pieces("train")
        else:
            read = read_pieces(texts, text_field=text_field, skip_bad=skip_bad)
            pieces = ((piece.text, piece.last) for piece in read)
        for document in by_document(pieces):
            for part in safe_parts(document):
                yield part
                progress.advance(len(part))
    if on_terminal():
        note(then)


def _content(text: str) -> str:
    """TEXT itself, or what is in the file of that name, or on standard input."""
    import sys

    from rhapsode.base.errors import InputError

    path = Path(text)
    try:
        is_file = text != "-" and path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        is_file = False
    if text != "-" and not is_file:
        return text
    data = sys.stdin.buffer.read() if text == "-" else path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not UTF-8 text at byte {error.start}",
            where="standard input" if text == "-" else text,
            todo="`rhapsode corpus` reads other encodings.",
        ) from None


def _visible(tokenizer: Tokenizer, id: int) -> str:
    """A token as a quoted text, or as bytes where it is no whole text."""
    data = tokenizer.id_to_bytes(id)
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(data)


def _refuse_options(texts: Sequence[str], command: object) -> None:
    """TEXT may be `-`, so the parser lets everything through that begins with it, misspelt options too."""
    import re
    from inspect import signature

    from rhapsode.base.errors import InputError, nearest

    for text in texts:
        if re.fullmatch("--?[a-z][a-z-]*(=.*)?", text):
            options = ["--" + name.replace("_", "-") for name in signature(command).parameters]  # type: ignore[arg-type]
            raise InputError(f"there is no option {text!r}", todo=nearest(text, options))
