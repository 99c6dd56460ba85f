"""The world of Toyland: its words, its colours, and the pairs that training never sees."""

from __future__ import annotations

from typing import Final

RGB = tuple[int, int, int]

SIDE: Final = 128
"""Height and width of a scene in pixels."""

NOUNS: Final = ("car", "house", "tree", "ball", "star", "boat", "fish", "mug")

PALETTE: Final[dict[str, RGB]] = {
    "red": (216, 44, 48),
    "green": (64, 164, 72),
    "blue": (38, 100, 214),
    "yellow": (250, 212, 58),
    "purple": (138, 66, 176),
    "orange": (244, 130, 30),
    "white": (250, 250, 250),
    "black": (40, 40, 46),
    "pink": (250, 146, 190),
    "grey": (140, 145, 152),
}
"""What each colour word means. Grey is kept for grounds."""

COLOURS: Final = tuple(name for name in PALETTE if name != "grey")
"""The colours that objects come in."""

GROUNDS: Final[dict[str, tuple[str, ...]]] = {
    "lawn": ("green", "yellow", "orange"),
    "beach": ("yellow", "white", "pink"),
    "sea": ("blue", "green", "purple"),
    "road": ("grey", "black", "red"),
}
"""The colours that each ground comes in; the first is the usual one."""

HELD_OUT: Final = frozenset(
    {
        ("blue", "mug"),
        ("purple", "tree"),
        ("orange", "boat"),
        ("pink", "house"),
        ("black", "fish"),
        ("yellow", "ball"),
    }
)
"""Colour-noun pairs that no training scene shows: they measure composition."""

SIZES: Final[dict[str, tuple[int, int]]] = {"small": (32, 38), "": (46, 62), "large": (70, 82)}
"""Size word (or none) -> range of an object's side in pixels, in scenes of one object."""

HARD_SIZES: Final[dict[str, tuple[int, int]]] = {"small": (23, 27), "": (33, 40)}
"""The same in hard scenes, of three objects; objects too wide to stand side by side shrink."""

SKY: Final[RGB] = (206, 230, 245)
NIGHT_SKY: Final[RGB] = (26, 32, 72)
NIGHT: Final = (0.48, 0.48, 0.62)
"""What night multiplies the ground's red, green and blue by. Objects keep their colours."""

FUNCTION_WORDS: Final = ("a", "an", "and", "on", "the", "of", "at")
OTHER_WORDS: Final = ("night", "small", "large", "left", "right")
WORDS: Final = tuple(sorted({*NOUNS, *PALETTE, *GROUNDS, *FUNCTION_WORDS, *OTHER_WORDS}))
"""Every word that a caption can hold; each is one token."""


def ground_colour(colour: str, night: bool) -> RGB:
    """Give the colour that a ground has by day or by night."""
    red, green, blue = PALETTE[colour]
    if not night:
        return red, green, blue
    return round(red * NIGHT[0]), round(green * NIGHT[1]), round(blue * NIGHT[2])
