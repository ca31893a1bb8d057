"""CLIP's byte-pair vocabulary, whole or cut down to the rows that some captions need.

CLIP's token table has 49,408 rows: single bytes, single bytes that end a word, merges of them, then start and end of
text. Few of the merges occur in a small world's captions, and the table outweighs a small encoder, so an encoder may
keep some rows only. The bytes always stay, so that any word can still be spelled. Kept rows stay in the order of
CLIP's ids: end of text is the last row, where CLIP's pooling by argmax looks for it.

Legend: B captions, L context length.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

NUM_IDS = 49_408
NUM_BYTES = 512  # ids 0 to 255 are bytes inside a word, 256 to 511 bytes that end one
SPECIAL = (NUM_IDS - 2, NUM_IDS - 1)  # start and end of text
WORD_END = "</w>"


@cache
def bpe() -> "SimpleTokenizer":
    """CLIP's byte-pair tokenizer: lower-cases, mends broken Unicode, and gives ids of the whole table."""
    # importing open_clip takes seconds, which a script's --help should not wait for
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@cache
def spell(token: int) -> tuple[int, ...]:
    """The ids of the single bytes that ``token`` stands for; the last of them ends a word where ``token`` does."""
    text = bpe().decoder[token]
    symbols = list(text.removesuffix(WORD_END))
    if text.endswith(WORD_END):
        symbols[-1] += WORD_END
    return tuple(bpe().encoder[symbol] for symbol in symbols)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of CLIP's table that an encoder keeps, in rising order; all of them by default.

    Raises ValueError where bytes, start or end of text are left out, or the ids are not rising or not CLIP's.
    """

    kept: tuple[int, ...] = tuple(range(NUM_IDS))

    def __post_init__(self) -> None:
        if not {*range(NUM_BYTES), *SPECIAL} <= set(self.kept):
            raise ValueError(f"a vocabulary keeps ids 0 to {NUM_BYTES - 1}, {SPECIAL[0]} and {SPECIAL[1]}")
        if list(self.kept) != sorted(set(self.kept)) or len(self.kept) > NUM_IDS or self.kept[-1] != SPECIAL[1]:
            raise ValueError(f"a vocabulary's ids rise from 0 to {SPECIAL[1]}, each once")

    @staticmethod
    def of(captions: Iterable[str]) -> "Vocabulary":
        """The ids that occur in ``captions``, and those that any vocabulary keeps."""
        kept = {*range(NUM_BYTES), *SPECIAL}
        for caption in captions:
            kept.update(bpe().encode(caption))
        return Vocabulary(tuple(sorted(kept)))

    def __len__(self) -> int:
        return len(self.kept)

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {token: row for row, token in enumerate(self.kept)}

    def encode(self, caption: str) -> list[int]:
        """The rows of the caption's tokens, without start and end of text; a token not kept is spelled in bytes."""
        tokens = bpe().encode(caption)
        pieces = (piece for token in tokens for piece in ((token,) if token in self._rows else spell(token)))
        return [self._rows[piece] for piece in pieces]

    def tokenize(self, captions: list[str], context_length: int, *, ends: bool = False) -> tuple[Tensor, int]:
        """Rows (B, L), int64, from start to end of text and then zeros; and how many captions were cut to fit in L.

        Zero is a byte's row too: what is padding is told by the place of the first end of text alone. With ``ends``
        more of these follow in place of zeros.
        """
        start, end = len(self) - 2, len(self) - 1
        rows = torch.full((len(captions), context_length), end if ends else 0)  # (B, L)
        truncated = 0
        for index, caption in enumerate(captions):
            found = self.encode(caption)
            truncated += len(found) > context_length - 2
            found = [start, *found[: context_length - 2], end]
            rows[index, : len(found)] = torch.tensor(found)
        return rows, truncated
