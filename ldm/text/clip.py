"""CLIP's text tower as the denoiser's text encoder (Radford et al. 2021, arXiv:2103.00020), on open_clip's modules.

It comes by name and tag, by name and local file, or in sizes of our own with weights to be trained.

Legend: B captions, L tokens of the batch's longest caption, D width, P pooled width.
"""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.config import at_home, nearest
from ldm.denoisers.attention import attention
from ldm.files import save_tensors
from ldm.text.vocabulary import NUM_IDS, Vocabulary
from ldm.text.weights import fetch, fill, read_weights
from ldm.types import Condition

if TYPE_CHECKING:
    from open_clip import CLIP
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

STATES = ("last", "penultimate", "words")
PADDINGS = ("masked", "zeros", "ends")


@dataclass
class ClipConfig:
    """A CLIP text encoder: a named model's, with its weights, or one of our own sizes."""

    model: str = ""  # open_clip's name of a model, e.g. ViT-L-14; empty for one of the sizes below
    pretrained: str = ""  # tag of the named model's weights, e.g. openai; downloaded unless in the Hub's local cache
    weights: str = ""  # file read in place of a download; the tag, if given too, still settles the activation
    states: str = "last"  # what the tokens are: the last or penultimate block's states, or words: last plus embeddings
    padding: str = "masked"  # the end of text is followed by nothing, or to context_length by zeros, or by ends of text
    width: int = 192  # channels of the text tower
    layers: int = 4  # blocks of the text tower
    heads: int = 3  # attention heads of a text block
    context_length: int = 32  # tokens, with start and end of text
    embed_dim: int = 192  # channels of the space that captions and images share: the pooled width
    vision_width: int = 192  # channels of the image tower, which is kept beside the text tower
    vision_layers: int = 4  # blocks of the image tower
    vision_heads: int = 3  # attention heads of an image block
    vision_patch: int = 8  # side of an image token, pixels
    layout: float = 0.0  # weight of redrawing the picture, coarsely, from the states, in training: they learn to bind

    def __post_init__(self) -> None:
        self.weights = at_home(self.weights)
        if self.states not in STATES:
            raise ValueError(f"states: no '{self.states}' here; {nearest(self.states, list(STATES))}")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding: no '{self.padding}' here; {nearest(self.padding, list(PADDINGS))}")
        if self.model and not (self.pretrained or self.weights):
            raise ValueError(
                f"model {self.model} has no weights; name a tag (pretrained=openai) or a file (weights=...)"
            )
        if not self.model and (self.pretrained or self.weights):
            raise ValueError(
                f"no model for the weights '{self.weights or self.pretrained}'; name it, e.g. model=ViT-L-14"
            )
        if not 0 <= self.layout < float("inf"):
            raise ValueError(f"layout {self.layout} is not a weight of at least 0; use 0 to leave it out")
        least = {"context_length": 3, "layers": 1 + (self.states == "penultimate")}
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < least.get(name, 1):
                raise ValueError(f"{name} {value} is too small; at least {least.get(name, 1)}")
        for tower in ("", "vision_"):
            width, heads = getattr(self, f"{tower}width"), getattr(self, f"{tower}heads")
            if width % heads:
                wider = -(-width // heads) * heads
                raise ValueError(f"{tower}width {width} is not divisible by {tower}heads {heads}; try {wider}")

    def build(self, image_size: int = 64) -> "ClipText":
        """The named model's text tower with its weights, or one of our own with random weights and CLIP's whole table.

        Raises ValueError where the model or tag is unknown, or its weights are neither here nor to be fetched.
        """
        return _named(self) if self.model else ClipText.from_clip(build_clip(self, image_size), self)


@dataclass(frozen=True)
class Architecture:
    """What a text tower is built from, beside its vocabulary and weights."""

    width: int
    layers: int
    heads: int
    context_length: int
    embed_dim: int
    states: str = "last"
    quick_gelu: bool = False  # x * sigmoid(1.702 x) for GELU, as OpenAI's weights were trained with
    padding: str = "masked"


class ClipText(nn.Module):
    """CLIP's text tower, frozen: captions in, a ``Condition`` out.

    ``width`` is D, ``pooled_width`` P, and ``truncated`` counts the captions cut to ``context_length`` so far.
    """

    def __init__(self, architecture: Architecture, vocabulary: Vocabulary | None = None) -> None:
        # importing open_clip takes seconds, which a script's --help should not wait for
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        self.architecture = architecture
        self.vocabulary = vocabulary or Vocabulary()
        self.width = architecture.width
        self.pooled_width = architecture.embed_dim
        self.context_length = architecture.context_length
        self.truncated = 0
        self.tower = TextTransformer(
            context_length=architecture.context_length,
            vocab_size=len(self.vocabulary),
            width=architecture.width,
            heads=architecture.heads,
            layers=architecture.layers,
            output_dim=architecture.embed_dim,
            act_layer=QuickGELU if architecture.quick_gelu else nn.GELU,
        )
        self.requires_grad_(False).eval()

    def tokenize(self, captions: list[str]) -> Tensor:
        """Rows of the token table (B, context_length), int64; after the end of text zeros, or ends where asked for."""
        ends = self.architecture.padding == "ends"
        rows, truncated = self.vocabulary.tokenize(captions, self.context_length, ends=ends)
        self.truncated += truncated
        return rows

    @torch.no_grad()
    def forward(self, captions: list[str]) -> Condition:
        """Tokens (B, L, D) after the final norm, pooled (B, P) not normalised, mask (B, L) from start to end of text.

        With another padding than "masked" L is the context length, and a denoiser sees all of it: Stable Diffusion 1
        was trained with "ends" and 2 with "zeros".

        The penultimate block's tokens pass the final norm too, as Stable Diffusion 2's do. With "words" the last
        block's are each added to the embedding of the word itself, normed alike: what a contrastive loss has little
        use for, such as which shape is named, is faint in the states, and there it is as large as all they say.
        The pooled state always is the last block's at the end of text, projected: CLIP's own embedding of the caption.
        """
        rows = self.tokenize(captions).to(self.tower.positional_embedding.device)  # (B, context_length)
        return read(self.tower, rows, self.architecture.states, whole=self.architecture.padding != "masked")

    @staticmethod
    def from_clip(clip: "CLIP", config: ClipConfig, vocabulary: Vocabulary | None = None) -> "ClipText":
        """A copy of the text tower of ``clip``, which ``build_clip`` made of the same config and vocabulary."""
        sizes = (config.width, config.layers, config.heads, config.context_length, config.embed_dim)
        text = ClipText(Architecture(*sizes, states=config.states, padding=config.padding), vocabulary)
        fill(text.tower, clip.state_dict(), "the trained CLIP")
        return text

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``text.safetensors``, in ``dtype`` where given; ``load`` needs nothing else."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = None if len(self.vocabulary) == NUM_IDS else self.vocabulary.kept
        (folder / "config.json").write_text(
            json.dumps({**asdict(self.architecture), "vocabulary": kept}) + "\n", encoding="utf-8"
        )
        save_tensors(self.tower.state_dict(), folder / "text.safetensors", dtype)

    @staticmethod
    def load(folder: Path) -> "ClipText":
        """The encoder that ``save`` wrote, in float32; ValueError names the file that is missing or does not fit."""
        path = folder / "config.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            kept = described.pop("vocabulary")
            text = ClipText(Architecture(**described), None if kept is None else Vocabulary(tuple(kept)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} does not describe a text encoder: {error}") from error
        fill(text.tower, read_weights(folder / "text.safetensors"), str(folder / "text.safetensors"))
        return text


def read(tower: "TextTransformer | CLIP", rows: Tensor, states: str = "last", *, whole: bool = False) -> Condition:
    """What ``tower``, or a whole CLIP's text tower, makes of ``rows`` (B, L) of its token table.

    Tokens, pooled and mask are those of ``ClipText``, as long as the longest of the captions, or the ``whole`` rows.
    """
    ends = rows.argmax(dim=-1)  # (B,), of several the first
    # attention is causal: no token sees the padding behind it, so what every caption pads can be left out
    length = rows.shape[1] if whole else int(ends.max()) + 1
    mask = (torch.arange(length, device=rows.device) <= ends[:, None]) | whole  # (B, L)
    rows = rows[:, :length]
    words = tower.token_embedding(rows)  # (B, L, D)
    last = words + tower.positional_embedding[:length]  # (B, L, D)
    penultimate = last
    seen = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()  # (L, L)
    for block in tower.transformer.resblocks:
        penultimate, last = last, _called(block, last, seen)
    pooled = tower.ln_final(last[torch.arange(len(rows), device=rows.device), ends]) @ tower.text_projection  # (B, P)
    tokens = tower.ln_final(penultimate if states == "penultimate" else last)
    if states == "words":
        tokens = tokens + nn.functional.layer_norm(words, words.shape[-1:])
    return Condition(tokens, pooled, mask)


def _called(block: "ResidualAttentionBlock", x: Tensor, mask: Tensor) -> Tensor:
    """What ``block`` makes of ``x`` (B, L, D), where ``mask`` (L, L) says who sees whom.

    Its own call puts tokens before rows, of which PyTorch then multiplies one after another: on a CPU that takes 1.6
    times as long in float32, and ten times in bfloat16.
    """
    inner = block.attn
    qkv = nn.functional.linear(block.ln_1(x), inner.in_proj_weight, inner.in_proj_bias)  # (B, L, 3 D)
    q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, h=inner.num_heads)  # 3 (B, h, L, d)
    h = rearrange(attention(q, k, v, mask), "b h l d -> b l (h d)")  # (B, L, D)
    x = x + block.ls_1(inner.out_proj(h))
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # (B, L, D)


def build_clip(config: ClipConfig, image_size: int, vocabulary: Vocabulary | None = None) -> "CLIP":
    """open_clip's CLIP of the config's own sizes, both towers, random weights: what contrastive training trains.

    It takes images (B, 3, image_size, image_size) and rows (B, context_length) as ``vocabulary.tokenize`` gives them.
    """
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    if config.model:
        raise ValueError(f"model {config.model} is used as it comes; leave text.model empty to train sizes of our own")
    if image_size % config.vision_patch:
        raise ValueError(f"image size {image_size} is not divisible by text.vision_patch {config.vision_patch}")
    vision = CLIPVisionCfg(
        width=config.vision_width,
        layers=config.vision_layers,
        head_width=config.vision_width // config.vision_heads,
        patch_size=config.vision_patch,
        image_size=image_size,
    )
    text = CLIPTextCfg(
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        context_length=config.context_length,
        vocab_size=len(vocabulary or Vocabulary()),
    )
    return CLIP(config.embed_dim, vision, text)


def named_architecture(config: ClipConfig) -> Architecture:
    """The sizes of the text tower of the model that ``config`` names; its weights are not looked for.

    Raises:
        ValueError: open_clip has no such model or tag, or its text tower is not CLIP's.
    """
    from open_clip import get_model_config, get_pretrained_cfg, list_models, list_pretrained_tags_by_model

    name, tag = config.model, config.pretrained
    if name not in list_models():
        raise ValueError(f"text.model: open_clip has no '{name}'; {nearest(name, list_models())}")
    described, source = get_model_config(name), get_pretrained_cfg(name, tag)
    sizes = {key: value for key, value in described["text_cfg"].items() if value}
    if sizes.pop("vocab_size", 0) != NUM_IDS or sizes.keys() != {"context_length", "width", "heads", "layers"}:
        raise ValueError(f"text.model: {name}'s text tower is not CLIP's causal one; take a plain CLIP, e.g. ViT-L-14")
    if tag and not source:
        raise ValueError(f"text.pretrained: {name} has no '{tag}'; {nearest(tag, list_pretrained_tags_by_model(name))}")
    return Architecture(
        **sizes,
        embed_dim=described["embed_dim"],
        states=config.states,
        quick_gelu=bool(described.get("quick_gelu") or source.get("quick_gelu")),
        padding=config.padding,
    )


def _named(config: ClipConfig) -> ClipText:
    """The text tower of a model that open_clip describes, with the weights of its tag or of a local file."""
    from open_clip import get_pretrained_cfg, list_models

    architecture, name, tag = named_architecture(config), config.model, config.pretrained
    if not tag and f"{name}-quickgelu" in list_models():
        warnings.warn(
            f"{name} runs with GELU; if {config.weights} was trained with QuickGELU, as OpenAI's weights were, "
            f"name its tag too (text.pretrained=openai) or text.model={name}-quickgelu",
            stacklevel=3,
        )
    path = Path(config.weights) if config.weights else fetch(name, tag, get_pretrained_cfg(name, tag)["hf_hub"])
    text = ClipText(architecture)
    fill(text.tower, read_weights(path), str(path))
    return text
