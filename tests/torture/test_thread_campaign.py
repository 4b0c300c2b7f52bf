"""One network, many threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

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
    _, height, width = net.encoder_shape(size, size)
    cases = []
    for count in range(1, 9):
        mask = (torch.arange(width) < count * width // 9).float().expand(2, 1, 1, height, width)
        cases.append((torch.randn(2, 2, 3, size, size), torch.cat([mask, 1 - mask], 1)))
    with torch.inference_mode():
        expected = [(net(inputs[:, 0]), net(inputs, masks)) for inputs, masks in cases]

    def ask(number):
        (inputs, masks), (images_logits, logits) = cases[number % 8], expected[number % 8]
        with torch.inference_mode():
            return torch.equal(net(inputs[:, 0]), images_logits) and torch.equal(net(inputs, masks), logits)

    with ThreadPoolExecutor(8) as pool:
        right = sum(pool.map(ask, range(1000)))
    with capsys.disabled():
        print(f"\n{name}: {right} of 1000 calls from eight threads are right")
    assert right == 1000
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
