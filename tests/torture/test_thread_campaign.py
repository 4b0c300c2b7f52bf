"""One network, many threads."""

import pytest
import torch
from conftest import answers_of_threads

import mixmo


@pytest.mark.torture
@pytest.mark.parametrize("name", ["wide_resnet10_1", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_eight_threads_share_a_network(name, capsys):
    """1,000 calls with images and mixtures of their own masks, all as one thread alone answers."""
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
