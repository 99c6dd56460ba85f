"""Adjective-noun pairs of an English prompt, by a small rule that says where it isn't sure."""

from __future__ import annotations

from dataclasses import dataclass

from xattn.text.prompt import Prompt, Word

_ARTICLES = """
a an the one two three four five some many this that these those
"""
ARTICLES = frozenset(_ARTICLES.split())
_LINKS = """
and or with without on in at of by over under near beside behind between from to into
onto next inside above below is are has have
"""
LINKS = frozenset(_LINKS.split())
_ADJECTIVES = """
red green blue yellow purple orange white black pink grey gray brown golden silver beige
turquoise cyan magenta violet crimson teal navy small large big tiny huge tall short
long wide narrow round square old new young wooden metal metallic plastic leather glass
stone fluffy striped spotted dotted shiny wet dry dark bright light furry rusty wool
woollen cotton velvet paper knitted
"""
ADJECTIVES = frozenset(_ADJECTIVES.split())
_PLACES = """
left right top bottom middle centre center night day
"""
PLACES = frozenset(_PLACES.split())
_MEDIA = """
photo photograph picture image painting drawing sketch illustration render rendering portrait
scene view shot closeup close-up
"""
MEDIA = frozenset(_MEDIA.split())
_MARKS = ".,;:!?()"


@dataclass(frozen=True)
class Pair:
    """An adjective and the noun that it describes.

    Attributes:
        adjective: the adjective.
        noun: the noun.
        sure: whether the rule knows the adjective; else it went by the order of words alone.
    """

    adjective: Word
    noun: Word
    sure: bool


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: its noun, and the adjectives before it."""

    noun: Word
    adjectives: tuple[Pair, ...]


def phrases(prompt: Prompt) -> tuple[Phrase, ...]:
    """Return the noun phrases of an English prompt.

    A phrase ends where an article, a preposition, a conjunction or punctuation follows; its last
    word is its noun, known adjectives before it are its adjectives. A word before the noun that is
    not known to be one could be part of a compound ("fire truck"): such a pair is not sure.

    >>> [(p.noun.text, [a.adjective.text for a in p.adjectives]) for p in phrases(prompt)]
    [('fish', ['pink']), ('house', ['blue'])]
    """
    found: list[Phrase] = []
    current: list[Word] = []
    end = 0
    for word in prompt.words:
        text = word.text.casefold()
        if any(mark in _MARKS for mark in prompt.text[end : word.start]):
            _close(current, found)
        end = word.end
        if text in ARTICLES or text in LINKS:
            _close(current, found)
        else:
            current.append(word)
            if word.text[-1] in _MARKS:  # a tokenizer can keep the mark with the word
                _close(current, found)
    _close(current, found)
    return tuple(found)


def leading(prompt: Prompt) -> Word | None:
    """Return the word to look at first: the first noun that doesn't name a kind of picture.

    Where the rule of ``phrases`` finds none, the longest word; None where there isn't a word.

    >>> leading(prompt).text  # of "a photo of a red car on a green lawn"
    'car'
    """
    nouns = [phrase.noun for phrase in phrases(prompt)]
    things = [noun for noun in nouns if noun.text.casefold().strip(_MARKS) not in MEDIA]
    longest = sorted(prompt.words, key=lambda word: -len(word.text))
    return next(iter([*things, *nouns, *longest]), None)


def _close(current: list[Word], found: list[Phrase]) -> None:
    """End a phrase; a place or a bare adjective is not one."""
    words, current[:] = list(current), []
    if not words or words[-1].text.casefold() in PLACES | ADJECTIVES:
        return
    noun, before = words[-1], words[:-1]
    pairs = [Pair(word, noun, word.text.casefold() in ADJECTIVES) for word in before]
    found.append(Phrase(noun, tuple(pairs)))
