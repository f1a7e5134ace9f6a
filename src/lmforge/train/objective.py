"""What a step makes smaller: nats of text, or, where documents are episodes of images, of telling their classes apart.

    text         every token that counts, from all before it
    prototypes   images of an episode, each read by itself ─▶ features ─▶ the class whose other images' mean is nearest

Snell et al. 2017, "Prototypical networks", eq. 1 and 2, with the angle for the distance, sharpened (Gidaris and
Komodakis 2018, "Dynamic few-shot visual learning", section 3.2), and every image of an episode asked, left out of its
own class's mean, where the paper parts them into shown and asked ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.generate.score import token_nats
from lmforge.model.features import image_features, patches_of
from lmforge.model.gpt import GPT
from lmforge.recipe import Train

SHARPNESS = 16.0  # what the cosine of an angle is multiplied by


class Objective:
    """Nats of text."""

    def loss(
        self, network: nn.Module, tokens: Tensor, targets: Tensor, documents: Tensor | None, images: Tensor | None
    ) -> Tensor:
        """What has a gradient: the sum over what counts, in nats; the rest as in `GPT.loss`."""
        among = {} if images is None else {"images": images}
        nats: Tensor = network.loss(tokens, targets, documents, **among)  # type: ignore[operator]
        return nats

    def nats(
        self, network: GPT, tokens: Tensor, targets: Tensor, documents: Tensor | None, images: Tensor | None
    ) -> Tensor:
        """The same for each token (B,T), without a gradient; 0 where one does not count."""
        return token_nats(network, tokens, targets, documents=documents, images=images)


class Prototypes(Objective):
    """Nats of the classes of images, each document an episode. A class's nats, the mean over its images, stand at
    each token of its letter that counts, so that losses are divided by as many as are counted."""

    def loss(
        self, network: nn.Module, tokens: Tensor, targets: Tensor, documents: Tensor | None, images: Tensor | None
    ) -> Tensor:
        """As `Objective.loss`.

        Raises:
            InputError: rows without images, or an episode in which a class has one image alone.
        """
        assert isinstance(network, GPT)
        return self._nats(network, tokens, targets, documents, images).sum()

    @torch.inference_mode()
    def nats(
        self, network: GPT, tokens: Tensor, targets: Tensor, documents: Tensor | None, images: Tensor | None
    ) -> Tensor:
        """As `Objective.nats`, and errors as in `loss`."""
        return self._nats(network, tokens, targets, documents, images)

    def _nats(
        self, network: GPT, tokens: Tensor, targets: Tensor, documents: Tensor | None, images: Tensor | None
    ) -> Tensor:
        if images is None:
            raise InputError("train.objective: 'prototypes' tells images apart, and the corpus has none; use 'text'")
        last = (tokens.flatten() < 0).nonzero()[:, 0].view(len(images), patches_of(network))[:, -1]
        features = F.normalize(image_features(network, images, int(tokens[0, 0])).float(), dim=-1)
        nats = features.new_zeros(tokens.numel())
        counts, first = targets.flatten() >= 0, last.tolist()
        for episode in episodes(tokens, documents, last):
            own = torch.tensor([place for place, _ in episode], device=features.device)
            names = list(dict.fromkeys(name for _, name in episode))
            labels = torch.tensor([names.index(name) for _, name in episode], device=features.device)
            each = class_nats(features[own], labels)
            for (image, name), label in zip(episode, labels.tolist(), strict=True):
                nats[first[image] : first[image] + len(name)] = each[label]
        return (nats * counts).view(tokens.shape)


def class_nats(features: Tensor, labels: Tensor) -> Tensor:
    """features (N,D) of length 1, of classes labels (N,) from 0 on → each class's −ln p, the mean over its images, of
    which each is told by the means of all others (C,).

    Raises:
        InputError: a class of one image.
    """
    members = F.one_hot(labels).to(features.dtype)  # (N,C)
    sizes = members.sum(0)
    if float(sizes.min()) < 2:
        raise InputError(
            "train.objective: 'prototypes' needs two images of each class of an episode; give the sources of images "
            "corpus.sources.episodes = [ways, shots]"
        )
    sums = members.t() @ features
    near = features @ F.normalize(sums, dim=-1).t()
    left_out = (features * F.normalize(sums[labels] - features, dim=-1)).sum(-1)
    logits = SHARPNESS * torch.where(members > 0, left_out[:, None], near)
    nats: Tensor = members.t() @ F.cross_entropy(logits, labels, reduction="none") / sizes
    return nats


def episodes(tokens: Tensor, documents: Tensor | None, last: Tensor) -> list[list[tuple[int, tuple[int, ...]]]]:
    """The images of each document of tokens (B,T), whose last patches stand at `last` (N,) of the flattened rows: the
    numbers of the images, each with its name, the tokens up to the next image or the document's end."""
    length = tokens.shape[1]
    row_of = [place // length for place in last.tolist()]
    ids, numbered = tokens.tolist(), None if documents is None else documents.tolist()
    found: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]] = {}
    for image, (row, place) in enumerate(zip(row_of, (last % length).tolist(), strict=True)):
        document = 0 if numbered is None else numbered[row][place]
        end = place + 1
        while end < length and ids[row][end] >= 0 and (numbered is None or numbered[row][end] == document):
            end += 1
        found.setdefault((row, document), []).append((image, tuple(ids[row][place + 1 : end])))
    return list(found.values())


OBJECTIVES: dict[str, Objective] = {"text": Objective(), "prototypes": Prototypes()}


def objective_of(settings: Train) -> Objective:
    """What a recipe trains for."""
    return OBJECTIVES[settings.objective]
