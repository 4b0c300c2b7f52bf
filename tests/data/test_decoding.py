"""Real-world images: the network sees what Pillow or NumPy decode, and anything else is refused."""

import io
import logging
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mixmo.data import decoding, messages
from mixmo.data.decoding import FORMATS, image_pixels, starts_like_image, to_size
from mixmo.data.messages import ignore_image_warnings
from mixmo.data.sources import Source, decode
from mixmo.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


class Given:
    """One image of given content."""

    def __init__(self, content):
        self.content = content

    def read(self, index):
        if isinstance(self.content, BaseException):
            raise self.content
        return self.content

    def name(self, index):
        return "given"

    def fingerprint(self, times):
        return ""


def decoded(content, channels=3, size=None):
    return decode(Source(np.zeros(1, np.int64), ["a"], Given(content)), 0, size, channels)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows=b""):
    """A hand-written PNG with an arbitrary header."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(format, orientation):
    """Blocks of one colour survive JPEG; the oracle turns the array."""
    blocks = np.kron(RNG.integers(0, 2, (2, 3)) * 255, np.ones((16, 16))).astype(np.uint8)
    blocks[:16, :16], blocks[:16, 16:32] = 255, 0  # no symmetry
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    seen = decoded(encoded(Image.fromarray(blocks).convert("RGB"), format, exif=exif, **options), 1)[..., 0]
    turned = {
        1: blocks, 2: blocks[:, ::-1], 3: blocks[::-1, ::-1], 4: blocks[::-1],
        5: blocks.T, 6: blocks.T[:, ::-1], 7: blocks[::-1, ::-1].T, 8: blocks.T[::-1],
    }[orientation]  # fmt: skip
    assert seen.shape == turned.shape
    assert np.abs(seen.astype(int) - turned).max() <= 3


def test_damaged_exif_leaves_the_pixels():
    content = encoded(Image.fromarray(PIXELS), "PNG", exif=b"Exif\0\0MM\0*garbage")
    with ignore_image_warnings():
        assert np.array_equal(decoded(content), PIXELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_their_full_range(format, channels):
    values = np.array([[0, 1, 128, 129, 256, 257], [32767, 32768, 65279, 65280, 65407, 65535]], np.uint16)
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    content = encoded(Image.fromarray(values), format)
    assert np.array_equal(decoded(content, channels), np.repeat(expected[..., None], channels, 2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_of_either_order(mode):
    values = np.array([[0, 300, 65535]], np.dtype(">u2" if mode == "I;16B" else "<u2"))
    image = Image.frombytes(mode, (3, 1), values.tobytes())
    assert image_pixels(image, 1).ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("format", ["PNG", "PPM"])
def test_sixteen_bits_in_an_image_of_thirty_two(format):
    """As older versions of Pillow open such files."""
    image = Image.fromarray(np.array([[0, 300, 65535]], np.int32))
    image.format = format
    assert image_pixels(image, 1).ravel().tolist() == [0, 1, 255]


def test_sixteen_bits_of_colour_keep_their_range():
    rows = b"\0" + np.array([[0, 32768, 65535]], ">u2").tobytes()
    assert np.abs(decoded(png(1, 1, 16, 2, rows)).ravel().astype(int) - [0, 128, 255]).max() <= 1


@pytest.mark.parametrize("values", [np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)], ids=["int", "float"])
def test_thirty_two_bits_are_refused(values):
    with pytest.raises(InputError, match=r"given cannot be read: it has Pillow's mode [IF], whose range is not known"):
        decoded(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_show_white(format, channels):
    alpha = RNG.integers(0, 256, (12, 16, 1))
    alpha[:4], alpha[4:8] = 0, 255
    image = Image.fromarray(np.concatenate([PIXELS, alpha.astype(np.uint8)], 2))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    flat = np.round((PIXELS * alpha + 255.0 * (255 - alpha)) / 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(flat).convert("RGB" if channels == 3 else "L")).reshape(12, 16, channels)
    seen = decoded(encoded(image, format, **options), channels).astype(int)
    assert np.abs(seen - expected).max() <= 1
    assert (seen[:4] == 255).all()


def transparent_images():
    grey = Image.fromarray(PIXELS[..., 0] // 2)
    palette = Image.fromarray(PIXELS).quantize(8)
    yield "LA", Image.merge("LA", [grey, Image.new("L", grey.size, 0)]), {}
    yield "L with a colour", Image.new("L", (4, 4), 7), {"transparency": 7}
    yield "RGB with a colour", Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}
    yield "1 with a colour", Image.new("1", (4, 4), 0), {"transparency": 0}
    yield "P with alphas", palette, {"transparency": bytes(256)}
    yield "16 bits with a value", Image.fromarray(np.full((4, 4), 300, np.uint16)), {"transparency": 300}


@pytest.mark.parametrize(
    ("image", "options"), [c[1:] for c in transparent_images()], ids=[c[0] for c in transparent_images()]
)
def test_every_kind_of_transparency_is_seen(image, options):
    content = encoded(image, "PNG", **options)
    assert (decoded(content) == 255).all() and (decoded(content, 1) == 255).all()


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_transparency_of_rare_modes(mode):
    image = Image.new({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode], (4, 4)).convert(mode)
    assert (image_pixels(image, 3) == (255 if mode != "PA" else 0)).all()


def test_a_gif_shows_its_first_frame():
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(content) == [255, 0, 0]).all()


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA"])
def test_other_formats_are_refused(format, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)  # calling it would fail in another way
    with pytest.raises(InputError, match="it is damaged, or not one of PNG, JPEG"):
        decoded(encoded(Image.fromarray(PIXELS), format))


def test_formats_of_cameras_and_the_web_are_read():
    assert set(FORMATS) >= {"PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"}
    for format in FORMATS:
        assert decoded(encoded(Image.fromarray(PIXELS), format)).shape == (12, 16, 3)
    mpo = encoded(Image.fromarray(PIXELS), "MPO", save_all=True, append_images=[Image.fromarray(PIXELS)])
    assert decoded(mpo).shape == (12, 16, 3)


@pytest.mark.parametrize("side", [8200, 12_000, 20_000])
def test_large_images_are_refused_before_their_pixels_are_allocated(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracemalloc.start()
        with (
            ignore_image_warnings(),
            pytest.raises(InputError, match=r"more than 67 megapixels; set the environment variable MIXMO_MAX_MEGAP"),
        ):
            decoded(png(side, side, 1, 0, bytes(1000)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**22


def test_large_files_are_refused_before_they_are_read(tmp_path):
    from mixmo.data.folders import FileImages

    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(2**28 + 1)  # sparse
    source = Source(np.zeros(1), ["a"], FileImages(str(tmp_path), ["big.png"]))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"big\.png cannot be read: it is a file of 256 MiB, more than"):
        decode(source, 0, None, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_narrow_images_do_not_grow_without_end():
    with pytest.raises(InputError, match="it is 1×60000, and would have to be scaled to 224×13440000"):
        decoded(encoded(Image.new("RGB", (60_000, 1)), "PNG"), size=(224, 224))
    assert to_size(np.zeros((1, 60_000, 1), np.uint8), (1, 8)).shape == (1, 8, 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is not enough memory for it"),
        (RuntimeError("odd <_io.BytesIO object at 0x7f12>\n at /src/x.cpp:3"), "odd"),
        (KeyError(), "KeyError"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "No such file or directory"),
    ],
)
def test_whatever_reading_raises_is_one_sentence(error, said):
    with pytest.raises(InputError) as caught:
        decoded(error)
    assert str(caught.value) == f"image given cannot be read: {said}."


def test_pillow_says_nothing_beside(caplog, recwarn):
    content = bytearray(encoded(Image.fromarray(PIXELS), "TIFF"))
    place = content.index(struct.pack("<HHI", 277, 3, 1))  # samples for each pixel
    content[place + 8 : place + 10] = b"\xff\xff"
    level = logging.getLogger("PIL").level
    with ignore_image_warnings(), pytest.raises(InputError):
        decoded(bytes(content))
    assert not caplog.records and not recwarn.list
    assert logging.getLogger("PIL").level == level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(encoded(Image.fromarray(PIXELS), "JPEG")).shape == (12, 16, 3)


CONTENTS = [
    encoded(Image.fromarray(PIXELS).convert(mode), format)
    for format, mode in [
        ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "RGB"),
        ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("PPM", "RGB"),
    ]
]  # fmt: skip


@given(
    content=st.sampled_from(CONTENTS),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    end=st.integers(0, 4000),
    channels=st.sampled_from([1, 3]),
)
def test_damaged_files_are_an_image_or_one_sentence(content, changes, end, channels):
    changed = bytearray(content)
    for place, value in changes:
        changed[place % len(changed)] = value
    _image_or_sentence(bytes(changed[:end]), channels)


@given(content=st.binary(max_size=200))
@example(b"")
@example(b"P6 0 0 255\n")
def test_random_bytes_are_one_sentence(content):
    _image_or_sentence(content, 3)


def _image_or_sentence(content, channels):
    try:
        with ignore_image_warnings():
            pixels = decoded(content, channels, (8, 8))
    except InputError as error:
        text = str(error)
        assert text.startswith("image given cannot be read: ") and "\n" not in text and "0x" not in text
    else:
        assert pixels.shape == (8, 8, channels) and pixels.dtype == np.uint8


def test_files_are_known_by_how_they_start():
    for format in FORMATS:
        assert starts_like_image(encoded(Image.fromarray(PIXELS), format)[: decoding.SIGNATURE]), format
    for text in (b"", b"B", b"BM is no bitmap", b"P", b"Python", b"P5", b"name,label", b"RIFF1234WAVE", b"GIF"):
        assert not starts_like_image(text), text


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_converted_as_pillow_does(mode, channels):
    picture = Image.fromarray(PIXELS).convert(mode)
    expected = np.asarray(picture.convert("RGB" if channels == 3 else "L")).reshape(12, 16, channels)
    assert np.array_equal(decoded(encoded(picture, "TIFF" if mode == "CMYK" else "PNG"), channels), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_are_decoded_as_pillow_does(mode, channels):
    content = encoded(Image.fromarray(PIXELS).convert(mode), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB" if channels == 3 else "L"))
    assert np.array_equal(decoded(content, channels).squeeze(), expected)


@given(height=st.integers(1, 40), width=st.integers(1, 40), canvas=st.integers(1, 24))
def test_odd_sizes_fill_the_canvas(height, width, canvas):
    filled = to_size(np.full((height, width, 3), 77, np.uint8), (canvas, canvas))
    assert filled.shape == (canvas, canvas, 3)
    assert (filled == 77).all()  # no border was filled in


@pytest.fixture
def said(monkeypatch, caplog):
    """Resets the messages that are logged once per process."""
    monkeypatch.setattr(messages, "_LOGGED", set())
    return caplog


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("window", [(1400, 1600), (0, 65535), (-20.5, 3000)])
def test_a_window_of_values_becomes_the_grey_levels(kind, window, said):
    values = RNG.integers(1300, 1700, (9, 7)).astype(kind)
    low, high = window
    exact = np.clip((values.astype(float) - low) / (high - low) * 255, 0, 255)
    seen = decode(Source(np.zeros(1, np.int64), ["a"], Given(encoded(Image.fromarray(values), "TIFF"))), 0, None, 1,
                  window=window)  # fmt: skip
    assert np.abs(seen[..., 0] - exact).max() < 0.5 + 1e-6
    assert len(said.messages) == (window == (0, 65535))  # three grey levels are left
    eight = Image.fromarray(PIXELS)
    assert np.array_equal(image_pixels(eight, 3, window), PIXELS)  # has its range


def test_values_without_a_window_or_that_are_none_are_refused():
    content = encoded(Image.fromarray(np.array([[0.5, np.nan]], np.float32)), "TIFF")
    with pytest.raises(InputError, match=r"mode F, whose range is not known; set data\.window to"):
        image_pixels(content, 1)
    with pytest.raises(InputError, match="values that are not numbers"):
        image_pixels(content, 1, (0, 1))


def test_lost_grey_levels_are_said_once(said):
    narrow = encoded(Image.fromarray(RNG.integers(1452, 1549, (9, 7)).astype(np.uint16)), "PNG")
    wide = encoded(Image.fromarray(RNG.integers(0, 65536, (9, 7)).astype(np.uint16)), "PNG")
    mask = encoded(Image.fromarray((RNG.integers(0, 2, (9, 7)) * 65535).astype(np.uint16)), "PNG")
    for content in (wide, mask):
        image_pixels(content, 1)
    image_pixels(narrow, 1, (1400, 1600))
    assert not said.messages
    for _ in range(2):
        decoded(narrow, 1)
    (text,) = said.messages
    assert text.startswith("given has values from 14") and "set data.window" in text and "of 256 grey" in text


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [("CMYK", "TIFF", {}), ("RGBA", "PNG", {}), ("RGBX", "TIFF", {}), ("RGBX", "TIFF", {"compression": "tiff_lzw"})],
)
def test_four_bands_reach_the_network_or_their_loss_is_said(mode, format, options, said):
    values = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    content = encoded(Image.frombytes(mode, (5, 6), values.tobytes()), format, **options)
    assert np.array_equal(decoded(content, 4), values)
    assert not said.messages
    for channels in (3, 1, 3):
        assert decoded(content, channels).shape == (6, 5, channels)
    if mode == "RGBX":
        assert np.array_equal(decoded(content, 3), values[..., :3])
    assert len(said.messages) == (mode != "RGBA")  # opacity, which white shows through
    assert all(text.startswith("given has four bands") and "data.channels to 4" in text for text in said.messages)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "LA"])
def test_other_bands_than_four_are_refused(mode):
    with pytest.raises(InputError, match=r"it has the bands .*, but data\.channels is 4"):
        image_pixels(Image.new(mode, (4, 4)), 4)
