"""Any picture as RGB: every nasty kind of file is decoded or refused in one line, never anything else."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from realgen.core import images
from realgen.core.errors import InputError
from realgen.core.images import ImageBatch, decode, to_rgb

RED = (255, 0, 0)


def saved(image, suffix="PNG", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def noise(width=32, height=24, mode="RGB"):
    shape = (height, width, len(Image.new(mode, (1, 1)).getbands()))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=mode)


def png(width, height, *, chunks=b""):
    """A PNG's first bytes with any size in its header."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IEND", b"")


def refused(data, said, **options):
    with pytest.raises(InputError, match=said) as caught:
        decode(data, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint


# ---- kinds of pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_lossless_picture_is_itself(suffix):
    options = {"lossless": True} if suffix == "WEBP" else {}
    assert decode(saved(noise(), suffix, **options)).tobytes() == noise().tobytes()


def test_the_name_says_nothing_the_data_do(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(noise(), "JPEG"))
    assert decode((tmp_path / "a.png").read_bytes()).mode == "RGB"


def test_what_is_transparent_lies_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    assert list(decode(saved(image)).get_flattened_data()) == [RED, (255, 255, 255)]
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert decode(saved(half)).getpixel((0, 0)) == (255, 127, 127)


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        found = decode(saved(image, transparency=transparency))
        assert list(found.get_flattened_data()) == [RED, (255, 255, 255)]
    assert list(decode(saved(image)).get_flattened_data()) == [RED, (0, 255, 0)]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_that_stands_for_transparent(mode):
    image = Image.new(mode, (2, 1), "black")
    image.putpixel((1, 0), 255 if mode == "L" else (255, 255, 255))
    data = saved(image, transparency=0 if mode == "L" else (0, 0, 0))
    assert list(decode(data).get_flattened_data()) == [(255, 255, 255)] * 2


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_grey_with_alpha_premultiplied_or_not(mode):
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    found = to_rgb(image.convert(mode))
    assert list(found.get_flattened_data()) == [(100, 100, 100), (255, 255, 255)]


def test_cmyk_and_its_inverse_in_a_jpeg_file():
    assert to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == RED
    found = decode(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)).getpixel((8, 8))
    assert np.abs(np.subtract(found, RED)).max() <= 3


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_16_bits_are_scaled_down_not_cut_off(suffix):
    levels = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    found = decode(saved(Image.fromarray(levels), suffix))
    assert [pixel[0] for pixel in found.get_flattened_data()] == [0, 1, 128, 255]


def test_32_bit_floats_are_shares_of_white():
    levels = np.array([[-1.0, 0.0, 0.5, 1.0, 7.0, np.nan, np.inf]], dtype=np.float32)
    found = decode(saved(Image.fromarray(levels, mode="F"), "TIFF"))
    assert [pixel[0] for pixel in found.get_flattened_data()] == [0, 0, 128, 255, 255, 0, 255]


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "PA", "I", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5)])
def test_every_mode_of_pillow_becomes_rgb(mode, size):
    found = to_rgb(Image.new(mode, size))
    assert (found.mode, found.size) == ("RGB", size)


@pytest.mark.parametrize(("suffix", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_what_moves_is_its_first_frame(suffix, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = saved(frames[0], suffix, save_all=True, append_images=frames[1:], duration=50, **options)
    assert decode(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_rotation_is_applied(orientation):
    image = Image.new("RGB", (48, 32), "white")
    image.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(image, "PNG", exif=exif))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    assert found.size == ((48, 32) if orientation <= 4 else (32, 48))
    right, below = corners[orientation]
    assert found.getpixel((right * (found.width - 1), below * (found.height - 1))) == RED


def test_damaged_exif_data_do_not_matter_or_are_refused():
    data = saved(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data).size == (32, 24)


def test_a_single_pixel_and_a_very_wide_picture():
    assert decode(saved(Image.new("RGB", (1, 1), RED))).getpixel((0, 0)) == RED
    assert decode(saved(Image.new("RGB", (30_000, 2), RED))).size == (30_000, 2)


# ---- what is refused ------------------------------------------------------------------------------------


def test_an_empty_file():
    refused(b"", "the file is empty")


@pytest.mark.parametrize("data", [b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"<svg/>", b"\x00" * 99])
def test_what_is_no_picture(data):
    refused(data, "not a readable picture(?!.*0x)")  # no address of an object in it


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file(suffix, share):
    data = saved(noise(64, 64), suffix)
    refused(data[: int(share * len(data))], "broken picture data|not a readable picture")


@pytest.mark.parametrize("suffix", ["EPS", "PDF", "PPM", "ICO", "TGA"])
def test_formats_that_are_not_pictures_for_us(suffix):
    refused(saved(Image.new("RGB", (16, 16)), suffix), "not a readable picture")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (64_000_001, 1)])
def test_a_header_that_promises_too_much_is_refused_unread(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(png(*size), "more than 64,000,000 pixels")


def test_the_limit_can_be_set_and_holds_for_opened_images_too():
    refused(saved(noise(10, 10)), "more than 99 pixels", max_pixels=99)
    assert decode(saved(noise(10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(InputError, match="10 x 10 is more than 99 pixels"):
        to_rgb(noise(10, 10), max_pixels=99)


def test_a_png_whose_data_are_a_lie():
    body = zlib.compress(b"\x00")
    refused(png(64, 64, chunks=struct.pack(">I", len(body)) + b"IDAT" + body + b"\x00\x00\x00\x00"), "picture")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else(data):
    with pytest.raises(InputError):
        decode(data)


SEEDS = {
    "png": saved(noise()),
    "palette": saved(noise().convert("P"), transparency=3),
    "jpeg": saved(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00"),
    "webp": saved(noise(), "WEBP"),
    "gif": saved(noise(), "GIF", save_all=True, append_images=[noise(), Image.new("RGB", (32, 24))]),
    "tiff": saved(noise(), "TIFF", compression="tiff_lzw"),
    "float": saved(noise(mode="L").convert("F"), "TIFF"),
    "bmp": saved(noise(), "BMP"),
}


@pytest.mark.parametrize("kind", SEEDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_a_picture_or_refused(kind, data):
    damaged = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged), 300) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(damaged)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(InputError):
            assert decode(bytes(damaged[:cut]), max_pixels=1_000_000).mode == "RGB"


# ---- one picture as it is -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16"])
def test_the_image_that_was_given_is_not_changed(mode):
    image = Image.new(mode, (4, 4))
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    assert to_rgb(image) is not image
    assert (image.mode, image.size, image.tobytes(), dict(image.info)) == before


# ---- batches --------------------------------------------------------------------------------------------


def broken():
    return Image.open(io.BytesIO(saved(noise(64, 64))[:1000]))


def test_a_batch_is_rgb_and_the_unreadable_keep_their_places():
    batch = ImageBatch([Image.new("L", (2, 2)), broken(), Image.new("RGBA", (3, 3))])
    assert len(batch) == 3
    assert list(batch.readable) == [0, 2]
    assert list(batch.reasons) == [1]
    assert batch.reasons[1].startswith("broken picture data")
    assert [batch[index].mode for index in batch.readable] == ["RGB", "RGB"]


def test_a_batch_leaves_the_list_and_its_images_alone():
    given_images = [Image.new("L", (2, 2)), Image.new("RGB", (2, 2))]
    before = list(given_images)
    ImageBatch(given_images)
    assert given_images == before
    assert [image.mode for image in given_images] == ["L", "RGB"]


def test_a_batch_of_a_batch_is_itself():
    batch = ImageBatch([noise()])
    assert ImageBatch.of(batch) is batch
    assert len(ImageBatch.of([noise()])) == 1
    assert len(ImageBatch.of([])) == 0


def test_what_is_derived_is_computed_once_for_each_way_and_image():
    calls = []

    def width(image):
        calls.append(image)
        return image.width

    batch = ImageBatch([noise(10, 10), noise(20, 10)])
    assert [batch.derived(index, width) for index in (0, 1, 0, 1)] == [10, 20, 10, 20]
    assert len(calls) == 2
    assert batch.derived(0, lambda image: -image.width) == -10
    assert batch.derived(0, width) == 10


def test_the_limit_is_that_of_the_documentation():
    assert images.MAX_PIXELS == 8000 * 8000
