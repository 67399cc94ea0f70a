"""Every choice of a training run. A field left None is chosen by the planner; a resolved run has none left.

rhapsode train mytext.txt --minutes 10 --config settings.yaml --layers 6
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rhapsode.base.settings import Range
from rhapsode.model.config import Kind
from rhapsode.training.schedules import ScheduleName

TokenizerKind = Literal["character", "word", "byte", "bpe", "unigram"]

UNSET: Any = None
"""Not chosen by anyone yet: the planner will. Typed as Any so that resolved settings read as plain values."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Whatever is not given is chosen for this machine, this text and the minutes asked for."""

    minutes: Annotated[float, Range(0, low_open=True)] = UNSET
    """Minutes the whole command may take; 10 unless --steps is given."""
    memory: Annotated[float, Range(0, low_open=True)] = UNSET
    """Memory the training step may take, in GB; half of what is free unless given."""
    device: Literal["auto", "cpu", "cuda", "mps"] = UNSET
    """Where to compute; auto takes the fastest device there is."""
    threads: Annotated[int, Range(1, 1024)] = UNSET
    """Threads to compute with; the physical cores unless given."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = UNSET
    """Seed of the initial weights, the order of the data, and dropout; 0 unless given."""

    kind: Kind = UNSET
    """What to train: decoders continue text, encoders fill gaps, encoder-decoders turn text into text."""
    family: str = UNSET
    """The public family whose form the model has: qwen3, bert or marian unless given."""
    masked_share: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = UNSET
    """The share of tokens that become gaps in an encoder's text, or are cut out of an encoder-decoder's."""

    tokenizer: TokenizerKind = UNSET
    """What a token is."""
    tokenizer_folder: Path = UNSET
    """Use this tokenizer instead of training one: a folder, or a file, ours or others'."""
    vocabulary_size: Annotated[int, Range(2, 2**31)] = UNSET
    """Entries of the tokenizer to train, special tokens included."""

    hidden_size: Annotated[int, Range(2, 65536)] = UNSET
    """Width of the model."""
    layers: Annotated[int, Range(1, 1000)] = UNSET
    """Blocks of attention and feed-forward; of the encoder, where there are two towers."""
    decoder_layers: Annotated[int, Range(1, 1000)] = UNSET
    """Blocks of an encoder-decoder's decoder; as many as the encoder's unless given."""
    heads: Annotated[int, Range(1, 1024)] = UNSET
    """Query heads of each attention."""
    kv_heads: Annotated[int, Range(1, 1024)] = UNSET
    """Key and value heads; fewer than heads makes the cache smaller."""
    head_dim: Annotated[int, Range(2, 1024)] = UNSET
    """Width of a head; hidden_size / heads unless given."""
    intermediate_size: Annotated[int, Range(1, 1_000_000)] = UNSET
    """Width inside the feed-forward; about 8/3 of hidden_size unless given."""
    context_length: Annotated[int, Range(2, 1_000_000)] = UNSET
    """Tokens the model reads at once."""
    rope_theta: Annotated[float, Range(1)] = UNSET
    """Base of the rotary wavelengths."""
    tied_embeddings: bool = UNSET
    """Whether the output head is the embedding."""

    steps: Annotated[int, Range(1)] = UNSET
    """Optimizer steps; with it, --minutes is only an estimate."""
    batch_size: Annotated[int, Range(1)] = UNSET
    """Windows, or pairs, of text in a step."""
    micro_batch_size: Annotated[int, Range(1)] = UNSET
    """Those computed at once; gradients of several are added up to a step."""
    optimizer: Literal["muon", "adamw", "sgd"] = UNSET
    """Muon (with AdamW for embeddings, head and gains), AdamW, or SGD with momentum."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = UNSET
    """Peak learning rate; with Muon, that of the hidden matrices."""
    embedding_learning_rate: Annotated[float, Range(0, low_open=True)] = UNSET
    """With Muon: AdamW's peak learning rate for the embedding."""
    head_learning_rate: Annotated[float, Range(0, low_open=True)] = UNSET
    """With Muon: AdamW's peak learning rate for the output head and the gains."""
    momentum: Annotated[float, Range(0, 1, high_open=True)] = UNSET
    """Momentum of Muon and SGD."""
    adam_beta1: Annotated[float, Range(0, 1, high_open=True)] = UNSET
    """AdamW's decay of the mean of gradients."""
    adam_beta2: Annotated[float, Range(0, 1, high_open=True)] = UNSET
    """AdamW's decay of the mean of squared gradients."""
    adam_epsilon: Annotated[float, Range(0, low_open=True)] = UNSET
    """Added to AdamW's denominator."""
    weight_decay: Annotated[float, Range(0)] = UNSET
    """Decoupled weight decay of matrices (torch's coupled one with SGD); gains have none."""
    clipping: Annotated[float, Range(0)] = UNSET
    """Largest gradient norm, larger ones are scaled down to it; 0 for no clipping."""
    dropout: Annotated[float, Range(0, 1, high_open=True)] = UNSET
    """Share of the residual stream's additions zeroed in training."""
    schedule: ScheduleName = UNSET
    """Learning rate over time: constant, cosine, or wsd (warm-up, stable, decay)."""
    warmup_steps: Annotated[int, Range(0)] = UNSET
    """Steps over which the learning rate rises."""
    decay_share: Annotated[float, Range(0, 1)] = UNSET
    """With wsd: the last part of the run over which the learning rate falls."""
    final_share: Annotated[float, Range(0, 1)] = UNSET
    """Share of the peak learning rate that is left at the end."""
    label_smoothing: Annotated[float, Range(0, 1, high_open=True)] = UNSET
    """Of an encoder-decoder: the share of each target that is spread over the whole vocabulary."""
    average_checkpoints: Annotated[int, Range(1, 100)] = UNSET
    """The model in the end: the mean of the weights of so many of the last checkpoints; 1 takes the best one."""
    compile: bool = UNSET
    """Whether to use torch.compile; unless given, only where it is measured to pay within the run."""

    validation_interval: Annotated[int, Range(1)] = UNSET
    """Steps between evaluations."""
    validation_tokens: Annotated[int, Range(1)] = UNSET
    """Tokens of the validation text to evaluate on, the same ones each time."""
    patience: Annotated[int, Range(0)] = UNSET
    """Stop after so many evaluations without a new best; 0 never stops early."""
    checkpoint_interval: Annotated[int, Range(1)] = UNSET
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Range(1)] = UNSET
    """Newest checkpoints to keep; the best one is kept besides."""
    sample_interval: Annotated[int, Range(1)] = UNSET
    """Steps between samples of what the model writes."""
    sample_prompt: str = UNSET
    """What the samples begin with; the first words of the validation text unless given."""
    tensorboard: bool = UNSET
    """Also write the curves for TensorBoard."""
