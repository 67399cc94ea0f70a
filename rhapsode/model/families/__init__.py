"""One file per public family: its configuration mapped, its tensor names mapped, its defaults; nothing else."""

from __future__ import annotations

from rhapsode.model.families.bart import BART
from rhapsode.model.families.bert import BERT
from rhapsode.model.families.family import Family
from rhapsode.model.families.gemma3 import GEMMA3
from rhapsode.model.families.gpt2 import GPT2
from rhapsode.model.families.gpt_neox import GPT_NEOX
from rhapsode.model.families.llama import LLAMA
from rhapsode.model.families.marian import MARIAN
from rhapsode.model.families.mistral import MISTRAL
from rhapsode.model.families.modernbert import MODERNBERT
from rhapsode.model.families.olmo2 import OLMO2
from rhapsode.model.families.qwen2 import QWEN2
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.families.qwen3_moe import QWEN3_MOE
from rhapsode.model.families.roberta import ROBERTA
from rhapsode.model.families.t5 import T5

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, GEMMA3, OLMO2),
        *(BERT, ROBERTA, MODERNBERT),
        *(MARIAN, T5, BART),
    )
}
"""Every family, by the `model_type` of its configuration."""
