import io
import struct
import zlib

import pytest
from PIL import Image

from realgen.apps._receiving import Memory, decode_all, num_pixels
from realgen.apps._refusal import RefusalError
from serving import picture, png


def bomb(width, height):
    """A PNG whose header promises more than there is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(("data", "num"), [(png(picture(size=(9, 7))), 63), (b"", 0), (b"garbage", 0), (b"\x89PNG", 0)])
def test_pixels_are_counted_without_decoding(data, num):
    assert num_pixels(data) == num


def test_a_header_that_promises_too_much_is_believed():
    assert num_pixels(bomb(5000, 5000)) == 25_000_000
    assert num_pixels(bomb(60_000, 60_000)) > 100_000_000
    with pytest.raises(RefusalError, match="image 1: 25,000,000 pixels, at most 64") as caught:
        decode_all([png(picture()), bomb(5000, 5000)], max_pixels=64)
    assert caught.value.status == 422


def test_images_are_decoded_to_rgb_and_the_rest_to_words():
    deep = io.BytesIO()
    Image.new("I;16", (3, 2), 65535).save(deep, "PNG")
    found = decode_all([png(picture()), b"nothing", deep.getvalue(), png(picture())[:70]], max_pixels=1000)
    assert found[0].tobytes() == picture().tobytes()
    assert "not a readable picture" in found[1]
    assert found[2].getpixel((0, 0)) == (255, 255, 255)
    assert isinstance(found[3], str)


def test_memory_is_bounded_and_given_back():
    memory = Memory(10)
    memory.take(6)
    with pytest.raises(RefusalError, match="under way") as caught:
        memory.take(5)
    assert (caught.value.status, memory.held) == (429, 6)
    memory.give(6)
    memory.take(10)
    assert memory.held == 10
