"""CLIP score: how well captions fit their pictures, by any CLIP of open_clip or by one trained here.

Legend: N pictures, S side, B batch, H W image size, P width of CLIP's embeddings.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from ldm.config import from_dict, nearest
from ldm.data.transforms import Transform
from ldm.evaluation.benchmark import AT_ONCE, Pictures
from ldm.evaluation.weights import MissingWeights, fitting
from ldm.files import load_weights
from ldm.folders import load_text
from ldm.run import Run
from ldm.text.layout import TrainedClip
from ldm.text.weights import fetch
from ldm.training import checkpoint

if TYPE_CHECKING:
    from open_clip import CLIP


@dataclass
class Clip:
    """A CLIP with what makes its inputs, and the ``name`` that its scores are stamped with."""

    model: "CLIP"
    preprocess: Callable[[Image.Image], Tensor]  # to (3, H, W)
    tokenize: Callable[[list[str]], Tensor]  # to (B, context length)
    name: str


@torch.inference_mode()
def clip_score(clip: Clip, pictures: Pictures, captions: list[str], *, batch: int = AT_ONCE) -> dict[str, Any]:
    """The mean of 100 max(cos(image, caption), 0) over pictures (N, S, S, 3) and their N captions, and ``clip``'s name.

    CLIPScore (Hessel et al. 2021, arXiv:2104.08718) with the weight 100 that is usual in place of its 2.5. The
    scores of two CLIPs cannot be compared.

    Raises:
        ValueError: there are not as many captions as pictures.
    """
    if len(captions) != len(pictures):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures; one for each is wanted")
    device = next(clip.model.parameters()).device
    scores = []
    for first in range(0, len(pictures), batch):
        part = pictures[first : first + batch]
        images = torch.stack([clip.preprocess(Image.fromarray(picture)) for picture in part])  # (B, 3, H, W)
        rows = clip.tokenize(captions[first : first + batch])  # (B, context length)
        image = F.normalize(clip.model.encode_image(images.to(device)), dim=-1)  # (B, P)
        text = F.normalize(clip.model.encode_text(rows.to(device)), dim=-1)  # (B, P)
        scores.append((image * text).sum(dim=-1).clamp(min=0).double().cpu())  # (B,)
    return {"clip_score": 100 * float(torch.cat(scores).mean()), "clip": clip.name, "pictures": len(pictures)}


def load_own_clip(run_folder: Path) -> Clip:
    """The CLIP, both towers, that ``scripts/train_clip.py`` trained in ``run_folder``, averaged if it keeps an average.

    Raises:
        ValueError: the folder holds no such training state, or its ``text/``, which has the vocabulary, is not whole.
    """
    folder = run_folder / "training" / "clip" / "state"
    state = checkpoint.newest(folder)
    if state is None:
        raise ValueError(f"{folder} has no whole checkpoint; train a CLIP with scripts/train_clip.py out={run_folder}")
    config: Any = OmegaConf.to_container(
        OmegaConf.create(json.loads((state / "state.json").read_text(encoding="utf-8"))["config"])
    )
    run = from_dict(Run, config, fresh=tuple(config))
    vocabulary = load_text(run_folder / "text").vocabulary
    model: Any = TrainedClip(run.text, run.data.size, vocabulary)
    if (state / "ema.safetensors").is_file():
        average = AveragedModel(model)
        load_weights(average, state / "ema.safetensors")
        model = average.module
    else:
        load_weights(model, state / "weights.safetensors")
    transform, length = Transform(run.data.size), run.text.context_length
    return Clip(
        model.clip.requires_grad_(False).eval(),
        lambda picture: transform(picture, np.random.default_rng(0)),  # a centred cut, which draws nothing that counts
        lambda captions: vocabulary.tokenize(captions, length)[0],
        f"{run_folder}, {state.name}",
    )


def load_open_clip(name: str, pretrained: str = "", *, weights: Path | None = None) -> Clip:
    """open_clip's model ``name`` with the weights of the tag ``pretrained``, or those of a local file in their place.

    A tag's weights are downloaded unless they are in the Hub's local cache. The tag, if given too, still settles the
    activation and how pictures are prepared; else the model's name does (ViT-B-32 or ViT-B-32-quickgelu).

    Raises:
        MissingWeights: the file is not there, or the tag's weights are neither here nor to be fetched.
        ValueError: model or tag is unknown, the file does not fit, or the captions' tokenizer is not CLIP's own.
    """
    # takes seconds to import
    from open_clip import create_model, get_model_config, get_pretrained_cfg, get_tokenizer, list_models
    from open_clip import list_pretrained_tags_by_model as tags_of
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if name not in list_models():
        raise ValueError(f"open_clip has no model '{name}'; {nearest(name, list_models())}")
    if any(key.startswith("hf_") for key in get_model_config(name)["text_cfg"]):
        raise ValueError(f"{name} takes its tokenizer from the Hub; use a CLIP with its own, e.g. ViT-B-32")
    source = get_pretrained_cfg(name, pretrained)
    if pretrained and not source:
        raise ValueError(f"open_clip has no weights '{pretrained}' of {name}; {nearest(pretrained, tags_of(name))}")
    if not pretrained and weights is None:
        raise ValueError(f"{name} needs weights: name a tag of them ({', '.join(tags_of(name)[:4])}, ...) or a file")
    path = weights or _fetched(name, pretrained, source["hf_hub"])
    if not path.is_file():
        raise MissingWeights(f"{path} is not there: the weights of {name}; name their file with --clip-weights")
    with fitting(path, name):
        model = create_model(
            name, str(path), force_quick_gelu=bool(source.get("quick_gelu")), force_preprocess_cfg=source
        )
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    stamp = f"{name} {pretrained}".strip() + (f" ({path.name})" if weights else "")
    return Clip(model.requires_grad_(False).eval(), preprocess, get_tokenizer(name), stamp)


def _fetched(name: str, tag: str, place: str) -> Path:
    try:
        return fetch(name, tag, place)
    except ValueError as error:
        cause = (str(error.__cause__) or type(error.__cause__).__name__).splitlines()[0]
        url = f"https://huggingface.co/{place.rpartition('/')[0]}"
        raise MissingWeights(
            f"the weights '{tag}' of {name} are not on this machine, and {url} did not give them ({cause}); "
            "download them and name the file with --clip-weights"
        ) from error
