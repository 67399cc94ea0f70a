"""The fields of a `config.json`, each asked for by name, type and range; what nobody asked for is known in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from rhapsode.base.errors import InputError, shown
from rhapsode.model.config import LARGEST_SIZE, MOST_LAYERS

Choice = TypeVar("Choice")

_NO_DEFAULT: Any = object()

CODE = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "_attn_implementation",
    "attn_implementation",
    "kernel_config",
    "experts_implementation",
)
"""Fields that name code, or choose between implementations of the same sums: never followed."""

WITHOUT_EFFECT = frozenset(
    {
        # how it was made, and by what
        "_name_or_path",
        "architectures",
        "dtype",
        "model_type",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "gradient_checkpointing",
        "pretraining_tp",
        "add_cross_attention",
        "cross_attention_hidden_size",
        "is_encoder_decoder",
        "is_decoder",
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_return_dict",
        "torchscript",
        "tie_encoder_decoder",
        "reference_compile",
        "deterministic_flash_attn",
        "model_max_length",
        "unsloth_fixed",
        "task_specific_params",
        "prefix",
        "problem_type",
        "static_position_embeddings",
        # training
        "initializer_range",
        "initializer_factor",
        "initializer_cutoff_factor",
        "init_std",
        "attention_dropout",
        "activation_dropout",
        "attention_probs_dropout_prob",
        "hidden_dropout",
        "hidden_dropout_prob",
        "dropout",
        "dropout_rate",
        "embedding_dropout",
        "mlp_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "classifier_dropout",
        "classif_dropout",
        "router_aux_loss_coef",
        "output_router_logits",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        # classifiers on top
        "classifier_pooling",
        "id2label",
        "label2id",
        "num_labels",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "finetuning_task",
        # tokens, read where generation and tokenizers are
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "bad_words_ids",
        "tokenizer_class",
        # generation, of older files; today's have generation_config.json
        "num_beams",
        "max_length",
        "min_length",
        "length_penalty",
        "no_repeat_ngram_size",
        "early_stopping",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "num_return_sequences",
        "num_beam_groups",
        "diversity_penalty",
        "encoder_no_repeat_ngram_size",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "return_dict_in_generate",
        "output_scores",
        "output_past",
        "pruned_heads",
    }
)
"""Fields that change nothing of what a model computes from token ids."""


class Fields:
    """The object in a configuration file.

    Args:
        values: the object.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def any(self, key: str) -> Any:
        """The value of a field, None where it is missing or null."""
        self._asked.add(key)
        return self.values.get(key)

    def integer(self, key: str, default: int = _NO_DEFAULT) -> int:
        """A whole number.

        Raises:
            InputError: it is missing and has no default, or is not one.
        """
        value = self._found(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "must be a whole number", value)
        return value

    def size(self, key: str, default: int = _NO_DEFAULT, largest: int = LARGEST_SIZE) -> int:
        """A size of the model, from 1 to `largest`; errors as `integer`."""
        value = self.integer(key, default)
        if key in self and not 1 <= value <= largest:
            raise self.wrong(key, f"must be between 1 and {largest}", value)
        return value

    def layers(self, key: str, default: int = _NO_DEFAULT) -> int:
        """A number of layers; errors as `integer`."""
        return self.size(key, default, MOST_LAYERS)

    def number(self, key: str, default: float = _NO_DEFAULT) -> float:
        """A positive number; errors as `integer`."""
        value = self._found(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-38 < value < 1e30:
            raise self.wrong(key, "must be a positive number", value)
        return float(value)

    def flag(self, key: str, default: bool = _NO_DEFAULT) -> bool:
        """True or false; errors as `integer`."""
        value = self._found(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false", value)
        return value

    def choice(self, key: str, choices: Mapping[str, Choice], default: str = _NO_DEFAULT) -> Choice:
        """What one of the texts in `choices` stands for; errors as `integer`."""
        value = self._found(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, f"must be one of {', '.join(choices)}", value)
        return choices[value]

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse any value of a field but these; missing and null are fine.

        Raises:
            InputError: another value, which asks for what is not computed here.
        """
        value = self.any(key)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            only = " or ".join(repr(one) for one in allowed)
            raise InputError(f"{key} = {shown(value)} is not supported", where=self.where, todo=f"Only {only} is.")

    def object(self, key: str) -> Fields | None:
        """The object in a field, None where it is missing or null; errors as `integer`."""
        value = self.any(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "must be an object", value)
        return Fields(value, f"{self.where}, {key}")

    def several(self, key: str, length: int) -> list[Any] | None:
        """The list of so many entries in a field, None where it is missing or null; errors as `integer`."""
        value = self.any(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            raise self.wrong(key, f"must be a list of {length}", value)
        return value

    def unasked(self) -> list[str]:
        """Fields that were not asked for, and are not known to be without effect."""
        return [key for key in self.values if key not in self._asked and key not in WITHOUT_EFFECT and key not in CODE]

    def naming_code(self) -> list[str]:
        """Fields that name code."""
        return [key for key in CODE if self.values.get(key) is not None]

    def wrong(self, key: str, must: str, value: Any) -> InputError:
        """What to raise about a field."""
        return InputError(f"{key} {must}, not {shown(value)}", where=self.where)

    def _found(self, key: str, default: Any) -> Any:
        value = self.any(key)
        if value is not None:
            return value
        if default is _NO_DEFAULT:
            raise InputError(f"{key} is missing", where=self.where)
        return default
