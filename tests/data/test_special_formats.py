"""Files that Pillow cannot read, written by other libraries: the network sees their values."""

import io
import sys

import numpy as np
import pillow_heif
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from mixmo.data import messages
from mixmo.data.decoding import SIGNATURE, image_pixels, starts_like_image
from mixmo.data.folders import SUFFIXES, walk
from mixmo.data.special_formats import read_tiff
from mixmo.errors import InputError

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 65536, (6, 5, 13), dtype=np.uint16)
SCALED = np.round(BANDS / 65535 * 255)


@pytest.fixture
def said(monkeypatch, caplog):
    """Resets the messages that are logged once per process."""
    monkeypatch.setattr(messages, "_LOGGED", set())
    return caplog


def tiff(values, **options):
    tifffile.imwrite(file := io.BytesIO(), values, **options)
    return file.getvalue()


def npy(values):
    np.save(file := io.BytesIO(), values)
    return file.getvalue()


PLANES = np.moveaxis(BANDS, 2, 0)
LAYOUTS = {
    "interleaved": tiff(BANDS, photometric="minisblack", planarconfig="contig"),
    "planes": tiff(PLANES, photometric="minisblack", planarconfig="separate"),
    "pages": tiff(PLANES, photometric="minisblack"),
    "tiles": tiff(BANDS, photometric="minisblack", planarconfig="contig", tile=(16, 16)),
    "deflate": tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib", predictor=True),
    "big": tiff(BANDS, photometric="minisblack", planarconfig="contig", bigtiff=True, byteorder=">"),
    "rows": npy(BANDS),
    "bands first": npy(PLANES),
    "other order": npy(BANDS.astype(">u2")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_thirteen_bands_of_sixteen_bits(layout):
    assert np.array_equal(image_pixels(LAYOUTS[layout], 13), SCALED)
    low, high = 1000, 5095
    window = np.clip((BANDS.astype(float) - low) / (high - low) * 255, 0, 255)
    assert np.abs(image_pixels(LAYOUTS[layout], 13, (low, high)) - window).max() <= 0.5 + 1e-6
    assert starts_like_image(LAYOUTS[layout][:SIGNATURE])


@pytest.mark.parametrize(("layout", "said"), [("interleaved", "13"), ("rows", "13"), ("planes", "13")])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_bands_are_not_dropped_in_silence(layout, said, channels):
    with pytest.raises(InputError, match=rf"shape .*{said}.*do not match data\.channels, {channels}"):
        image_pixels(LAYOUTS[layout], channels)


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_few_bands(count, kind):
    values = RNG.integers(0, np.iinfo(kind).max, (7, 9, count)).astype(kind)
    exact = values if kind == np.uint8 else values / 257
    for content in (tiff(values, photometric="minisblack", planarconfig="contig"), npy(values), values):
        seen = image_pixels(content, count)
        assert seen.shape == (7, 9, count)
        assert np.abs(seen - exact).max() < 1  # of four bands of 16 bits Pillow takes the upper 8


def test_opacity_does_not_hide_that_few_levels_are_left(said):
    values = RNG.integers(0, 4096, (16, 16, 4)).astype(np.uint16)
    image_pixels(tiff(values, photometric="rgb"), 3)
    (text,) = said.messages
    assert "these are 15 at most" in text


@pytest.mark.parametrize("count", [3, 4])
def test_a_window_sees_all_bits_of_several_bands(count, said):
    values = RNG.integers(0, 4096, (16, 16, count)).astype(np.uint16)
    content = tiff(values, photometric="rgb", extrasamples=["unassalpha"] * (count - 3))
    seen = image_pixels(content, count, (0, 4095))
    assert np.abs(seen - values / 4095 * 255).max() <= 0.5 + 1e-6 and not said.messages
    image_pixels(content, count)
    (text,) = said.messages
    assert "of which Pillow reads the upper 8, and these are 15 at most" in text and "data.window" in text


@pytest.mark.parametrize("values", [np.full((4, 4), 700, np.int16), np.full((4, 4, 3), 0.5)])
def test_arrays_of_other_types_take_a_window(values):
    with pytest.raises(InputError, match=rf"values are {values.dtype}, whose range is not known; set data\.window to"):
        image_pixels(npy(values), 3)
    assert (image_pixels(npy(values), 3, (0, 2 * values.max())) == 128).all()


def test_python_objects_in_an_array_are_not_loaded():
    np.save(file := io.BytesIO(), np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        image_pixels(file.getvalue(), 1)


def test_a_stack_of_images_is_refused():
    stack = tiff(RNG.integers(0, 9, (2, 4, 6, 5)).astype(np.uint16), photometric="minisblack")
    with pytest.raises(InputError, match="save one image per file"):
        read_tiff(stack, 5, lambda: "it")


@pytest.mark.parametrize(
    ("module", "content", "said"),
    [
        ("tifffile", LAYOUTS["interleaved"], r"it is a TIFF file .* takes tifffile; `pip install 'mixmo\[tiff\]'`"),
        ("pydicom", bytes(128) + b"DICM", r"it is a DICOM file, which takes pydicom; `pip install 'mixmo\[dicom\]'`"),
        ("pillow_heif", b"\0\0\0\x18ftypheic" + bytes(8), r"it is a HEIC file, .*; `pip install 'mixmo\[heic\]'`"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module, content, said, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=said):
        image_pixels(content, 3)


def test_heic_is_seen_upright():
    pixels = np.kron(np.array([[0, 80], [160, 240]]), np.ones((32, 48))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = pillow_heif.from_pillow(Image.fromarray(pixels).convert("RGB"))
    picture.save(file := io.BytesIO(), quality=95, exif=exif.tobytes())
    assert starts_like_image(file.getvalue()[:SIGNATURE])
    seen = image_pixels(file.getvalue(), 3)
    assert seen.shape == (96, 64, 3) and np.abs(seen.astype(int) - np.rot90(pixels, -1)[..., None]).max() <= 8
    with pytest.raises(Exception, match=r"\w"):
        image_pixels(file.getvalue()[:200], 3)


def dicom(values, kind="MONOCHROME2", bits=12, **more):
    """The content of a DICOM file of values (H, W)."""
    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, kind
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for key, value in more.items():
        setattr(file, key, value)
    pydicom.dcmwrite(content := io.BytesIO(), file, enforce_file_format=True)
    return content.getvalue()


STORED = RNG.integers(0, 4096, (6, 8)).astype(np.uint16)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}
VIEW = {"WindowCenter": 40, "WindowWidth": 400}


def table(bits):
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, bits], [int((2**bits - 1) * (n / 4095) ** 2) for n in range(4096)]
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return {"VOILUTSequence": pydicom.Sequence([item])}


@pytest.mark.parametrize(
    ("more", "low", "high"),
    [
        (CT | VIEW, -1024, 3071),
        (VIEW | {"WindowWidth": [400, 80], "WindowCenter": [40, 40]}, 0, 4095),
        (CT | VIEW | {"VOILUTFunction": "SIGMOID"}, -1024, 3071),
        (CT | VIEW | {"VOILUTFunction": "LINEAR_EXACT"}, -1024, 3071),
        (table(10), 0, 1023),
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_is_seen_as_it_asks_to_be(more, low, high, kind):
    """The oracle is pydicom's windowing, over the range of the stored bits or of the table."""
    content = dicom(STORED, kind, **more)
    file = pydicom.dcmread(io.BytesIO(content))
    shown = (apply_voi_lut(apply_modality_lut(STORED, file), file) - low) / (high - low) * 255
    expected = 255 - shown if kind == "MONOCHROME1" else shown
    assert np.abs(image_pixels(content, 1)[..., 0] - expected).max() <= 0.5 + 1e-6


def test_a_window_of_ones_own_is_in_the_units_of_the_file(said):
    content = dicom(STORED, **CT, **VIEW)
    expected = (STORED - 1024.0 + 1100) / 4200 * 255
    assert np.abs(image_pixels(content, 3, (-1100, 3100))[..., 1] - expected).max() <= 0.5 + 1e-6
    signed = (STORED.astype(np.int16) - 2048).astype(np.int16)
    assert np.abs(image_pixels(dicom(signed, **CT), 1)[..., 0] - STORED / 4095 * 255).max() <= 0.5 + 1e-6
    assert not said.messages


@pytest.mark.parametrize(
    ("name", "shape"), [("SC_rgb_rle.dcm", (100, 100, 3)), ("examples_palette.dcm", (350, 800, 3))]
)
def test_colours_of_dicom_files(name, shape):
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip("not among pydicom's files")
    with open(found, "rb") as file:
        seen = image_pixels(file.read(), 3)
    assert seen.shape == shape and seen.std(axis=2).max() > 0


def in_groups(**values):
    """Sequences of functional groups, in which files of several frames keep what others have at the top."""
    group = pydicom.Dataset()
    for name, keys in {"PixelValueTransformationSequence": CT, "FrameVOILUTSequence": VIEW}.items():
        item = pydicom.Dataset()
        for key in keys:
            setattr(item, key, values[key])
        setattr(group, name, pydicom.Sequence([item]))
    return pydicom.Sequence([group])


def test_units_and_window_of_frames_are_those_of_the_file():
    other = in_groups(RescaleSlope=3, RescaleIntercept=7, WindowCenter=1, WindowWidth=2)
    for options in (
        {"SharedFunctionalGroupsSequence": in_groups(**CT, **VIEW)},
        {"SharedFunctionalGroupsSequence": other, "PerFrameFunctionalGroupsSequence": in_groups(**CT, **VIEW)},
    ):
        enhanced, plain = dicom(STORED, **options), dicom(STORED, **CT, **VIEW)
        for window in (None, (-160, 240)):
            assert np.array_equal(image_pixels(enhanced, 1, window), image_pixels(plain, 1, window))


def test_half_a_rescaling_is_completed_and_a_blank_window_is_none():
    shifted = image_pixels(dicom(STORED, RescaleIntercept=-1024), 1, (-160, 240))
    assert np.array_equal(shifted, image_pixels(dicom(STORED, **CT), 1, (-160, 240)))
    blank = dicom(STORED, WindowCenter=None, WindowWidth=None)
    assert np.array_equal(image_pixels(blank, 1), image_pixels(dicom(STORED), 1))


def test_few_levels_of_a_whole_range_are_not_blamed_on_a_window(said):
    image_pixels(dicom(STORED // 64, bits=16), 1)
    (text,) = said.messages
    assert "the whole range of its bits leaves 1 of 256 grey levels; set data.window" in text


def test_a_window_is_not_applied_to_palette_colours():
    found = get_testdata_file("examples_palette.dcm", download=False)
    if found is None:
        pytest.skip("not among pydicom's files")
    with open(found, "rb") as file:
        content = file.read()
    assert np.array_equal(image_pixels(content, 3, (0, 100)), image_pixels(content, 3))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_planes_of_sixteen_bits_are_colours(byteorder):
    values = RNG.integers(0, 65536, (12, 10, 3)).astype(np.uint16)
    planes = tiff(np.moveaxis(values, 2, 0), photometric="rgb", planarconfig="separate", byteorder=byteorder)
    assert np.abs(image_pixels(planes, 3) - values / 257).max() <= 1


@pytest.mark.parametrize("window", [None, (0, 4095)])
def test_white_is_zero_at_any_depth(window):
    values = RNG.integers(0, 4096, (12, 10)).astype(np.uint16)
    dark, light = (image_pixels(tiff(values, photometric=f"minis{kind}"), 1, window) for kind in ("black", "white"))
    assert np.array_equal(light, 255 - dark) and len(np.unique(dark)) > 10


def test_signed_bytes_are_not_taken_for_unsigned():
    values = np.arange(-60, 60).reshape(10, 12).astype(np.int8)
    content = tiff(values, photometric="minisblack")
    with pytest.raises(InputError, match=r"values are int8, whose range is not known; set data\.window"):
        image_pixels(content, 1)
    assert np.abs(image_pixels(content, 1, (-128, 127))[..., 0] - (values + 128.0)).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_the_same_for_every_reader(orientation):
    values = RNG.integers(0, 65536, (6, 4, 3)).astype(np.uint16)
    content = tiff(values, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    by_pillow, by_tifffile = image_pixels(content, 3), image_pixels(content, 3, (0, 65535))
    assert by_pillow.shape == by_tifffile.shape and np.abs(by_pillow.astype(int) - by_tifffile).max() <= 1


def test_a_window_that_cannot_be_applied_is_refused_and_others_are_in_the_files_units():
    for image in (Image.fromarray(np.zeros((4, 4, 3), np.uint8)), Image.fromarray(np.zeros((4, 4), np.uint8))):
        image.save(file := io.BytesIO(), "PPM")
        assert image_pixels(file.getvalue(), 3, (0, 9)).max() == 0  # 8 bits have no window
    values = RNG.integers(0, 4096, (4, 6)).astype(">u2")
    grey = b"P5 6 4 4095\n" + values.tobytes()
    assert (
        np.abs(image_pixels(grey, 1, (1000, 3000))[..., 0] - ((values - 1000.0) / 2000 * 255).clip(0, 255)).max() <= 1
    )
    floats = b"Pf 6 4 -1.0\n" + np.flipud(values).astype("<f4").tobytes()
    assert np.abs(image_pixels(floats, 1, (1000, 3000)).astype(int) - image_pixels(grey, 1, (1000, 3000))).max() <= 1
    colours = b"P6 2 4 4095\n" + values.tobytes()
    with pytest.raises(InputError, match=r"several bands of 16 bits, .* so data\.window does not apply; save it as a"):
        image_pixels(colours, 3, (1000, 3000))


def test_a_dicom_file_without_an_image_is_refused():
    file = pydicom.dcmread(io.BytesIO(dicom(STORED)))
    del file.PixelData
    pydicom.dcmwrite(content := io.BytesIO(), file, enforce_file_format=True)
    with pytest.raises(InputError, match="a DICOM file without an image"):
        image_pixels(content.getvalue(), 1)


def test_files_of_sensors_are_found_in_folders(tmp_path):
    contents = {"a.npy": npy(STORED), "b.DCM": b"", "c.heic": b"", "IM0001": dicom(STORED), "d": npy(STORED), "e": b"e"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert dict(walk(str(tmp_path))) == {name: "other" if name == "e" else "image" for name in contents}
    assert {".tif", ".npy", ".dcm", ".heic"} <= set(SUFFIXES)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "form", [{"photometric": "rgb", "extrasamples": ["unspecified"]},
             {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"] * 3}]
)  # fmt: skip
def test_a_fourth_band_that_is_not_opacity_is_left_out(monkeypatch, caplog, form, bits):
    monkeypatch.setattr(messages, "_LOGGED", set())
    values = RNG.integers(0, 256, (20, 24, 4))
    content = tiff((values * (257 if bits == 16 else 1)).astype(f"uint{bits}"), **form)
    assert np.array_equal(image_pixels(content, 3), values[..., :3])
    assert "has four bands, of which the fourth is left out; set data.channels to 4" in caplog.text


def test_a_fourth_band_of_an_array_is_opacity_and_that_is_said(monkeypatch, caplog):
    monkeypatch.setattr(messages, "_LOGGED", set())
    assert image_pixels(np.zeros((4, 4, 4), np.uint8), 3).min() == 255  # transparent black, on white
    assert "the fourth is used as opacity; if it is not, set data.channels to 4" in caplog.text
