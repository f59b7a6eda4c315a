"""Files and items of any kind: what is read from them, beside what they hold."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from norton.common.errors import InputError, NortonWarning
from norton.data.pictures import is_image, read_picture
from norton.data.wrapping import as_picture

pytestmark = pytest.mark.quick

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "tga", "pcx"])
def test_formats_without_loss(tmp_path, ending):
    for pixels, mode in ((COLOUR, "RGB"), (GREY, "L")):
        Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
        picture = read_picture(tmp_path / f"a.{ending}")
        assert picture.mode == mode
        np.testing.assert_array_equal(picture, pixels)


@pytest.mark.parametrize("ending", ["jpg", "webp", "jp2", "avif", "gif"])
def test_formats_with_loss(tmp_path, ending):
    path = tmp_path / f"a.{ending.upper()}"
    assert is_image(path)
    Image.new("RGB", (24, 16), (200, 100, 50)).save(path, format="JPEG2000" if ending == "jp2" else None)
    np.testing.assert_allclose(np.asarray(read_picture(path)).mean((0, 1)), (200, 100, 50), atol=6)


def test_hidden_files_and_documents_are_no_images():
    for name in ("._cat.jpg", ".png", "cat.pdf", "cat.mpg", "cat", "cat.jpg.txt"):
        assert not is_image(f"dir/{name}")


def test_sixteen_bits_are_not_cut(tmp_path):
    pixels = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2180
    for ending in ("png", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(read_picture(tmp_path / f"a.{ending}"), pixels // 256)
    (tmp_path / "a.pgm").write_bytes(b"P5 5 6 65535\n" + pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pgm"), pixels // 256)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(GREY.astype(np.int32) * 1000).save(tmp_path / "b.tif")
    Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "c.tif")  # 8 bits in 32, which would come out black
    for name in "abc":
        with pytest.raises(InputError, match=rf"cannot read .*{name}\.tif .*of 32 bits, from .*white is not known"):
            read_picture(tmp_path / f"{name}.tif")


def test_sixteen_bits_that_say_little(tmp_path):
    """Reports: 8 bits in 16 came out black; 12 bits come out nearly so."""
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png .*of 16 bits, from .*white is not known"):
        read_picture(tmp_path / "a.png")
    Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / "b.png")
    with pytest.warns(NortonWarning, match="no pixel above 4095, of 65535; if they are of 12 bits, scale them"):
        read_picture(tmp_path / "b.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "c.png")
    assert not np.any(read_picture(tmp_path / "c.png"))


def test_palettes_and_transparency(tmp_path):
    flat = Image.fromarray(COLOUR)
    flat.quantize(64).save(tmp_path / "palette.png")
    np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "palette.png")), COLOUR, atol=2)
    with_alpha = np.dstack([COLOUR, GREY])
    Image.fromarray(with_alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "alpha.png"), COLOUR)
    Image.fromarray(np.dstack([GREY, GREY]), "LA").save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").mode == "L"
    flat.quantize(64).save(tmp_path / "both.png", transparency=bytes(range(64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "both.png")), COLOUR, atol=2)


@pytest.mark.parametrize("mode", ["CMYK", "1", "LAB", "HSV", "YCbCr"])
def test_other_modes(mode):
    picture = as_picture(Image.fromarray(COLOUR).convert("RGB" if mode == "LAB" else mode), "x")
    assert picture.mode in ("RGB", "L") and picture.size == (5, 6)


def test_cameras_that_were_held_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.rot90(COLOUR, -1))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_broken_files(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*a\.png as an image .*; mend it or take it away") as caught:
        read_picture(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_items_of_data_sets():
    tensor = torch.from_numpy(COLOUR).permute(2, 0, 1)
    for item in (COLOUR, tensor, Image.fromarray(COLOUR)):
        np.testing.assert_array_equal(as_picture(item, "x"), COLOUR)
    for item in (GREY, torch.from_numpy(GREY), torch.from_numpy(GREY)[None], GREY[..., None]):
        np.testing.assert_array_equal(as_picture(item, "x"), GREY)
    bad = {"is of float64": COLOUR.astype(float), r"shape \(6, 5, 2\)": COLOUR[..., :2], "is a str": "a"}
    for message, item in bad.items():
        with pytest.raises(InputError, match=f"x .*{message}"):
            as_picture(item, "x")
