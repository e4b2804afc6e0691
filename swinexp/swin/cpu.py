"""The ways of an eager CPU: the same values as the plain code, with fewer copies.

Compilers, autocast and GPUs know ways of their own; `by_hand` is the one place that decides. What each of these
brings is in docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def by_hand(x: Tensor) -> bool:
    """Whether to take the ways of this module."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def attend(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention within windows, in place where it can be.

    (B, G, T, 3C), and (N, T, T) or (G, N, T, T) added to the scores -> (B, G, T, C)
    """
    return _Attention.apply(qkv, bias, heads)


class _Attention(torch.autograd.Function):
    """The heads are moved apart once, and their gradients back once."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
        B, G, T, _ = qkv.shape
        q, k, v = (_apart(part) for part in qkv.view(B * G, T, 3, heads, -1).unbind(2))  # each (B·G·N, T, D)
        ctx.scale = q.shape[-1] ** -0.5
        weights = torch.bmm(q, k.transpose(1, 2))  # (B·G·N, T, T)
        scores = weights.view(-1, *bias.shape)
        torch.add(bias, scores, alpha=ctx.scale, out=scores)
        torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(q, k, v, weights, bias)
        out = torch.bmm(weights, v).view(B * G, heads, T, -1)
        return out.transpose(1, 2).reshape(B, G, T, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        q, k, v, weights, bias = ctx.saved_tensors
        B, G, T, C = gradients[0].shape
        D = q.shape[-1]
        out = _apart(gradients[0].reshape(B * G, T, C // D, D))
        qkv = out.new_empty(B, G, T, 3 * C)
        to_q, to_k, to_v = (part.transpose(1, 2) for part in qkv.view(B * G, T, 3, C // D, D).unbind(2))
        to_v.copy_(torch.bmm(weights.transpose(1, 2), out).view_as(to_v))
        scores = torch.bmm(out, v.transpose(1, 2))
        torch._softmax_backward_data(scores, weights, -1, scores.dtype, grad_input=scores)
        to_bias = scores.view(-1, *bias.shape).sum(0) if ctx.needs_input_grad[1] else None
        scores.mul_(ctx.scale)
        to_q.copy_(torch.bmm(scores, k).view_as(to_q))
        to_k.copy_(torch.bmm(scores.transpose(1, 2), q).view_as(to_k))
        return qkv, to_bias, None


def add_to(x: Tensor, images: Tensor, branch: Tensor, factor: float) -> Tensor:
    """`factor` times a branch that only some images have, added to those.

    (B, P, C), (K,) of type int64, (K, P, C) -> (B, P, C)
    """
    return _AddTo.apply(x, images, branch, factor)


class _AddTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, images: Tensor, branch: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(images)
        ctx.factor = factor
        return x.clone().index_add_(0, images, branch, alpha=factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (images,) = ctx.saved_tensors
        return gradients[0], None, gradients[0].index_select(0, images).mul_(ctx.factor), None


def _apart(x: Tensor) -> Tensor:
    """(B·G, T, N, D) -> (B·G·N, T, D)"""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
