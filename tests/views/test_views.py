"""Pictures say what they should: where the light is, what stands beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from xattn import units
from xattn.views import animation, colours, lettering, sheets


def spot(row: int, column: int, shape: tuple[int, int] = (8, 12)) -> np.ndarray:
    heat = np.zeros(shape, np.float32)
    heat[row, column] = 1
    return heat


def brightest(image: Image.Image, cell: int) -> tuple[int, int]:
    light = np.asarray(image.convert("L"), dtype=int)
    row, column = np.unravel_index(light.argmax(), light.shape)
    return int(row) // cell, int(column) // cell


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    lettering._fonts.cache_clear()
    yield
    lettering._fonts.cache_clear()


# -- colours


@pytest.mark.parametrize("name", sorted(colours.BUILT_IN))
def test_the_tables_without_matplotlib_are_its_own_within_two(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = colours.color_table(name).astype(int)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    got = colours.color_table(name).astype(int)
    assert got.shape == (256, 3)
    assert abs(got - wanted).max() <= 2


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_other_colormaps_say_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"pip install 'xattn\[plots\]'.*inferno, magma, viridis"):
        colours.color_table("turbo")


@pytest.mark.parametrize("name", ["inferno", "magma", "viridis"])
def test_the_default_tables_grow_lighter_all_the_way(name: Any) -> None:
    light = colours.color_table(name) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -0.8).all()
    assert light[-1] - light[0] > 180


def test_an_unknown_colormap_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="colormap 'rainbows' is not one of matplotlib's"):
        colours.color_table("rainbows")


def test_paint_runs_from_the_first_color_to_the_last() -> None:
    table = colours.color_table()
    pixels = np.asarray(colours.paint(np.array([[0.0, 2.0]])))
    assert (pixels[0] == table[[0, 255]]).all()
    pixels = np.asarray(colours.paint(np.array([[0.0, 2.0]]), top=4.0))
    assert (pixels[0, 1] == table[128]).all()
    assert (np.asarray(colours.paint(np.zeros((2, 2)))) == table[0]).all()


# -- overlays


@pytest.mark.parametrize("at", [(0, 0), (5, 3), (7, 11)])
@pytest.mark.parametrize("colormap", ["inferno", "magma", "viridis"])
def test_the_overlay_is_brightest_where_the_map_is_highest(at: Any, colormap: Any) -> None:
    under = Image.new("RGB", (96, 64), (90, 60, 120))
    assert brightest(colours.overlay(spot(*at), under, colormap=colormap), 8) == at


def test_opacity_goes_from_the_image_to_the_colors() -> None:
    under = Image.new("RGB", (24, 16), (10, 200, 30))
    assert colours.overlay(spot(1, 1), under, opacity=0).getcolors() == [(384, (10, 200, 30))]
    full = colours.overlay(np.ones((8, 12)), under, opacity=1)
    assert full.getcolors() == [(384, tuple(colours.color_table()[-1]))]


def test_an_overlay_turns_its_picture_upright() -> None:
    turned = Image.new("RGB", (24, 16))
    turned.getexif()[0x0112] = 6
    assert colours.overlay(spot(1, 1), turned).size == (16, 24)
    path: Any = "photo.jpg"
    with pytest.raises(ValueError, match=r"got the path 'photo\.jpg'; pass PIL\.Image\.open"):
        colours.overlay(spot(1, 1), path)


def test_an_overlay_takes_any_mode_of_image() -> None:
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        shown = colours.overlay(spot(1, 1), Image.new(mode, (24, 16)))
        assert (shown.mode, shown.size) == ("RGB", (24, 16))


# -- words


def test_labels_use_the_first_font_that_has_their_glyphs() -> None:
    assert len(lettering.text_runs("car", 16)) == 1
    (first, a), (second, b) = lettering.text_runs("carж", 16)
    assert (a, b) == ("car", "ж")
    assert "DejaVu" in str(second.getname()[0])
    assert first is not second


@pytest.fixture
def system_fonts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A list that stands for the fonts of the system."""
    found: list[Any] = []
    monkeypatch.setattr(lettering, "_system_fonts", lambda: found)
    lettering._system_font.cache_clear()
    yield found
    lettering._system_font.cache_clear()


def test_what_the_usual_fonts_lack_is_written_in_one_of_the_systems(
    system_fonts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pillows, dejavu = lettering._fonts(16)
    monkeypatch.setattr(lettering, "_fonts", lambda size: (pillows,))
    (tmp_path / "broken.ttf").write_text("no font")
    system_fonts += [str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"), dejavu.path]
    (_, a), (font, b) = lettering.text_runs("carж", 16)
    assert (a, b, font.path) == ("car", "ж", dejavu.path)
    assert [text for _, text in lettering.text_runs("‏", 16)] == ["\\u200f"]


@pytest.mark.usefixtures("system_fonts")
def test_what_no_font_has_is_an_escape_and_never_a_box() -> None:
    assert [text for _, text in lettering.text_runs("a猫🚗", 16)] == ["a\\u732b\\U0001f697"]
    assert [text for _, text in lettering.text_runs("a\nb\u200f", 16)] == ["a\\u000ab\\u200f"]


@pytest.mark.usefixtures("without_matplotlib")
def test_labels_work_without_matplotlib() -> None:
    assert [text for _, text in lettering.text_runs("carж", 16)] == ["car\\u0436"]


def test_wrapping_keeps_lines_inside_their_width() -> None:
    text = "a very long phrase and extraordinarilylongwordswithoutanyspaces in it"
    lines = lettering.wrap(text, 16, 120, lines=99)
    assert all(lettering.text_width(line, 16) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    short = lettering.wrap(text, 16, 120, lines=2)
    assert len(short) == 2
    assert short[1].endswith("...")
    assert lettering.wrap("", 16, 100) == [""]


def test_layers_have_short_names_that_stay_apart() -> None:
    names = [
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.0.attn2",
        "controlnet.down_blocks.0.attentions.1.transformer_blocks.0.attn2",
        "mean@16x16",
    ]
    assert sheets.shortened(names) == [
        "down 0.1.0",
        "mid 0.0",
        "controlnet.down 0.1.0",
        "mean@16x16",
    ]
    same = ["a.attn2", "a.attentions"]
    assert sheets.shortened(same) == same


# -- tables


def ink(image: Image.Image, box: tuple[int, int, int, int]) -> int:
    return int((np.asarray(image.crop(box).convert("L")) < 128).sum())


def test_a_table_has_each_cell_in_its_place_and_each_label_beside_it() -> None:
    colors = [
        [(250, 0, 0), (0, 250, 0)],
        [(0, 0, 250), (250, 250, 0)],
        [(0, 250, 250), (1, 250, 9)],
    ]
    cells = [[Image.new("RGB", (30, 20), c) for c in row] for row in colors]
    sheet = sheets.table(cells, ["red", "car", "lawn"], ["step 0", "step 19"], side=120)
    pixels = np.asarray(sheet)
    corners = {}
    for r, row in enumerate(colors):
        for c, color in enumerate(row):
            ys, xs = np.nonzero((pixels == color).all(2))
            assert len(ys) == 120 * 80
            corners[r, c] = (xs.min(), ys.min())
    left, top = corners[0, 0]
    assert corners[2, 1][0] > corners[2, 0][0] == left
    for r in range(3):  # ink to the left of each row, above each column
        y = corners[r, 0][1]
        assert ink(sheet, (0, y, left, y + 80)) > 20
    for c in range(2):
        x = corners[0, c][0]
        assert ink(sheet, (x, 0, x + 120, top)) > 20


@pytest.mark.parametrize("side", [32, 96, 400])
def test_labels_are_legible_at_any_size(side: Any) -> None:
    cells = [[Image.new("RGB", (side, side), (255, 0, 0))]]
    sheet = sheets.table(cells, ["car"], side=side)
    dark = np.nonzero((np.asarray(sheet.convert("L")) < 60).any(1))[0]
    assert dark.max() - dark.min() + 1 >= max(7, side // 22)  # the height of the letters


def test_long_labels_neither_overlap_nor_fall_off() -> None:
    cells = [[Image.new("RGB", (64, 64), (255, 0, 0))] * 3]
    sheet = sheets.table(cells, ["x" * 200], ["y" * 200, "z", "w " * 90], side=64, title="t" * 99)
    red = np.nonzero((np.asarray(sheet) == (255, 0, 0)).all(2))
    assert len(red[0]) == 3 * 64 * 64
    assert sheet.width >= lettering.text_width("t" * 99, 13)


def test_empty_cells_stay_blank_and_wrong_counts_are_refused() -> None:
    red = Image.new("RGB", (10, 10), (255, 0, 0))
    sheet = np.asarray(sheets.table([[None, red], [red]], side=20))
    assert (sheet == (255, 0, 0)).all(2).sum() == 2 * 400
    with pytest.raises(ValueError, match="rows: 1 labels for 2 rows"):
        sheets.table([[red], [red]], ["one"])
    with pytest.raises(ValueError, match="columns: 2 labels for 1 columns"):
        sheets.table([[red]], [], ["one", "two"])
    with pytest.raises(ValueError, match="no picture"):
        sheets.table([[None]])


def test_notes_stand_under_their_cells() -> None:
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    cells = [[red, red], [red]]
    plain = sheets.table(cells, ["a", "b"], side=96)
    noted = sheets.table(cells, ["a", "b"], side=96, notes=[["0 to 0.5", ""], ["0 to 8"]])
    assert noted.width == plain.width
    assert noted.height > plain.height
    pixels = np.asarray(noted)
    reds = (pixels == (255, 0, 0)).all(2)
    assert reds.sum() == 3 * 96 * 96  # nothing is written on them
    ys, xs = np.nonzero(reds)
    left, top = int(xs.min()), int(ys.min())
    tall = (noted.height - plain.height) // 2
    under = [(left, top + 96), (left + 96 + 4, top + 96), (left, top + 96 + tall + 4 + 96)]
    inked = [ink(noted, (x, y, x + 96, y + tall)) for x, y in under]
    assert inked[0] > 20
    assert inked[1] == 0
    assert inked[2] > 20


@pytest.mark.parametrize("strange", [np.zeros((8, 8, 3)), torch.zeros(3, 8, 8), "a.png"])
def test_what_is_no_picture_is_refused_by_name(strange: Any) -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    says = rf"PIL images, got {type(strange).__name__}; .* output_type='pil'"
    with pytest.raises(ValueError, match=says):
        sheets.table([[red, None, strange]])
    with pytest.raises(ValueError, match=says):
        sheets.strip([red, strange], ["a", "b"])
    for source, image in ((strange, red), (red, strange)):
        with pytest.raises(ValueError, match=says):
            sheets.edits(source, [image], ["source", "edit"], [np.ones((8, 8), bool)])


def test_a_strip_is_one_row_under_labels() -> None:
    images = [Image.new("RGB", (40, 20), (0, 0, n)) for n in (200, 210, 220)]
    sheet = sheets.strip(images, ["0.5", "1.0", "2.0"], side=40)
    assert sheet.width > 3 * 40
    assert 20 < sheet.height < 80


def test_edits_stand_beside_their_source_over_their_masks() -> None:
    source, edit = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 200))
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    plain = sheets.edits(source, [edit, edit], ["source", "blue", "navy"], side=64)
    shown = sheets.edits(source, [edit, edit], ["source", "blue", "navy"], [mask, None], side=64)
    assert shown.height > plain.height
    blue = (np.asarray(shown) == (0, 0, 200)).all(2).sum()
    assert blue == 2 * 64 * 64 + 64 * 32
    pale = np.asarray(sheets.masked(edit, mask))
    assert (pale[:32] == (0, 0, 200)).all()
    assert pale[32:].min() > 180
    steps = np.stack([np.ones_like(mask), mask])  # the last step's counts
    assert (np.asarray(sheets.masked(edit, steps)) == pale).all()
    with pytest.raises(ValueError, match="height, width"):
        sheets.masked(edit, mask[0])


# -- plots


def test_the_evolution_is_drawn_where_the_numbers_are() -> None:
    entropy = np.full((3, 10), 0.9)
    entropy[1, 4] = 0.2
    names = [f"up_blocks.{n}.attn2" for n in range(3)]
    sheet = sheets.evolution(entropy, names, word="red", size=(300, 700))
    dark, light = colours.color_table("viridis")[[0, 255]]
    pixels = np.asarray(sheet)
    ys, xs = np.nonzero((pixels == light).all(2))
    left, right, top, bottom = xs.min(), xs[xs < 560].max(), ys.min(), ys.max()
    ys, xs = np.nonzero((pixels == dark).all(2))
    inside = xs < right
    row = (ys[inside].mean() - top) / (bottom - top) * 3
    column = (xs[inside].mean() - left) / (right - left) * 10
    assert (int(row), int(column)) == (1, 4)


def test_an_even_evolution_can_be_drawn() -> None:
    sheet = sheets.evolution(np.ones((20, 1)), [f"layer {n}" for n in range(20)], size=(10, 10))
    assert sheet.height > 20 * 13  # grows until its labels fit


# -- animations


def test_frames_show_the_step_s_own_map_on_the_image_as_it_forms() -> None:
    heats = [spot(2, column) for column in (1, 5, 9)]
    previews = [Image.new("RGB", (384, 256), (n, n, n)) for n in (20, 40, 60)]
    drawn = animation.frames(heats, previews, label="red")
    assert [f.width for f in drawn] == [384] * 3
    for frame, column in zip(drawn, (1, 5, 9), strict=True):
        assert brightest(frame.crop((0, 0, 384, 256)), 32) == (2, column)
    assert len(animation.frames(heats, [None])) == 3
    with pytest.raises(ValueError, match="previews: 2 pictures for 3 steps"):
        animation.frames(heats, previews[:2])


def test_frames_share_one_scale() -> None:
    weak, strong = animation.frames([spot(1, 1) * 0.25, spot(1, 1)], [None], opacity=1)
    peak = [np.asarray(f.convert("L"))[:150].max() for f in (weak, strong)]
    assert peak[0] < 100 < 200 < peak[1]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.APNG"])
def test_an_animation_holds_every_frame(tmp_path: Path, name: Any) -> None:
    heats = [spot(2, column) for column in (1, 5, 9)]
    path = tmp_path / name
    animation.animate(path, animation.frames(heats, [None]), milliseconds=100)
    with Image.open(path) as moving:
        frames = [f.convert("RGB") for f in ImageSequence.Iterator(moving)]
        assert len(frames) == 3
        assert moving.info["loop"] == 0
    for frame, column in zip(frames, (1, 5, 9), strict=True):
        cell = frame.width // 12
        assert brightest(frame.crop((0, 0, frame.width, cell * 8)), cell) == (2, column)


def test_an_animation_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.gif, \.webp, \.png or \.apng; got 'a\.mp4'"):
        animation.animate("a.mp4", [Image.new("RGB", (4, 4))])
    with pytest.raises(ValueError, match="empty"):
        animation.animate(tmp_path / "a.gif", [])


# -- small things


def test_spread_has_the_first_and_the_last() -> None:
    assert sheets.spread(20, 6) == [0, 4, 8, 11, 15, 19]
    assert sheets.spread(3, 6) == [0, 1, 2]
    assert sheets.spread(1) == [0]


def test_sizes_are_readable() -> None:
    assert [units.size_text(n) for n in (0, 999, 12_300, 4_560_000, 7.8e12)] == [
        "0 bytes", "999 bytes", "12.3 kB", "4.6 MB", "7.8 TB",
    ]  # fmt: skip
