"""Which documents are kept for validation: a choice that depends on the texts and the seed, not on names or order."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def rank(seed: int, digest: bytes) -> int:
    """The place of a document in the order in which documents are offered to validation: a hash in 64 bits."""
    key = (seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=key).digest(), "little")


def choose_validation(
    sizes: npt.NDArray[np.int64], ranks: npt.NDArray[np.uint64], share: float
) -> npt.NDArray[np.bool_]:
    """Choose documents for validation so that they hold about `share` of the bytes.

    In the order of their ranks, each document is taken if validation comes nearer to its share with it than without.
    With many documents that is a random tenth; with a few large ones it is never the large one by bad luck. At least
    one document is taken and one is left.

    Args:
        sizes: bytes of each document, (documents,), at least two.
        ranks: `rank` of each document, (documents,).
        share: above 0 and below 1.

    Returns:
        Whether each document is for validation, (documents,).
    """
    order = np.argsort(ranks, kind="stable")
    taken = np.zeros(len(sizes), dtype=np.bool_)
    missing, smallest = share * float(sizes.sum()), int(sizes.min())
    for document, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if smallest >= 2 * missing:
            break
        if size < 2 * missing:
            taken[document] = True
            missing -= size
    if taken.all() or not taken.any():
        first_smallest = order[int(np.argmin(sizes[order]))]
        taken[first_smallest] = not taken[first_smallest]
    return taken


def characters_for_training(characters: int, share: float) -> int:
    """How many characters of a single document come before its validation part: all but the last `share` of them."""
    return int(characters * (1 - share))
