"""Every family against transformers: logits, padding, cache, and the way there and back."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.files import write_json
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import config_values, load_model, save_weights
from rhapsode.model.model import Model

from .families import CASES, CONTEXT, DECODERS, ENCODER_DECODERS, ENCODERS, Case

TOLERANCE = 1e-4
EXAMPLES = settings(deadline=None, max_examples=settings().max_examples // 20)
"""A few; fifty with `--hypothesis-profile thorough`, as in `make test-peers`."""


def reference(case: Case, values: dict[str, Any], seed: int) -> Any:
    """transformers' model of these values, with every number in it drawn."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    plainly = {"attn_implementation": "eager", "experts_implementation": "eager"}
    config = getattr(transformers, case.config)(**values, **plainly)
    model = getattr(transformers, case.model)(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            fixed = "inv_freq" in name or "embed_scale" in name or (case.family == "marian" and "positions" in name)
            if not fixed and tensor.is_floating_point():
                gain = float("norm" in name.lower() and tensor.dim() == 1)
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.15 + gain)
    model.tie_weights()
    return model


def ours_of(theirs: Any) -> Model:
    """Their model, saved by them and loaded by us."""
    with tempfile.TemporaryDirectory() as name:
        theirs.save_pretrained(name)
        return load_model(Path(name))


def random_ids(theirs: Any, batch: int, time: int, seed: int) -> torch.Tensor:
    """Ids (batch, time), none of them padding."""
    return torch.randint(4, theirs.config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def exactly(theirs: Any, ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """The logits (batch, time, vocabulary) of the same model in fp64, each text alone; zero where there is padding."""
    double = copy.deepcopy(theirs).double()
    logits = [double(row[real][None]).logits[0] for row, real in zip(ids, padding, strict=True)]
    exact = torch.zeros(*ids.shape, logits[0].shape[-1], dtype=torch.float64)
    exact[padding] = torch.cat(logits)
    return exact


def close(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> None:
    """Within the tolerance of what fp64 gives. A few models at random (a norm of nearly nothing) make more of fp32's
    rounding: there, no further from it than twice as far as transformers in fp32."""
    theirs_off = float((theirs.double() - exact).abs().max())
    torch.testing.assert_close(ours.double(), exact, atol=TOLERANCE + 2 * theirs_off, rtol=1e-5)


def padding_of(lengths: list[int], left: bool) -> torch.Tensor:
    """(batch, time), True where a token is real."""
    column, time = torch.arange(max(lengths)), max(lengths)
    size = torch.tensor(lengths)[:, None]
    return column >= time - size if left else column < size


TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
NEVER_READ = {"cls.predictions.bias", "lm_head.bias", "model.shared.weight"}
"""Of untied BERT, RoBERTa, BART and Marian, transformers makes and saves these, and computes with others."""

SEEDS = st.integers(0, 10**6)
LENGTHS = st.lists(st.integers(1, 20), min_size=2, max_size=4)


@pytest.mark.parametrize("case", CASES, ids=str)
@EXAMPLES
@given(data=st.data(), seed=SEEDS)
def test_there_and_back(case: Case, data: st.DataObject, seed: int) -> None:
    """Theirs -> ours -> theirs -> ours: the numbers keep every bit, and nothing is left over or missing."""
    import transformers

    theirs = reference(case, data.draw(case.draw()), seed)
    ours = ours_of(theirs)
    assert ours.config.parameters == sum(
        parameter.numel() for parameter in ours.parameters() if parameter.requires_grad
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder, ours)
        ids = {key: getattr(theirs.config, key, None) for key in TOKEN_IDS}
        write_json(folder / "config.json", {**ids, **config_values(ours.config)})
        again, info = getattr(transformers, case.model).from_pretrained(folder, output_loading_info=True)
        unread = set() if ours.config.tied_embeddings else NEVER_READ
        assert info["missing_keys"] <= unread
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        now = again.state_dict()
        for key, tensor in theirs.state_dict().items():
            assert key in unread or torch.equal(tensor, now[key]), key
        last = ours_of(again)
    assert last.config == ours.config
    for (key, tensor), other in zip(ours.named_parameters(), last.parameters(), strict=True):
        assert torch.equal(tensor, other), key


@pytest.mark.parametrize("case", DECODERS, ids=str)
@EXAMPLES
@given(data=st.data(), lengths=LENGTHS, left=st.booleans(), seed=SEEDS)
def test_decoders(case: Case, data: st.DataObject, lengths: list[int], left: bool, seed: int) -> None:
    theirs = reference(case, data.draw(case.draw()), seed)
    ours = ours_of(theirs)
    assert isinstance(ours, Decoder)
    padding = padding_of(lengths, left)
    ids = random_ids(theirs, *padding.shape, seed)
    positions = (padding.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        close(ours(ids), theirs(ids).logits, exactly(theirs, ids, torch.ones_like(padding)))
        expected = theirs(ids, attention_mask=padding.long(), position_ids=positions).logits
        exact = exactly(theirs, ids, padding)
        close(ours(ids, padding=padding)[padding], expected[padding], exact[padding])
        for row in range(len(lengths)):  # a row gives what it gives alone
            real = padding[row]
            close(ours(ids[row][real][None])[0], expected[row][real], exact[row][real])


@pytest.mark.parametrize("case", DECODERS, ids=str)
@EXAMPLES
@given(
    data=st.data(),
    batch=st.integers(1, 3),
    steps=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    padded=st.booleans(),
    seed=SEEDS,
)
def test_decoders_step_by_step(
    case: Case, data: st.DataObject, batch: int, steps: list[int], padded: bool, seed: int
) -> None:
    theirs = reference(case, data.draw(case.draw()), seed)
    ours = ours_of(theirs)
    assert isinstance(ours, Decoder)
    ids = random_ids(theirs, batch, sum(steps), seed)
    padding = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        padding[0, : steps[0] - 1] = False  # the first row begins late
    positions = (padding.long().cumsum(1) - 1).clamp(min=0)
    cache = KeyValueCache(ours.config, batch, CONTEXT)
    start = 0
    with torch.no_grad():
        whole = theirs(ids, attention_mask=padding.long(), position_ids=positions).logits
        exact = exactly(theirs, ids, padding)
        for step in steps:
            now = slice(start, start + step)
            got = ours(ids[:, now], cache=cache, padding=padding[:, now] if padded and start == 0 else None)
            real = padding[:, now]
            close(got[real], whole[:, now][real], exact[:, now][real])
            start = now.stop


@pytest.mark.parametrize("case", ENCODERS, ids=str)
@EXAMPLES
@given(data=st.data(), lengths=LENGTHS, seed=SEEDS)
def test_encoders(case: Case, data: st.DataObject, lengths: list[int], seed: int) -> None:
    theirs = reference(case, data.draw(case.draw()), seed)
    ours = ours_of(theirs)
    assert isinstance(ours, Encoder)
    padding = padding_of(lengths, left=False)
    ids = random_ids(theirs, *padding.shape, seed)
    ids[~padding] = theirs.config.pad_token_id  # RoBERTa counts its positions from the ids
    with torch.no_grad():
        expected = theirs(ids, attention_mask=padding.long()).logits
        exact = exactly(theirs, ids, padding)
        close(ours(ids, padding=padding)[padding], expected[padding], exact[padding])
        for row, length in enumerate(lengths):
            close(ours(ids[row, :length][None])[0], expected[row, :length], exact[row, :length])


@pytest.mark.parametrize("case", ENCODER_DECODERS, ids=str)
@EXAMPLES
@given(data=st.data(), lengths=LENGTHS, steps=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=SEEDS)
def test_encoder_decoders(case: Case, data: st.DataObject, lengths: list[int], steps: list[int], seed: int) -> None:
    theirs = reference(case, data.draw(case.draw()), seed)
    ours = ours_of(theirs)
    assert isinstance(ours, EncoderDecoder)
    padding = padding_of(lengths, left=False)
    source, ids = random_ids(theirs, *padding.shape, seed), random_ids(theirs, len(lengths), sum(steps), seed + 1)
    with torch.no_grad():
        answer = theirs(source, attention_mask=padding.long(), decoder_input_ids=ids)
        double = copy.deepcopy(theirs).double()
        alone = [
            double(text[real][None], decoder_input_ids=row[None])
            for text, real, row in zip(source, padding, ids, strict=True)
        ]
        exact = torch.cat([each.logits for each in alone])
        memory = ours.encode(source, padding=padding)
        exact_memory = torch.cat([each.encoder_last_hidden_state[0] for each in alone])
        close(memory[padding], answer.encoder_last_hidden_state[padding], exact_memory)
        close(ours(ids, memory, memory_padding=padding), answer.logits, exact)
        cache, start = KeyValueCache(ours.config, len(lengths), CONTEXT), 0
        for step in steps:
            now = slice(start, start + step)
            got = ours(ids[:, now], None if start else memory, memory_padding=padding, cache=cache)
            close(got, answer.logits[:, now], exact[:, now])
            start = now.stop


def test_every_family_is_here() -> None:
    assert {case.family for case in CASES} == set(FAMILIES)
