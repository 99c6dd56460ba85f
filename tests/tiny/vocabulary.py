"""Makes the tiny CLIP vocabulary beside this file: ``python tests/tiny/vocabulary.py``.

The byte alphabet, so that any text can be written, and the merges that make each of WORDS one
token. Words that aren't listed fall into several tokens. The same files come out every time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent

WORDS = """
a an the of on in at and with to two is by under over near behind
red green blue yellow purple orange white black pink grey
car boat cat dog house tree ball star fish mug hat lawn beach sea road night day snow
apple horse man woman photo painting cup table bird flower sky sun moon river street city
small large left right old new big , . ! ? - '
""".split()  # noqa: SIM905

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """Return the printable letter that byte-level BPE writes for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, spare = {}, 0x100
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(spare)
            spare += 1
    return [letters[byte] for byte in range(256)]


def whole(
    words: Iterable[str], letters: Iterable[str], space: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary and its merges, by which each word is one token, behind a space too."""
    vocab = {letter: n for n, letter in enumerate(letters)}
    merges = []
    for name in words:
        for word in (name, space + name):
            for end in range(1, len(word)):
                if word[: end + 1] not in vocab:
                    vocab[word[: end + 1]] = len(vocab)
                    merges.append((word[:end], word[end]))
    return vocab, merges


def merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Return the pieces that the merges leave of a word, best rank first."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while pairs := [p for p in pairwise(pieces) if p in ranks]:
        left, right = min(pairs, key=ranks.__getitem__)
        out: list[str] = []
        for piece in pieces:
            if out and (out[-1], piece) == (left, right):
                out[-1] = left + right
            else:
                out.append(piece)
        pieces = out
    return pieces


def build() -> tuple[dict[str, int], list[str]]:
    """Return the vocabulary and the merges."""
    letters = byte_letters()
    ranks: dict[tuple[str, str], int] = {}
    for word in WORDS:
        # A merge added later never undoes an earlier word: its rank is worse.
        while len(pieces := merged(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [left + right for left, right in ranks]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), START, END])}
    return vocab, [f"{left} {right}" for left, right in ranks]


def main() -> None:
    vocab, merges = build()
    (HERE / "vocab.json").write_text(json.dumps(vocab, indent=0) + "\n", encoding="utf-8")
    (HERE / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
