"""NumPy files of other programs: read, or refused with one message that names them, for any content."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mutations

from mixmo.errors import InputError
from mixmo.evaluation.predictions import Predictions, read_predictions
from mixmo.evaluation.results import evaluate_predictions
from mixmo.evaluation.robustness import open_npy


def savez(**content):
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def compressed(**content):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


TARGETS = np.array([0, 2])
LOGITS = np.array([[0.5, 0.1, -1.0], [2.0, 0.0, 0.25]], np.float32)
WHOLE = savez(logits=LOGITS, targets=TARGETS, classes=np.array(["a", "b", "c"]))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("arrays") / "theirs.npz"


def outcome(read, file):
    """Return what was read, or the error message."""
    try:
        return read(file)
    except InputError as error:
        return str(error)


def refused(file):
    text = outcome(read_predictions, file)
    assert text.startswith(str(file)) and "\n" not in text
    return text


@settings(max_examples=300)
@given(content=mutations(WHOLE) | mutations(compressed(logits=LOGITS, targets=TARGETS)))
def test_damaged_bytes_are_refused_or_read(file, content):
    file.write_bytes(content)
    found = outcome(read_predictions, file)
    if isinstance(found, str):
        assert found.startswith(str(file)) and "\n" not in found
    else:
        assert isinstance(found, Predictions) and found.logits.isfinite().all()
        assert len(found.targets) == len(found.logits) and len(found.classes) == found.logits.shape[2]


def members(**content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, each in content.items():
            archive.writestr(f"{name}.npy", each)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (savez(logits=LOGITS, targets=np.array([0, None], object)), "cannot be read as an .npz file: Object arrays"),
        (savez(logits=LOGITS[:0], targets=TARGETS[:0]), "predictions of shape (0, 3)"),
        (savez(logits=LOGITS[:, :0], targets=TARGETS), "predictions of shape (2, 0)"),
        (savez(logits=np.float32(1), targets=TARGETS), "predictions of shape ()"),
        (savez(logits=LOGITS, targets=np.array(1)), "targets have shape ()"),
        (savez(logits=LOGITS, targets=TARGETS[:1]), "targets have shape (1,)"),
        (savez(logits=LOGITS, targets=TARGETS[:, None]), "targets have shape (2, 1)"),
        (savez(logits=np.where(LOGITS > 1, np.nan, LOGITS), targets=TARGETS), "logits in row 1 are not finite"),
        (savez(logits=np.where(LOGITS > 1, np.inf, LOGITS), targets=TARGETS), "logits in row 1 are not finite"),
        (savez(logits=LOGITS, targets=np.array([0, 2**64 - 1], np.uint64)), "in row 1 is out of range"),
        (savez(logits=LOGITS, targets=np.array([-(2**63), 0])), "in row 0 is out of range"),
        (savez(logits=LOGITS.astype(complex), targets=TARGETS), "complex128; they must be floats (N, K)"),
        (savez(logits=LOGITS, targets=TARGETS, classes=np.array("abc")), "classes of shape ()"),
        (savez(logits=LOGITS, targets=TARGETS, classes=np.zeros((3, 1))), "classes of shape (3, 1)"),
        (savez(logits=LOGITS, targets=TARGETS, classes=np.zeros(3)), "float64; they must be 3 names"),
        (savez(logits=LOGITS, targets=TARGETS, classes=np.array([b"\xff"] * 3)), "cannot be read"),
        (savez(probabilities=np.full((2, 3), np.nan), targets=TARGETS), "probabilities in row 0 are not finite"),
        (savez(probabilities=LOGITS, logits=LOGITS, targets=TARGETS), "it needs targets, and logits or probabilities"),
        (members(logits=b"no array", targets=b""), "has predictions of shape ()"),
        (WHOLE[:-30], "cannot be read as an .npz file"),
        (b"", "cannot be read as an .npz file"),
    ],
)
def test_what_holds_no_predictions_is_one_sentence(file, content, message):
    file.write_bytes(content)
    assert message in refused(file)


def test_numbers_too_large_to_average_are_one_sentence(file):
    file.write_bytes(savez(logits=np.full((2, 2, 3), 1.7e308), targets=TARGETS))
    text = outcome(evaluate_predictions, file)
    assert text.startswith(f"{file}: ") and "are not finite" in text and "\n" not in text


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["<f2", ">f4", "<f4", ">f8", "g"]),
    order=st.sampled_from("CF"),
    numbers=st.sampled_from(["i1", ">i4", "u8"]),
)
def test_any_kind_of_numbers_is_read(file, kind, order, numbers):
    file.write_bytes(savez(logits=np.array(LOGITS, kind, order=order), targets=TARGETS.astype(numbers)))
    found = read_predictions(file)
    np.testing.assert_allclose(found.logits[:, 0], LOGITS, rtol=1e-3)
    assert found.targets.tolist() == [0, 2] and found.classes == ["0", "1", "2"]


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_npy_files_are_refused_or_read(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fog.npy"
    np.save(file, np.zeros((5, 2, 2, 3), np.uint8))
    file.write_bytes(data.draw(mutations(file.read_bytes())))
    found = outcome(open_npy, file)
    if isinstance(found, str):
        assert found.startswith(f"{file} cannot be read as an .npy file") and "\n" not in found
    else:
        assert isinstance(found, np.ndarray)
