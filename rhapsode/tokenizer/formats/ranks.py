"""Merges from ranks: SentencePiece and tiktoken join any two neighbours that make a token, others name the pairs."""

from __future__ import annotations

from collections.abc import Sequence, Set

from rhapsode.base.errors import DamagedError
from rhapsode.tokenizer.encoders import Piece, joined, takes_long


def merges_from_ranks(groups: Sequence[Sequence[Piece]], known: Set[Piece], where: str) -> list[tuple[Piece, Piece]]:
    """The pairs from which tokens are made, for tokens in the order of their ranks.

    Both ways join the pair of lowest rank first, the leftmost of equals. When x and y become the token t, no join has
    crossed the ends of t, so inside them everything went as it goes with t alone and the ranks below its own: that
    ends with exactly x and y. So this pair is t's only merge, and a token for which it does not end with two parts is
    never made by joining, and has none. Tokens that share a rank are joined by place and not by kind, which an order of
    pairs cannot say: they get every pair of known tokens that makes them, one token after the other.

    Args:
        groups: the tokens of each rank, of more than one unit (byte or character).
        known: every token, the single units among them.

    Raises:
        DamagedError: the tokens are so long that finding out would take minutes.
    """
    if takes_long(token for group in groups for token in group):
        raise DamagedError("the tokens are longer than those of any tokenizer", where=where)
    ranks: dict[Piece, int] = {}
    merges: list[tuple[Piece, Piece]] = []
    for rank, group in enumerate(groups):
        for token in group:
            if len(group) == 1:
                parts = joined(token, ranks)
                pairs = [(parts[0], parts[1])] if len(parts) == 2 else []
            else:
                pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
                pairs = [(left, right) for left, right in pairs if left in known and right in known]
            merges += pairs
        ranks |= dict.fromkeys(group, rank)
    return merges
