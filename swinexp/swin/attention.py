"""Multi-head self-attention within windows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinexp.swin import operators
from swinexp.swin.cpu import attend, by_hand
from swinexp.swin.layers import DepthwiseConv
from swinexp.swin.options import Attention
from swinexp.swin.windows import from_table, gather, log_spaced_offsets, pairs_by_offset, relative_position_index

POSITION_HIDDEN = 512  # width of the network that makes the continuous bias, as in Swin V2's code
MIMETIC_QK = (0.7, 0.7)  # of the noise and the identity in q·k, and in v·proj, as its paper has them for CIFAR-10
MIMETIC_VP = (0.4, -0.4)
LOGIT_SCALE = (math.log(10), math.log(100))  # where the logarithm of the cosine's factor begins, and its largest
SHORTEST = 1e-3  # that cosine attention divides by: a token of zeros (an even patch) has no gradient of 1e12


class WindowAttention(nn.Module):
    """Every token of a window attends to every other, with a bias for the offset between them.

    similarity  dot         q·k / √D (arXiv 2103.14030)
                cosine      their cosine, times a learnt factor of at most 100; no bias on k (arXiv 2111.09883)
                qk_norm     q·k / √D of normalised q and k (arXiv 2302.05442)
                local       q·k times a learnt factor; the mask leaves out the token itself (arXiv 2112.13492)
    position    table       a learnt value for each offset and head (arXiv 2103.14030)
                continuous  the same, made from log-spaced offsets by a small network (arXiv 2111.09883)
                none

    With `lepe`, a 3×3 convolution of the values on the map, `grid`, is added to the output (arXiv 2107.00652).
    `table` is the window whose offsets the table holds, at least `window`.
    """

    relative_position_index: Tensor
    pairs: Tensor
    relative_coords_table: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: tuple[int, int],
        window: int,
        table: int,
        attention: Attention,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.has_kernel = attention.similarity == "dot" and attention.position_bias != "none"
        channels = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.lepe = DepthwiseConv(dim, grid, window, gelu=False) if attention.lepe else None
        if attention.similarity == "cosine":
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), LOGIT_SCALE[0]))
        elif attention.similarity == "qk_norm":
            self.q_norm = nn.LayerNorm(channels, eps=norm_eps, bias=False)
            self.k_norm = nn.LayerNorm(channels, eps=norm_eps, bias=False)
        elif attention.similarity == "local":
            self.temperature = nn.Parameter(torch.full((heads, 1, 1), channels**-0.5))
        if attention.position_bias == "table":
            self.relative_position_bias_table = nn.Parameter(torch.empty((2 * table - 1) ** 2, heads))
        elif attention.position_bias == "continuous":
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, POSITION_HIDDEN), nn.ReLU(), nn.Linear(POSITION_HIDDEN, heads, bias=False)
            )
            self.register_buffer("relative_coords_table", log_spaced_offsets(table), persistent=False)
        self.register_buffer("relative_position_index", relative_position_index(window, table), persistent=False)
        self.register_buffer("pairs", pairs_by_offset(window, table), persistent=False)

    def position_bias(self) -> Tensor | None:
        """(N, T, T), added to the scores"""
        if self.attention.position_bias == "none":
            return None
        if self.attention.position_bias == "table":
            return from_table(self.relative_position_bias_table, self.relative_position_index, self.pairs)
        table: Tensor = self.cpb_mlp(self.relative_coords_table)
        return 16 * from_table(table, self.relative_position_index, self.pairs).sigmoid()

    def score_bias(self, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, position and mask together: (N, T, T), (G, N, T, T), (G, 1, T, T) or nothing"""
        bias = self.position_bias()
        if mask is None:
            return bias
        return mask[:, None] if bias is None else bias + mask[:, None]

    def qkv_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, G, T, C) -> q, k and v, each (B, G, N, T, D)"""
        B, G, T, C = x.shape
        bias: Tensor = self.qkv.bias
        if self.attention.similarity == "cosine":  # k has none
            bias = torch.cat([bias[:C], torch.zeros_like(bias[:C]), bias[2 * C :]])
        qkv = F.linear(x, self.qkv.weight, bias).view(B, G, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        return q, k, v

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """q and k (B, G, N, T, D) -> (B, G, N, T, T), how much each token attends to each; a row's sum is 1."""
        scale = q.shape[-1] ** -0.5
        if self.attention.similarity == "cosine":
            factor = self.logit_scale.clamp(max=LOGIT_SCALE[1]).exp()
            q, k = F.normalize(q, dim=-1, eps=SHORTEST), F.normalize(k, dim=-1, eps=SHORTEST)
            scores = q @ k.transpose(-2, -1) * factor
        elif self.attention.similarity == "qk_norm":
            scores = (self.q_norm(q) * scale) @ self.k_norm(k).transpose(-2, -1)
        elif self.attention.similarity == "local":
            scores = (q * self.temperature) @ k.transpose(-2, -1)
        else:
            scores = (q * scale) @ k.transpose(-2, -1)
        bias = self.score_bias(mask)
        return (scores if bias is None else scores + bias).softmax(-1)

    @torch.no_grad()
    def begin_mimetic(self) -> None:
        """Weights whose products are an identity with noise (arXiv 2305.09828): each head's q·k as near as its rank
        allows, +0.7; proj·v -0.4, so that a token takes from its sum what the others add."""
        C, D = self.proj.weight.shape[0], self.proj.weight.shape[0] // self.heads
        q, k, v = self.qkv.weight.view(3, self.heads, D, C)
        for head in range(self.heads):
            left, values, right = torch.linalg.svd(_near_identity(C, *MIMETIC_QK))
            root = values[:D].sqrt()[:, None]
            q[head], k[head] = root * left[:, :D].T, root * right[:D]
        left, values, right = torch.linalg.svd(_near_identity(C, *MIMETIC_VP))
        root = values.sqrt()
        self.proj.weight.copy_(left * root)
        v.copy_((root[:, None] * right).view_as(v))

    def forward(
        self, x: Tensor, mask: Tensor | None, order: Tensor | None = None, back: Tensor | None = None
    ) -> Tensor:
        """(B, G, T, C) -> (B, G, T, C); `mask` (G, T, T) is added to the scores.

        `order` is where the windows' tokens are in the stage's order, and `back` its inverse, unless they lie so.
        """
        return self.proj(self._mixed(x, mask, order, back))

    def _mixed(self, x: Tensor, mask: Tensor | None, order: Tensor | None, back: Tensor | None) -> Tensor:
        """(B, G, T, C) -> (B, G, T, C), what `proj` gets"""
        if self.has_kernel and by_hand(x):
            bias = self.score_bias(mask)
            assert bias is not None
            qkv = self.qkv(x)
            mixed, values = attend(qkv, bias.contiguous(), self.heads), qkv[..., 2 * x.shape[-1] :]
        else:
            q, k, v = self.qkv_heads(x)
            # Two products rather than the fused op: for windows of 16 tokens they are the faster ones on a CPU.
            mixed = (self.weights(q, k, mask) @ v).transpose(2, 3).reshape(x.shape)
            values = v.transpose(2, 3)
        if self.lepe is None:
            return mixed
        tokens = values.reshape(len(x), -1, x.shape[-1])
        if order is not None and back is not None:
            tokens = gather(self.lepe(gather(tokens, back, order)), order, back)
        else:
            tokens = self.lepe(tokens)
        return mixed + tokens.view(mixed.shape)

    def in_place(self, x: Tensor, order: Tensor | None, mask: Tensor | None) -> Tensor:
        """`forward` on a GPU, where tokens need not be moved into windows: (B, P, C) -> (B, P, C)

        `order` (P,) says where each window's tokens are, unless they follow one another.
        """
        bias = self.score_bias(mask)
        assert bias is not None
        qkv = self.qkv(x)
        mixed = operators.attend(qkv, bias, order, self.heads)
        return self.proj(mixed if self.lepe is None else mixed + self.lepe(qkv[..., 2 * x.shape[-1] :]))


def _near_identity(size: int, noise: float, identity: float) -> Tensor:
    """(size, size), with `identity` on the diagonal and noise of that norm over a row"""
    return noise * torch.randn(size, size) / math.sqrt(size) + identity * torch.eye(size)
