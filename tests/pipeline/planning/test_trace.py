"""Bytes that live and work that is done, counted without memory."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.planning.trace import BACKWARD, Trace

KIB = 1024


def test_bytes_count_from_an_operation_until_the_last_tensor_is_gone() -> None:
    with Trace() as trace:
        one = torch.empty(KIB, dtype=torch.uint8, device="meta")
        view, other = one.view(2, -1), torch.empty(2 * KIB, dtype=torch.uint8, device="meta")
        assert trace.live["other"] == 3 * KIB
        del one
        assert trace.live["other"] == 3 * KIB  # the view still holds it
        del view, other
    assert trace.live["other"] == 0 and trace.peak == 3 * KIB and trace.at_peak["other"] == 3 * KIB


def test_parts_are_those_of_the_module_that_computes() -> None:
    with torch.device("meta"):
        first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    with Trace() as trace:
        trace.follow(first, "first")
        trace.follow(second, "second")
        x = torch.empty(32, 8, device="meta")
        hidden = first(x)
        out = second(hidden)
        assert +trace.live == {"other": 32 * 8 * 4, "first": 32 * 16 * 4, "second": 32 * 4 * 4}
        out.sum().backward()
        assert trace.largest[BACKWARD] > 0
        trace.relabel(hidden, "kept")
    assert trace.live["first"] == 0 and trace.live["kept"] == 32 * 16 * 4


def test_work_is_products_and_bytes_of_operations_that_compute() -> None:
    with Trace() as trace:
        a = torch.empty(4, 8, device="meta")
        b = torch.empty(8, 2, device="meta", dtype=torch.float32)
        trace.work.clear()
        a.T.T @ b  # views are free
        a.bfloat16() @ b.bfloat16()
        nn.functional.conv2d(torch.empty(1, 3, 8, 8, device="meta"), torch.empty(5, 3, 3, 3, device="meta"))
    products = [each for each in trace.work if each.flops]
    assert [each.kind for each in products] == ["product", "narrow", "convolution"]
    assert [each.flops for each in products] == [128, 128, 2 * 5 * 27 * 36]
    assert products[0].n_bytes == 4 * (32 + 16 + 8) == 2 * products[1].n_bytes


def test_a_step_may_ask_for_values_and_gets_plausible_ones() -> None:
    with Trace():
        x = torch.empty(3, device="meta")
        assert float(x.sum()) == 1.0 and bool((x > 0).all()) and torch.equal(x, x)
        assert not bool((x < 0).any()) and int((x < 0).sum()) == 0
