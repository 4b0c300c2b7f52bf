"""One network, many threads."""

import pytest
import torch
from threads import answers_of_threads, predictions_of_threads

import mixmo
from mixmo.deploy.export import FORMATS, export
from mixmo.evaluation.inference import TrainedRun
from mixmo.runs import RunFolder


@pytest.mark.torture
@pytest.mark.parametrize("name", ["wide_resnet10_1", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_eight_threads_share_a_network(name, capsys):
    """1,000 calls with images and differently masked mixtures, all equal to a single thread's results."""
    torch.manual_seed(0)
    size = 32 if name.startswith("wide") else 64
    options = {"img_size": size} if name.startswith("vit") else {}
    net = mixmo.MixMo(name, num_members=2, num_classes=4, **options).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    right = answers_of_threads(net, size, 1000)
    with capsys.disabled():
        print(f"\n{name}: {right} of 1000 calls from eight threads are right")
    assert right == 1000
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)


@pytest.mark.torture
@pytest.mark.parametrize("form", ["run", "timm", "onnx"])
def test_eight_threads_ask_a_predictor_for_a_minute(gone, new_images, tmp_path, form, capsys):
    """Images from files, in batches of all sizes; sometimes a thread reopens the network."""
    path = gone if form == "run" else export(TrainedRun(RunFolder(gone)), form, tmp_path / FORMATS[form]).path
    right, wrong, unchanged = predictions_of_threads(path, sorted(new_images.iterdir()), seconds=60)
    with capsys.disabled():
        print(
            f"\n{form}: {right} answers right, {wrong} wrong; the process is {'as it was' if unchanged else 'changed'}"
        )
    assert right > 100 and not wrong and unchanged
