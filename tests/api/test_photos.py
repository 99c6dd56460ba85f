"""Pictures from outside: every mode upright in RGB, sizes by one rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from xattn.api.photos import Photo, Room, fitted, photos, rgb


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    wide = Image.new("RGB", (6, 4), "red")
    exif = wide.getexif()
    exif[0x0112] = 6  # turned by a quarter
    wide.save(tmp_path / "turned.jpg", exif=exif)
    (photo,) = photos(tmp_path / "turned.jpg")
    assert photo.image.size == (4, 6)
    assert photo.name == "turned.jpg"


def test_transparent_places_become_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 255, 255))
    shown = rgb(clear)
    assert shown.mode == "RGB"
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_the_original_keeps_its_transparency_upright_at_its_own_size() -> None:
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 7))
    clear.getexif()[0x0112] = 6  # turned by a quarter
    [photo] = photos(clear)
    original = fitted(photo, (16, 24)).original
    assert (original.mode, original.size) == ("RGBA", (4, 6))
    assert original.getpixel((0, 0)) == (255, 0, 0, 7)
    assert photos(Image.new("P", (2, 2)))[0].original.mode == "RGB"


def test_palettes_and_greys_become_rgb() -> None:
    red = Image.new("RGB", (2, 2), (250, 0, 0))
    assert rgb(red.convert("P", palette=Image.Palette.ADAPTIVE)).getpixel((0, 0)) == (250, 0, 0)
    assert rgb(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_range() -> None:
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert [rgb(deep).getpixel((x, 0)) for x in range(3)] == [(v,) * 3 for v in (0, 128, 255)]
    point = Image.fromarray(np.array([[0.0, 0.5, 2.0]], dtype=np.float32))
    assert [rgb(point).getpixel((x, 0)) for x in range(3)] == [(v,) * 3 for v in (0, 128, 255)]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, size in (("b.png", (2, 2)), ("a.webp", (3, 3)), ("notes.txt", None)):
        if size is None:
            (tmp_path / name).write_text("nothing to see")
        else:
            Image.new("RGB", size).save(tmp_path / name)
    assert [photo.name for photo in photos(tmp_path)] == ["a.webp", "b.png"]


def test_what_is_not_a_picture_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"note\.png' can't be read as a picture"):
        photos(tmp_path / "note.png")
    with pytest.raises(ValueError, match="there is no such file or folder"):
        photos(tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        photos(tmp_path / "empty")
    with pytest.raises(ValueError, match="has no picture; give a picture"):
        photos([])
    with pytest.raises(TypeError, match="image must be a PIL image, a path, or a list"):
        photos(3)


def test_sizes_follow_one_rule() -> None:
    room = Room(area=512 * 512, unit=64)
    assert room.fitted((512, 512)) == (512, 512)
    assert room.fitted((768, 512)) == (768, 512)  # whole cells, not much larger
    assert room.fitted((1024, 1024)) == (512, 512)
    assert room.fitted((4000, 3000)) == (576, 448)
    assert room.fitted((100, 100)) == (512, 512)
    assert min(room.fitted((1, 10_000))) == 64
    large = Image.new("RGB", (4000, 3000))
    photo = Photo(large, "photo.jpg", (4000, 3000), large)
    assert str(fitted(photo, (576, 448))) == "photo.jpg, 4000x3000 taken as 576x448"
    assert fitted(photo, (4000, 3000)) is photo


def test_a_models_room_is_its_own_size_in_whole_cells() -> None:
    pipe = tiny.sd1()
    assert Room.of(pipe) == Room(32 * 32, 8)
