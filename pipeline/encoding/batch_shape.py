"""How many images to encode at once on this machine: measured once, then fixed for the whole export."""

from __future__ import annotations

import time

import torch

from stage1_tokenizer.tokenizer import TokenizerModel

LARGEST = 512
ENOUGH = 0.97
"""a smaller batch is taken if it reaches this share of the best speed"""
_SHORTEST = 0.2  # seconds of one measurement


def fastest_batch_size(tokenizer: TokenizerModel, seconds: float = 10.0) -> int:
    """The smallest batch that is about as fast as any, doubling from 1 until that no longer helps.

    Args:
        tokenizer: on the device that will be used.
        seconds: the measurement ends before the next larger batch would make it much longer than this.
    """
    speeds: dict[int, float] = {}
    began, size = time.perf_counter(), 1
    while size <= LARGEST:
        try:
            speeds[size] = _images_per_second(tokenizer, size)
        except torch.OutOfMemoryError:
            break
        twice_as_long = 4 * size / speeds[size]  # two runs of the next size
        if max(speeds, key=speeds.__getitem__) < size // 2 or time.perf_counter() - began + twice_as_long > seconds:
            break
        size *= 2
    best = max(speeds.values(), default=0.0)
    return next((size for size, speed in speeds.items() if speed >= ENOUGH * best), 1)


def _images_per_second(tokenizer: TokenizerModel, size: int) -> float:
    device = next(tokenizer.parameters()).device
    preprocess = tokenizer.preprocess
    shape = (size, preprocess.n_channels, preprocess.height, preprocess.width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(device)
    tokenizer.encode(images).cpu()  # the first run of a shape also chooses how to compute it
    runs, began = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - began < _SHORTEST:
        tokenizer.encode(images).cpu()
        runs += 1
    return runs * size / (time.perf_counter() - began)
