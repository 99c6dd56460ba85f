"""Makes Toyland's tokenizer: a CLIP tokenizer to which each word of the world is one token.

The vocabulary is CLIP's in small: the 256 byte symbols, the same ending a word, what the merges
make, and the two special tokens. Other words split into pieces. The merges are learned here by
plain byte-pair encoding with ties broken by spelling, because the `tokenizers` trainer's order
differs between processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from transformers import CLIPTokenizer

from .world import WORDS

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77

Pair = tuple[str, str]


def byte_symbols() -> list[str]:
    """Give the printable character that stands for each byte, as GPT-2 and CLIP order them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def _merge(symbols: Sequence[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def learn_merges(words: Sequence[str]) -> list[Pair]:
    """Merge the most frequent pair, until each word is one symbol."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    merges: list[Pair] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer; always the same one.

    >>> build_tokenizer().tokenize("a red turquoise")[:2]
    ['a</w>', 'red</w>']
    """
    merges = learn_merges(WORDS)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
