"""What the captions' token states say of each part of the picture: a coarse redrawing, trained with the CLIP.

Contrastive training hardly asks which word belongs to which: among the captions of a batch few hold the same words in
another order, so a bag of words finds its picture too (Yuksekgonul et al. 2022, arXiv:2210.01936). A denoiser must
know it, and learns it slowly from frozen states in which it is not told. Redrawing the picture, however coarsely, takes
it: which colour is whose, and who is where.

Legend: B captions, L tokens, D their width, S side of the small picture.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss, normalize, pixel_shuffle

from ldm.text.clip import ClipConfig, build_clip, read
from ldm.text.vocabulary import Vocabulary

PLACES = 4  # parts of the picture a side, each of which asks the tokens what is there
PIXELS = 4  # of the small picture a part and side
DEPTH = 2  # transformer blocks
Mean = Callable[[Tensor], Tensor]  # of a tensor over the processes; of one process, the tensor
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Layout(nn.Module):
    """Token states (B, L, D) to the ``tints`` (B, 3, S, S) of a small picture, S = PLACES * PIXELS.

    It is there in training only.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(PLACES**2, width))
        block = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerDecoder(block, DEPTH, nn.LayerNorm(width))
        self.out = nn.Linear(width, 3 * PIXELS**2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (B, L) bool is True for a token and False for padding."""
        places = self.places.expand(len(tokens), -1, -1)  # (B, PLACES^2, D)
        parts = self.out(self.blocks(places, tokens, memory_key_padding_mask=~mask))  # (B, PLACES^2, 3 PIXELS^2)
        return pixel_shuffle(parts.mT.unflatten(-1, (PLACES, PLACES)), PIXELS)  # (B, 3, S, S)


def tints(image: Tensor, side: int, mean: Mean = torch.clone) -> Tensor:
    """Luma and the two chromas (ITU-R BT.601) of images (B, 3, H, W) shrunk to (B, 3, side, side).

    Each has mean 0 and variance 1 over the batch, that of all processes where ``mean`` is their mean, so that what
    is coloured counts as much as what is bright: in plain red, green and blue a background of unknown brightness is
    most of the error, and no caption helps against it.
    """
    small = adaptive_avg_pool2d(image, side)
    mixed = torch.einsum("ij,bjhw->bihw", image.new_tensor(YCBCR), small)  # (B, 3, side, side)
    centred = mixed - mean(mixed.mean(dim=(0, 2, 3), keepdim=True))
    return centred * (mean(centred.square().mean(dim=(0, 2, 3), keepdim=True)) + 1e-6).rsqrt()


def layout_loss(drawn: Tensor, image: Tensor, mean: Mean = torch.clone) -> Tensor:
    """Mean squared error of drawn tints (B, 3, S, S) from those of images (B, 3, H, W): 1 for knowing nothing."""
    return mse_loss(drawn.float(), tints(image, drawn.shape[-1], mean))


class TrainedClip(nn.Module):
    """A CLIP of the config's own sizes as it is trained: both towers, and a ``Layout`` where the config weighs one.

    Image features (B, P) and text features (B, P) of unit length, the scale of their products, and the drawn tints
    (B, 3, S, S) or None, of images (B, 3, H, H) and rows (B, L) of the vocabulary's table.
    """

    def __init__(self, config: ClipConfig, image_size: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.states = "last" if config.states == "words" else config.states  # those that are to bind
        self.clip = build_clip(config, image_size, vocabulary)
        self.layout = Layout(config.width, config.heads) if config.layout else None

    def forward(self, image: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        said = read(self.clip, rows, self.states)
        drawn = self.layout(said.tokens, said.mask) if self.layout is not None else None
        features = self.clip.encode_image(image, normalize=True)  # (B, P)
        return features, normalize(said.pooled, dim=-1), self.clip.logit_scale.exp(), drawn
