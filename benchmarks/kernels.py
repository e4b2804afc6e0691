"""Microseconds of our Triton kernels on a GPU, beside the plain code that they replace.

    python benchmarks/kernels.py                   the three stages of the record's network, batch 512, bf16

Forward, and backward to all inputs; plain is PyTorch's operations one by one, as without compiling. A copy of the input
is what reading and writing it once takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from machine import first_line, machine
from torch import Tensor
from triton.testing import do_bench

from swinexp.config import typed
from swinexp.run import compose
from swinexp.swin import layers, network
from swinexp.swin.network import Swin
from swinexp.train import build_model, settle


def microseconds(call: Callable[[], object]) -> float:
    return 1e3 * do_bench(call, warmup=5, rep=20, return_mode="median")


def both(module: Callable[[Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> tuple[float, float]:
    """Of a call, and of its gradients."""
    with torch.autocast("cuda", torch.bfloat16):
        forward = microseconds(lambda: module(x).detach())
        out = module(x)
        y = torch.randn_like(out)
        backward = microseconds(lambda: torch.autograd.grad(out, (x, *weights), y, retain_graph=True))
    return forward, backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it measures a GPU, and there is none")
    device = torch.device("cuda", 0)
    run = typed(compose(["experiment=record"]))
    settle(run.trainer, device)
    print(first_line(machine(device)))
    model: Swin = build_model(run, 10).to(device)
    print(f"{'µs: forward, backward':40}{'kernel':>16}{'plain':>16}{'copy':>8}")
    attends, on_gpu = network.attends, layers.on_gpu
    for stage in model.stages():
        block = stage.blocks[-1]
        tokens, (rows, columns) = block.attn.qkv.in_features, block.grid
        x = torch.randn(options.batch, rows * columns, tokens, device=device, dtype=torch.bfloat16)
        conv = block.mlp.conv
        wide = torch.randn(options.batch, rows * columns, conv.conv.in_channels, device=device, dtype=torch.bfloat16)
        for name, module, given, weights in (
            ("attention with its linear layers", block.attention, x, [*block.attn.parameters()]),
            ("convolution and GELU", conv, wide, [*conv.parameters()]),
        ):
            given.requires_grad_()
            figures = []
            for kernels in (True, False):
                network.attends = attends if kernels else lambda *_: False
                layers.on_gpu = on_gpu if kernels else lambda _: False
                figures += [f"{each:8.0f}" for each in both(module, given, weights)]
            copy = microseconds(given.detach().clone)
            label = f"{name}, {rows}×{columns}, {given.shape[2]} channels"
            print(f"{label:40}{''.join(figures)}{copy:8.0f}", flush=True)


if __name__ == "__main__":
    main()
