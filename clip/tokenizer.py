"""CLIP's tokenizer: byte-level byte-pair encoding (Sennrich et al., 2016) over 49,408 entries.

Ids 0-255 are the bytes, 256-511 the bytes at the end of a word, then 48,894 merges in order of rank, then the
start and the end token.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

from .errors import ClipError

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 48_894
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
# special tokens, English contractions, runs of letters, single digits, runs of anything else but space
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def byte_symbols() -> dict[int, str]:
    """One visible character for each byte, in the vocabulary's order: printable Latin-1 stands for itself."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(visible))
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges in order of rank. Raises ClipError where the file is missing or not CLIP's."""
    mend = f"take it anew from this project or from https://github.com/openai/CLIP (clip/{VOCABULARY.name})"
    if not path.is_file():
        raise ClipError(f"the tokenizer's vocabulary {path} is missing; {mend}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != VOCABULARY_SHA256:
        raise ClipError(f"the tokenizer's vocabulary {path} is damaged: its SHA-256 is not CLIP's; {mend}")
    lines = gzip.decompress(data).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1:MERGES + 1]]  # the first line is a header


def clean(text: str) -> str:
    """Mended Unicode, no HTML entities (captions may be escaped twice), single spaces, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class SimpleTokenizer:
    """Text to token ids and back. Raises ClipError where the vocabulary file is missing or damaged."""

    def __init__(self, path: str | Path = VOCABULARY):
        merges = read_merges(Path(path))
        self.symbols = byte_symbols()
        letters = list(self.symbols.values())
        entries = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges), START, END]
        self.encoder = {entry: i for i, entry in enumerate(entries)}
        self.decoder = entries
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.pieces = regex.compile(PIECES, regex.IGNORECASE)
        self.bpe = functools.lru_cache(maxsize=2 ** 16)(self._bpe)

    def _bpe(self, piece: str) -> tuple[int, ...]:
        """Ids of one piece of a text: while any neighbours can merge, merge those of the best rank."""
        if piece in (START, END):
            return (self.encoder[piece],)
        word = [self.symbols[byte] for byte in piece.encode("utf-8")]
        word[-1] += END_OF_WORD
        while known := [pair for pair in zip(word, word[1:]) if pair in self.ranks]:
            best, merged, i = min(known, key=self.ranks.__getitem__), [], 0
            while i < len(word):
                size = 2 if tuple(word[i:i + 2]) == best else 1
                merged.append("".join(word[i:i + size]))
                i += size
            word = merged
        return tuple(self.encoder[symbol] for symbol in word)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the start and the end token."""
        return [token for piece in self.pieces.findall(clean(text)) for token in self.bpe(piece)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The cleaned text of token ids, a space after every word."""
        byte_of = {symbol: byte for byte, symbol in self.symbols.items()}
        symbols = "".join(self.decoder[int(token)] for token in tokens)
        text = bytes(byte_of[symbol] for symbol in symbols).decode("utf-8", "replace")
        return text.replace(END_OF_WORD, " ")


@functools.cache
def default_tokenizer() -> SimpleTokenizer:
    """The one tokenizer of the process, made when it is first needed."""
    return SimpleTokenizer()


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Texts → token ids [n, context_length], int64: start token, text, end token, zeros.

    With `truncate` a text that is too long is cut and still closed by the end token in the last place.
    Raises ClipError for a text that is too long, naming it, and for anything that is no text.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if context_length < 2:
        raise ClipError(f"context_length is {context_length}; it must be at least 2, for start and end")
    tokenizer = default_tokenizer()
    start, end = tokenizer.encoder[START], tokenizer.encoder[END]
    result = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(result, texts):
        if not isinstance(text, str):
            raise ClipError(f"tokenize takes a string or a list of strings, not {text!r} among them")
        tokens = [start, *tokenizer.encode(text), end]
        if len(tokens) > context_length:
            if not truncate:
                shown = text if len(text) <= 60 else text[:57] + "…"
                raise ClipError(f"the text {shown!r} has {len(tokens)} tokens with its start and end, but "
                                f"CLIP reads {context_length}; shorten it, or pass truncate=True to cut it")
            tokens = [*tokens[:context_length - 1], end]
        row[:len(tokens)] = torch.tensor(tokens)
    return result
