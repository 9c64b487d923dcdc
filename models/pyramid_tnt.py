"""PyramidTNT (arXiv 2201.00978): patch tokens with sixteen word tokens each, in four stages.

"Outer" is the transformer over patches, "inner" the one over the words of a patch. Only the first
block of a stage has an inner part, the first two where the stage is deeper than six.
"""

import torch
from torch import nn

WORDS = 16  # 4x4 in every patch


class Attention(nn.Module):
    """Keys and values come from tokens pooled by `pool` in both directions."""

    def __init__(self, dim, heads, pool=1):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, dim * 2, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.pool = nn.AvgPool2d(pool, pool) if pool > 1 else None
        if self.pool:
            self.linear = nn.Linear(dim, dim)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x, grid=None, relative_pos=None):
        b, n, c = x.shape
        width = c // self.heads
        q = self.q(x).reshape(b, n, self.heads, width).permute(0, 2, 1, 3)
        if self.pool:
            x = self.pool(x.permute(0, 2, 1).reshape(b, c, *grid))
            x = self.norm(self.linear(x.reshape(b, c, -1).permute(0, 2, 1)))
        kv = self.kv(x).reshape(b, -1, 2, self.heads, width).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        scores = (q @ k.transpose(-2, -1)) * self.scale
        if relative_pos is not None:
            scores = scores + relative_pos
        x = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


def mlp(dim, ratio):
    return nn.Sequential(nn.Linear(dim, dim * ratio), nn.GELU(), nn.Linear(dim * ratio, dim))


class InnerPart(nn.Module):
    """Transformer over the words of each patch, then their projection onto the patch token."""

    def __init__(self, dim, heads, outer_dim, ratio):
        super().__init__()
        # These norms run over all words of a patch together.
        self.norm1 = nn.LayerNorm(WORDS * dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(WORDS * dim)
        self.mlp = mlp(dim, ratio)
        self.proj_norm1 = nn.LayerNorm(WORDS * dim)
        self.proj = nn.Linear(WORDS * dim, outer_dim, bias=False)
        self.proj_norm2 = nn.LayerNorm(outer_dim)

    def forward(self, words, patches):
        b, n, _ = patches.shape

        def normed(norm):
            return norm(words.reshape(b, n, -1)).reshape(b * n, WORDS, -1)

        words = words + self.attn(normed(self.norm1))
        words = words + self.mlp(normed(self.norm2))
        change = self.proj_norm2(self.proj(self.proj_norm1(words.reshape(b, n, -1))))
        return words, patches + change


class Block(nn.Module):
    def __init__(self, dim, heads, pool, ratio, inner):
        super().__init__()
        self.inner = InnerPart(*inner, dim, ratio) if inner else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, pool)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim, ratio)

    def forward(self, words, patches, grid, relative_pos):
        if self.inner:
            words, patches = self.inner(words, patches)
        patches = patches + self.attn(self.norm1(patches), grid, relative_pos)
        return words, patches + self.mlp(self.norm2(patches))


class MergePatches(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, out, 3, 2, 1)

    def forward(self, x, grid):
        b, _, c = x.shape
        x = self.conv(self.norm(x).transpose(1, 2).reshape(b, c, *grid))
        grid = (x.shape[2], x.shape[3])
        return x.reshape(b, -1, grid[0] * grid[1]).transpose(1, 2), grid


class MergeWords(nn.Module):
    """Lays the words of 2x2 patches out as an 8x8 image and halves it."""

    def __init__(self, dim, out):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, out, 3, 2, 1)
        self.out = out

    def forward(self, x, grid):
        c = x.shape[-1]
        x = self.norm(x).reshape(-1, *grid, 4, 4, c)
        columns = [
            torch.cat([x[:, 0::2, column::2], x[:, 1::2, column::2]], 3) for column in (0, 1)
        ]
        x = torch.cat(columns, 4).reshape(-1, 8, 8, c).permute(0, 3, 1, 2)
        return self.conv(x).reshape(-1, self.out, WORDS).transpose(1, 2)


def conv_bn(channels, out, stride):
    return [nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]


class Stem(nn.Module):
    """Words from a map of stride 2, patches from one of stride 8."""

    def __init__(self, dim, inner):
        super().__init__()
        self.common = nn.Sequential(*conv_bn(3, inner * 2, 2))
        self.words = nn.Sequential(*conv_bn(inner * 2, inner, 1))
        self.patches = nn.Sequential(
            *conv_bn(inner * 2, inner * 4, 2), *conv_bn(inner * 4, inner * 8, 2), *conv_bn(inner * 8, dim, 1)
        )
        self.unfold = nn.Unfold(kernel_size=4, stride=4)
        self.inner = inner

    def forward(self, x):
        b, _, h, w = x.shape
        grid = (h // 8, w // 8)
        n = grid[0] * grid[1]
        x = self.common(x)
        words = self.unfold(self.words(x)).transpose(1, 2)
        words = words.reshape(b * n, self.inner, WORDS).transpose(1, 2)
        patches = self.patches(x).permute(0, 2, 3, 1).reshape(b, n, -1)
        return words, patches, grid


class PyramidTNT(nn.Module):
    def __init__(self, image=(256, 256), depths=(2, 8, 4, 2), dims=(128, 256, 512, 512), heads=(4, 8, 16, 16),
                 inner_dims=(8, 16, 32, 32), inner_heads=(2, 4, 8, 8), pools=(4, 2, 1, 1), ratio=4,
                 classes=1000):
        super().__init__()
        self.stem = Stem(dims[0], inner_dims[0])
        grid = (image[0] // 8, image[1] // 8)
        self.outer_pos = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dims[0]))
        self.inner_pos = nn.Parameter(torch.zeros(1, WORDS, inner_dims[0]))
        self.word_merges, self.patch_merges = nn.ModuleList(), nn.ModuleList()
        self.stages, self.relative_pos = nn.ModuleList(), nn.ParameterList()
        for stage, depth in enumerate(depths):
            if stage:
                self.word_merges.append(MergeWords(inner_dims[stage - 1], inner_dims[stage]))
                self.patch_merges.append(MergePatches(dims[stage - 1], dims[stage]))
                grid = (grid[0] // 2, grid[1] // 2)
            pool = pools[stage]
            inner = (inner_dims[stage], inner_heads[stage])
            with_inner = 2 if depth > 6 else 1
            self.stages.append(nn.ModuleList(
                Block(dims[stage], heads[stage], pool, ratio, inner if i < with_inner else None)
                for i in range(depth)
            ))
            keys = (grid[0] // pool) * (grid[1] // pool)
            self.relative_pos.append(nn.Parameter(torch.zeros(1, heads[stage], grid[0] * grid[1], keys)))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], classes)

    def forward(self, x):
        words, patches, grid = self.stem(x)
        words = words + self.inner_pos
        patches = patches + self.outer_pos
        for stage, blocks in enumerate(self.stages):
            if stage:
                words = self.word_merges[stage - 1](words, grid)
                patches, grid = self.patch_merges[stage - 1](patches, grid)
            for block in blocks:
                words, patches = block(words, patches, grid, self.relative_pos[stage])
        return self.head(self.norm(patches).mean(dim=1))
