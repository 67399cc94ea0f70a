"""Texts that tokenizers stumble over, as a hypothesis strategy."""

from __future__ import annotations

from hypothesis import strategies as st

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)

# Pieces on whose neighbourhood the pre-tokenisers' decisions hang.
_pieces = [
    *(
        "a",
        "The",
        "ß",
        "é",
        "e\u0301",
        "日本",
        "नमस्ते",
        "한",
        "ع",
        "🦙🏽‍♀️",
        "0",
        "1984",
        "²",
        "Ⅷ",
        "_",
        "-",
        "...",
        "(",
        "<|endoftext|>",
    ),
    *(
        "'s",
        "'S",
        "'ll",
        "'\u017f",
        "’s",
        "'",
        '"',
        " ",
        "  ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\x0b",
    ),
    *("\x1c", "\x85", "\x00", "\u200b", "\u200d", "\ufeff", "\ufffd", "\U0010ffff", "<|im_start|>", "\u0130", "\ufb06"),
]
stitched = st.lists(st.sampled_from(_pieces) | any_text, max_size=60).map("".join)
