"""Random cases for whatever reads what others wrote: `python -m tests.fuzz --cases 10000 --seed 0`.

Four readers take turns: recordings (damaged bytes), prompts (any characters), lines of a batch
(changed JSON and bytes), and reports (prompts that try to leave their text). A case is found
when a reader raises what it does not document, accepts what it should not, or breaks a promise
named in its function here; its seed is printed and repeats it alone (`--only SEED`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests import tiny
from tests.runs import make_run
from xattn.batch.items import read_items
from xattn.records.files import load, save
from xattn.records.format import FileError
from xattn.results.trace import Trace
from xattn.text.prompt import WordError
from xattn.text.tokenize import tokenize
from xattn.views.report.page import Subject, page

ODD = (
    "\0", "\t", "\n", "\x7f", "\u00ad", "\u200d", "\u202e", "\u2028", "\ufeff", "\ufffd", "\ud800",
    "\U0001f469", "\u0301", "\u00c5", "\u1e9e", "\u0130", "赤", "ﬁ", "<|endoftext|>", "</script>",
    "<!--", "]]>", "&lt;", "'", '"', "\\", "{{data}}", "$&", "-->", "<svg/onload=alert(1)>",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63, 10**400, 1e39, 1e-400, "", "x", "\ud800", [], [[]], {}, [None],
    {"red": "blue"}, {"red": 1}, {"": ""}, [{"replace": {}}], "../up", "/", "con", "a" * 5000,
)  # fmt: skip
LINE = {
    "prompt": "a red car on a lawn",
    "seed": 3,
    "words": ["red"],
    "edits": [{"replace": {"red": "blue"}}, [{"reweight": {"red": 2}}, {"blend": ["car"]}]],
    "size": "128x128",
    "steps": 4,
    "guidance_scale": 5.0,
    "negative_prompt": "dull",
    "name": "cars/one",
}


class Found(Exception):  # noqa: N818
    """A promise that a case broke."""


def some_text(random: Random) -> str:
    """Return a short text of ordinary and odd pieces."""
    pieces = ("red", "car", " ", " ", ", ", "a", "lawn", *random.sample(ODD, 4))
    return "".join(random.choice(pieces) for _ in range(random.randrange(1, 24)))


def damaged(data: bytes, random: Random) -> bytes:
    """Return bytes with a few changes: flipped, cut, doubled, inserted, or exchanged."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = random.randbytes(random.randrange(1, 9))
            case 3:
                end = at + random.randrange(64)
                changed[at:end] = changed[at:end] * 2
            case _ if at < len(changed):
                changed[at] = random.choice(b'{}[]",:0\x00\xff')
        if not changed:
            break
    return bytes(changed)


def recordings(random: Random, folder: Path) -> None:
    """A damaged recording is a ``FileError``; one that loads has the maps that were saved."""
    run = make_run(steps=2, latent=(4, 6), seed=1)
    sound = folder / "sound.safetensors"
    if not sound.exists():
        save(sound, [run])
    data = sound.read_bytes()
    # most of the changes belong in the header, where there is something to misread
    size = 8 + int.from_bytes(data[:8], "little")
    changed = damaged(data[:size], random) + data[size:] if random.random() < 0.7 else None
    path = folder / "damaged.safetensors"
    path.write_bytes(damaged(data, random) if changed is None else changed)
    try:
        (loaded,) = load(path)
    except FileError as error:
        if not str(error).isprintable():
            raise Found(f"an error that can't be printed: {str(error)!r}") from None
        return
    before, after = Trace([run]).heatmap("red"), Trace([loaded]).heatmap("red")
    if loaded.prompts == run.prompts and not np.array_equal(before, after):
        raise Found("other maps than were saved")


def prompts(random: Random, folder: Path) -> None:
    """Words and tokens of any text stand in it, in order; what is missing is a ``WordError``."""
    text = some_text(random)
    try:
        prompt = tokenize(TOKENIZER, text)
    except ValueError as error:
        if "\ud800" not in text:
            raise Found(f"{text!r} is refused: {error}") from error
        return
    for word in prompt.words:
        if text[word.start : word.end] != word.text or not word.positions:
            raise Found(f"word {word!r} does not stand in {text!r}")
        if not set(word.positions) <= {token.position for token in prompt.tokens}:
            raise Found(f"word {word!r} has positions without tokens in {text!r}")
    try:
        prompt.find(some_text(random))
    except WordError:
        return


def lines(random: Random, folder: Path) -> None:
    """A line is an item or a failure in one printable line, and never costs the others."""
    data = {**LINE, random.choice([*LINE, "else"]): random.choice(VALUES)}
    if random.random() < 0.3:
        data["edits"] = [random.choice(VALUES), {"replace": {some_text(random): "x"}}]
    line = json.dumps(data).encode()
    changed = damaged(line, random) if random.random() < 0.6 else line
    path = folder / "lines.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n" + changed)
    found, failures = read_items(path)
    if not found or found[0].line != 1 or found[0].item.prompt != LINE["prompt"]:
        raise Found(f"the sound line was lost beside {changed!r}")
    for failure in failures:
        if not failure.message or "\n" in str(failure):
            raise Found(f"a failure that is not a line: {failure!r}")
        str(failure).encode("utf-8")


class Tags(HTMLParser):
    """The tags of a page, and the text of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data = ""
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count a tag; note whether the data begin."""
        self.tags.append(tag)
        self.inside = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        """Gather the data."""
        if self.inside:
            self.data += data


def reports(random: Random, folder: Path) -> None:
    """A page has the same tags whatever the prompt, and holds it letter by letter."""
    text = " ".join(["car", *some_text(random).replace("\ud800", "").split()])
    run = make_run([text], steps=1, latent=(4, 6), keep=())
    picture = Image.new("RGB", (8, 8), "gray")
    tags = Tags()
    tags.feed(page([Subject(run, picture=picture, title=text)]))
    if len(tags.tags) != plain_tags():
        raise Found(f"{text!r} adds tags to a report")
    shown = json.loads(tags.data)
    if text not in json.dumps(shown, ensure_ascii=False) and text not in leaves(shown):
        raise Found(f"{text!r} is not in its report")


def leaves(data: Any) -> set[str]:
    """Return all texts in JSON's data."""
    if isinstance(data, str):
        return {data}
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return {text for each in inner for text in leaves(each)}


def plain_tags() -> int:
    """Return how many tags the page of a harmless prompt has."""
    if not _plain:
        tags = Tags()
        run = make_run(["car"], steps=1, latent=(4, 6), keep=())
        tags.feed(page([Subject(run, picture=Image.new("RGB", (8, 8), "gray"), title="car")]))
        _plain.append(len(tags.tags))
    return _plain[0]


_plain: list[int] = []
TOKENIZER = tiny.tokenizer()
READERS: tuple[Callable[[Random, Path], None], ...] = (recordings, prompts, lines, reports)


def case(seed: int, folder: Path) -> str | None:
    """Run one case; return what it found, or None."""
    random = Random(seed)
    reader = READERS[seed % len(READERS)]
    try:
        reader(random, folder)
    except Found as found:
        return f"{reader.__name__}: {found}"
    except Exception:
        return f"{reader.__name__}: {traceback.format_exc()}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print what was found, and return how many cases found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first case's; each adds one")
    parser.add_argument("--only", type=int, help="run the case of one seed")
    options = parser.parse_args(arguments)
    first, count = options.seed, options.cases
    if options.only is not None:
        first, count = options.only, 1
    begun, found = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            said = case(seed, Path(folder))
            if said is not None:
                found += 1
                print(f"seed {seed}: {said}", flush=True)
    print(f"{count} cases from seed {first}, {time.monotonic() - begun:.0f} s: {found} found")
    return found


if __name__ == "__main__":
    sys.exit(min(1, main()))
