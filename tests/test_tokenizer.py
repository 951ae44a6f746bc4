"""The tokenizer against open_clip's on many texts, and its own rules."""

import random

import open_clip.tokenizer
import pytest
import torch

import clip
from clip.tokenizer import VOCABULARY, SimpleTokenizer, byte_symbols, default_tokenizer

ALPHABETS = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "accents": "àéîõüßçñøåÆœžŁğİıſǅ",
    "greek": "αβγδεζηθΣσς",
    "cyrillic": "абвгдежзийклмЖЩЮЯ",
    "arabic": "ابتثجحخدذرزسش",
    "devanagari": "कखगघचछजनमािीुू्",
    "chinese": "天地玄黄宇宙洪荒狗猫照片",
    "japanese": "ひらがなカタカナﾊﾝｶｸ",
    "hangul": "한국어사진개고양이",
    "emoji": "😀🐶🐱👩‍👩‍👧🏽🇩🇪❤️✈️",
    "digits": "0123456789٣५Ⅷ½²",
    "punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~“”‘’…—¿«»",
    "space": " \t\n\u00a0\u3000",
}
FRAGMENTS = [
    "it's", "DON'T", "we'll", "I'd've", "they're", "'s", "a photo of a dog.", "&amp;", "&amp;amp;",
    "&lt;b&gt;", "&#39;", "&eacute;", "&nbsp;", "&unknown;", "https://example.org/a?b=c", "#hashtag", "@user",
    "12,345.67", "3.14e-5", "</w>", "schÃ¶n", "â€œquotedâ€\x9d", "naïve café", "<|no|>", "e\u0301", "\ufb01ne",
    "\ufffd", "\x00", "\x7f", "ABCdef123ghi",
]


def varied_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    letters = list(ALPHABETS.values())

    def piece() -> str:
        if rng.random() < 0.3:
            return rng.choice(FRAGMENTS)
        alphabet = rng.choice(letters)
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9)))

    def text() -> str:
        longest = 120 if rng.random() < 0.15 else 12
        return "".join(piece() + rng.choice(["", " ", " ", "  "]) for _ in range(rng.randint(0, longest)))

    return [text() for _ in range(count)]


def test_equals_open_clip_on_varied_texts():
    texts = varied_texts(1500, seed=0)
    texts += ["", " ", "\n", "a", "'", "a photo of a dog.", "x" * 400, "猫" * 200, "😀" * 90]
    expected = open_clip.tokenizer.tokenize(texts)
    tokens = clip.tokenize(texts, truncate=True)
    differing = [text for text, a, b in zip(texts, tokens, expected) if not torch.equal(a, b)]
    assert differing == []
    assert tokens.shape == (1509, 77) and tokens.dtype == torch.int64
    full = tokens[:, -1] != 0
    assert full.sum() > 50 and (tokens[full, -1] == 49407).all()  # cut texts still end with the end token


@pytest.mark.parametrize("length", [2, 8, 32, 100])
def test_equals_open_clip_at_other_lengths(length):
    texts = varied_texts(50, seed=length)
    expected = open_clip.tokenizer.tokenize(texts, context_length=length)
    assert torch.equal(clip.tokenize(texts, length, truncate=True), expected)


def test_known_ids():
    # "a photo of a dog" as CLIP's own notebooks print it
    assert clip.tokenize("a photo of a dog")[0, :8].tolist() == [49406, 320, 1125, 539, 320, 1929, 49407, 0]


def test_vocabulary():
    tokenizer = default_tokenizer()
    assert tokenizer is default_tokenizer()
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert sorted(byte_symbols()) == list(range(256)) and len(set(byte_symbols().values())) == 256
    assert tokenizer.encoder["<|startoftext|>"] == 49406 and tokenizer.encoder["<|endoftext|>"] == 49407


def test_special_tokens_in_a_text_are_themselves():
    assert default_tokenizer().encode("dog <|endoftext|>") == [1929, 49407]


def test_decode_gives_the_cleaned_text():
    tokenizer = default_tokenizer()
    assert tokenizer.decode(tokenizer.encode("A  Dog &amp; 狗 😀\n")) == "a dog & 狗 😀 "
    assert tokenizer.decode(clip.tokenize("Dog", 3)[0]) == "<|startoftext|>dog <|endoftext|>"


def test_too_long_is_refused_by_name():
    fits, long = " ".join(["dog"] * 75), " ".join(["dog"] * 76)
    assert clip.tokenize(fits)[0, -1] == 49407
    with pytest.raises(clip.ClipError, match=r"'dog dog .*…' has 78 tokens .* reads 77; .* truncate=True"):
        clip.tokenize(["fine", long])


def test_shapes_and_wrong_input():
    assert clip.tokenize("one").shape == (1, 77)
    assert clip.tokenize(["one", "two"], context_length=5).shape == (2, 5)
    assert clip.tokenize([]).shape == (0, 77)
    with pytest.raises(clip.ClipError, match="not 3 among them"):
        clip.tokenize(["one", 3])
    with pytest.raises(clip.ClipError, match="context_length is 1"):
        clip.tokenize("one", context_length=1)


def test_missing_and_damaged_vocabulary(tmp_path):
    with pytest.raises(clip.ClipError, match="missing"):
        SimpleTokenizer(tmp_path / "none.gz")
    data = bytearray(VOCABULARY.read_bytes())
    data[len(data) // 2] ^= 1
    for damaged in (bytes(data), VOCABULARY.read_bytes()[:-100], b""):
        (tmp_path / "damaged.gz").write_bytes(damaged)
        with pytest.raises(clip.ClipError, match="damaged"):
            SimpleTokenizer(tmp_path / "damaged.gz")
