"""Swin Transformer in the spelling of its first release.

Differs from timm in what an exporter sees: tokens stay `[B, H*W, C]`, the map is viewed as an image
inside the block, merging takes four strided slices, and the batch of a window reverse is divided out
of the number of windows in Python. Both exporters bake that number in: with an open batch they write
a model that runs at any batch and is right at the batch of the example alone. `set_open_batch` makes
the division one that they can follow.
"""

import torch
from torch import nn


def window_partition(x, size):
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)


def window_reverse(windows, size, h, w, open_batch):
    if open_batch:
        b = windows.shape[0] // (h * w // size // size)
    else:
        b = int(windows.shape[0] / (h * w / size / size))
    x = windows.view(b, h // size, w // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)


def pair_index(size):
    """Row of the bias table for every query and key of a window."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    dy = y[:, None] - y[None, :] + size - 1
    dx = x[:, None] - x[None, :] + size - 1
    return dy * (2 * size - 1) + dx


def shift_mask(h, w, size, shift):
    """-100 where a shifted window joins tokens that are not neighbours."""

    def regions(length):
        at = torch.arange(length)
        return (at >= length - size).long() + (at >= length - shift).long()

    region = regions(h)[:, None] * 3 + regions(w)[None, :]
    tiles = window_partition(region[None, :, :, None], size).view(-1, size * size)
    return torch.where(tiles[:, None] != tiles[:, :, None], -100.0, 0.0)


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class WindowAttention(nn.Module):
    def __init__(self, dim, size, heads):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        self.register_buffer("relative_position_index", pair_index(size))
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x, mask=None):
        rows, n, c = x.shape
        qkv = self.qkv(x).reshape(rows, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * self.scale
        scores = q @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(rows // count, count, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, n, n)
        x = (self.softmax(scores) @ v).transpose(1, 2).reshape(rows, n, c)
        return self.proj(x)


class Block(nn.Module):
    def __init__(self, dim, grid, heads, size, shift, mlp_ratio):
        super().__init__()
        if min(grid) <= size:
            size, shift = min(grid), 0
        self.grid, self.size, self.shift = grid, size, shift
        self.open_batch = False
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, size, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.register_buffer("attn_mask", shift_mask(*grid, size, shift) if shift else None)

    def forward(self, x):
        h, w = self.grid
        b, _, c = x.shape
        shortcut = x
        x = self.norm1(x).view(b, h, w, c)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, self.size).view(-1, self.size * self.size, c)
        windows = self.attn(windows, self.attn_mask).view(-1, self.size, self.size, c)
        x = window_reverse(windows, self.size, h, w, self.open_batch)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(b, h * w, c)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, grid, dim):
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        h, w = self.grid
        b, _, c = x.shape
        x = x.view(b, h, w, c)
        corners = [x[:, dy::2, dx::2, :] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))]
        x = torch.cat(corners, -1).view(b, -1, 4 * c)
        return self.reduction(self.norm(x))


class SwinOriginal(nn.Module):
    def __init__(self, image=(224, 224), patch=4, dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24),
                 window=7, mlp_ratio=4, classes=1000):
        super().__init__()
        grid = (image[0] // patch, image[1] // patch)
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm0 = nn.LayerNorm(dim)
        layers = []
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(PatchMerging(grid, dim))
                grid, dim = (grid[0] // 2, grid[1] // 2), dim * 2
            for i in range(depth):
                shift = window // 2 if i % 2 else 0
                layers.append(Block(dim, grid, heads[stage], window, shift, mlp_ratio))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(dim, classes)

    def set_open_batch(self, value):
        for module in self.modules():
            if isinstance(module, Block):
                module.open_batch = value

    def forward(self, x):
        x = self.norm0(self.proj(x).flatten(2).transpose(1, 2))
        x = self.norm(self.layers(x))
        return self.head(torch.flatten(self.avgpool(x.transpose(1, 2)), 1))
