"""Threads that share a network or a predictor, and what belongs to the whole process."""

import logging
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch

from mixmo.deploy.predictor import Predictor


def answers_of_threads(net, size, calls):
    """Eight threads ask one network for images and for mixtures with masks of their own, eight cases in turn.

    Returns how many of the calls answer as one thread alone does.
    """
    _, height, width = net.encoder_shape(size, size)
    cases = []
    for count in range(1, 9):
        mask = (torch.arange(width) < count * width // 9).float().expand(count, 1, 1, height, width)
        cases.append((torch.randn(count, 2, 3, size, size), torch.cat([mask, 1 - mask], 1)))
    with torch.inference_mode():
        expected = [(net(inputs[:, 0]), net(inputs, masks)) for inputs, masks in cases]

    def ask(number):
        (inputs, masks), (images_logits, logits) = cases[number % 8], expected[number % 8]
        with torch.inference_mode():
            return torch.equal(net(inputs[:, 0]), images_logits) and torch.equal(net(inputs, masks), logits)

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(ask, range(calls)))


def shared_state():
    """Return what belongs to the whole process: draws, filters of warnings, and levels of logs."""
    return torch.get_rng_state().tolist(), list(warnings.filters), logging.getLogger("PIL").level, logging.root.level


def predictions_of_threads(path, images, seconds=None, calls=200):
    """Eight threads ask one predictor for images, and open predictors of their own now and then.

    Returns how many answers were right, how many were wrong, and whether the process is as it was.
    """
    predictor = Predictor(path)
    expected = {number: predictor(images[:number]).probabilities for number in range(1, 9)}
    before, end = shared_state(), None if seconds is None else time.monotonic() + seconds

    def ask(thread):
        right = wrong = 0
        while time.monotonic() < end if end else right + wrong < calls // 8:
            number = (thread + right + wrong) % 8 + 1
            own = Predictor(path) if (right + wrong) % 20 == 0 else predictor
            same = torch.equal(own(images[:number]).probabilities, expected[number])
            right, wrong = right + same, wrong + (not same)
        return right, wrong

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    return sum(right for right, _ in found), sum(wrong for _, wrong in found), shared_state() == before
