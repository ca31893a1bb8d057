import pytest
import torch

from ldm.text.vocabulary import NUM_BYTES, NUM_IDS, SPECIAL, Vocabulary, bpe, spell

SEEN = ["a red circle above a blue square", "two green triangles"]
UNSEEN = "An iridescent zebra, 3 kiwis & naïve 円 jekyll's"


def text_of(vocabulary: Vocabulary, rows: list[int]) -> str:
    return bpe().decode([vocabulary.kept[row] for row in rows])


def test_the_whole_vocabulary_tokenizes_as_open_clip_does() -> None:
    captions = [*SEEN, UNSEEN, "", "word " * 40, "stop <end_of_text> here"]
    rows, truncated = Vocabulary().tokenize(captions, 20)
    assert torch.equal(rows, bpe()(captions, context_length=20))
    assert truncated == 1


def test_every_token_is_spelled_by_bytes_that_read_the_same() -> None:
    decoder = bpe().decoder
    for token in range(NUM_BYTES, SPECIAL[0]):
        assert max(spell(token)) < NUM_BYTES
        assert "".join(decoder[piece] for piece in spell(token)) == decoder[token]


def test_unseen_words_are_spelled_with_bytes_and_decode_back() -> None:
    vocabulary = Vocabulary.of(SEEN)
    rows = vocabulary.encode(UNSEEN)
    assert text_of(vocabulary, rows) == bpe().decode(bpe().encode(UNSEEN))
    assert len(rows) > len(bpe().encode(UNSEEN))


def test_seen_words_keep_their_tokens() -> None:
    vocabulary = Vocabulary.of(SEEN)
    for caption in SEEN:
        assert [vocabulary.kept[row] for row in vocabulary.encode(caption)] == bpe().encode(caption)
    assert len(vocabulary) < NUM_BYTES + 20


@pytest.mark.parametrize("vocabulary", [Vocabulary(), Vocabulary.of(SEEN)], ids=["whole", "compact"])
@pytest.mark.parametrize("context_length", [6, 77])
def test_end_of_text_is_the_largest_id_and_ends_every_caption(vocabulary: Vocabulary, context_length: int) -> None:
    captions = [*SEEN, UNSEEN, ""]
    rows, _ = vocabulary.tokenize(captions, context_length)
    ends = rows.argmax(dim=-1)
    assert vocabulary.kept[-1] == NUM_IDS - 1
    for caption, row, end in zip(captions, rows, ends, strict=True):
        assert row[end] == len(vocabulary) - 1
        assert row[1:end].tolist() == vocabulary.encode(caption)[: context_length - 2]
        assert not row[end + 1 :].any()


def test_spelling_counts_against_the_context_length() -> None:
    rows, truncated = Vocabulary.of(SEEN).tokenize(["iridescent", "red"], 6)
    assert truncated == 1
    assert rows.shape == (2, 6)


@pytest.mark.parametrize(
    "kept",
    [
        (),
        tuple(range(NUM_IDS - 1)),
        tuple(range(1, NUM_IDS)),
        (*range(NUM_BYTES), 700, 600, *SPECIAL),
        (*range(NUM_BYTES), 600, 600, *SPECIAL),
        (*range(NUM_BYTES), *SPECIAL, NUM_IDS),
    ],
    ids=["empty", "no end of text", "a byte left out", "not rising", "twice", "beyond the table"],
)
def test_a_vocabulary_that_could_not_spell_or_end_a_caption_is_refused(kept: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a vocabulary"):
        Vocabulary(kept)
