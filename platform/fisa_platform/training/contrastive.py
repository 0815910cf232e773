"""Contrastive pre-training of the toy CLIP: pictures of single objects against the words for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor, nn
from torch.utils.data import Dataset

from fisa_model.vocabulary import TEMPLATES
from fisa_platform.sources import toyworld

Tokenizer = Callable[[list[str]], Tensor]

MAX_LOGIT_SCALE = 100.0
"""CLIP's own bound on its learned temperature."""


class ObjectPictures(Dataset[tuple[Tensor, str, int]]):
    """Pictures [3, 96, 96] in 0-1 of single objects of the toy world, with a caption and the name's index."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed = seed
        self.count = count
        self.names = {name: index for index, name in enumerate(toyworld.vocabulary("all").names)}
        self.templates = [template for templates in TEMPLATES.values() for template in templates]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, str, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        image, name = toyworld.draw_object(self.seed, index)
        caption = self.templates[index % len(self.templates)].format(name)
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, caption, self.names[name]


class ContrastiveObjective(nn.Module):
    """CLIP's symmetric cross-entropy (arXiv 2103.00020, figure 3) over a batch of pictures and captions.

    Names repeat within a batch of the toy world, so every caption of a picture's name is a positive, and the
    target is uniform over them (UniCL, arXiv 2204.03610, equation 3).
    """

    def __init__(self, clip: CLIP, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer

    def forward(self, batch: tuple[Tensor, list[str], Tensor]) -> dict[str, Tensor]:
        """Pictures [B, 3, S, S] in 0-1, B captions, names [B] -> the loss, and the share named right."""
        images, captions, names = batch
        tokens = self.tokenizer(list(captions)).to(images.device)
        image_features = self.clip.encode_image(normalise(self.clip, images), normalize=True)
        text_features = self.clip.encode_text(tokens, normalize=True)
        scale = self.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        logits = scale * image_features.float() @ text_features.float().T
        same = (names[:, None] == names[None]).float()
        targets = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        found = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {"loss": loss, "accuracy": found.detach()}


def normalise(clip: CLIP, images: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] in 0-1, as the image tower wants them."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (clip.visual.image_mean, clip.visual.image_std))
    return (images - mean) / std


@torch.no_grad()
def zero_shot_accuracy(clip: CLIP, tokenizer: Tokenizer, seed: int, count: int) -> float:
    """Share of `count` new single-object pictures whose name is the most similar of all names."""
    pictures = ObjectPictures(seed, count)
    prompts = [[template.format(name) for template in TEMPLATES["vild"]] for name in pictures.names]
    rows = [clip.encode_text(tokenizer(texts), normalize=True).mean(0) for texts in prompts]
    classifier = F.normalize(torch.stack(rows), dim=-1)
    right = 0
    for image, _, name in (pictures[index] for index in range(count)):
        feature = clip.encode_image(normalise(clip, image[None]), normalize=True)
        right += int((feature @ classifier.T).argmax()) == name
    return right / count
