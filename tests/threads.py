"""Threads that share a network or a predictor, and the global state of the process."""

import logging
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch

from mixmo.deploy.predictor import Predictor


def answers_of_threads(net, size, calls):
    """Call one network from eight threads with images and with differently masked mixtures, eight cases in turn.

    Returns how many calls give the same result as a single thread.
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
    """Return the process's global state: random generators, warning filters and log levels."""
    return torch.get_rng_state().tolist(), list(warnings.filters), logging.getLogger("PIL").level, logging.root.level


def predictions_of_threads(path, images, seconds=None, calls=200):
    """Call one predictor from eight threads, which sometimes open other predictors.

    Returns the number of correct and wrong predictions, and whether the global state is unchanged.
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
