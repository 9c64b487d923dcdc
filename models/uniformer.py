"""UniFormer for images (arXiv 2201.09450): two stages of convolution blocks, two of attention blocks."""

from functools import partial

from torch import nn

_norm = partial(nn.LayerNorm, eps=1e-6)


def depthwise(dim, size):
    return nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim)


class ConvBlock(nn.Module):
    """Local aggregation: a depthwise 5x5 convolution between two 1x1 takes the place of attention."""

    def __init__(self, dim, mlp_ratio):
        super().__init__()
        self.position = depthwise(dim, 3)
        self.norm1 = nn.BatchNorm2d(dim)
        self.mix = nn.Sequential(nn.Conv2d(dim, dim, 1), depthwise(dim, 5), nn.Conv2d(dim, dim, 1))
        self.norm2 = nn.BatchNorm2d(dim)
        hidden = dim * mlp_ratio
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, x):
        x = x + self.position(x)
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        # The scale comes after the matmul, as in the published code.
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class AttentionBlock(nn.Module):
    def __init__(self, dim, heads, mlp_ratio):
        super().__init__()
        self.position = depthwise(dim, 3)
        self.norm1 = _norm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = _norm(dim)
        hidden = dim * mlp_ratio
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x):
        x = x + self.position(x)
        b, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).reshape(b, c, h, w)


class PatchEmbed(nn.Module):
    def __init__(self, channels, dim, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)
        self.norm = _norm(dim)

    def forward(self, x):
        x = self.proj(x)
        b, _, h, w = x.shape
        x = self.norm(x.flatten(2).transpose(1, 2))
        return x.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()


class UniFormer(nn.Module):
    """`depths` and `dims` of the stages; the first `conv_stages` of them hold convolution blocks."""

    def __init__(self, depths=(3, 4, 8, 3), dims=(64, 128, 320, 512), head_dim=64, mlp_ratio=4,
                 conv_stages=2, classes=1000):
        super().__init__()
        layers, channels = [], 3
        for stage, (depth, dim) in enumerate(zip(depths, dims)):
            layers.append(PatchEmbed(channels, dim, 2 if stage else 4))
            for _ in range(depth):
                if stage < conv_stages:
                    layers.append(ConvBlock(dim, mlp_ratio))
                else:
                    layers.append(AttentionBlock(dim, dim // head_dim, mlp_ratio))
            channels = dim
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.norm(self.layers(x))
        return self.head(x.flatten(2).mean(-1))
