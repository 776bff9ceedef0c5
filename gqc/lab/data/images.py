"""Images for classifiers: a data set split for good, with labels that may be wrong on purpose.

``"digits"``: the 1,797 scans of handwritten digits, 8 x 8 pixels, that scikit-learn ships (test set
of the UCI Optical Recognition of Handwritten Digits data; Alpaydin and Kaynak 1998).  Offline.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from gqc.lab.names import check_name
from gqc.lab.placement import make_generator

DATA_SETS = ("digits",)


@dataclass(frozen=True)
class ImageData:
    """Images as flat float32 rows in [0, 1] with integer labels, on the CPU.

    Args:
        name: of the data set.
        num_classes: labels run from 0 to this, excluded.
        train_images: [examples, pixels]; train_labels: what is trained on [examples];
            true_train_labels: what is in the pictures [examples].
        test_images, test_labels: held out; their labels are never changed.
        hash: sha256 of all of them.
    """

    name: str
    num_classes: int
    train_images: Tensor
    train_labels: Tensor
    true_train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    hash: str


def load_image_data(
    name: str = "digits", label_noise: float = 0.0, seed: int = 0, test_fraction: float = 0.2
) -> ImageData:
    """Read, split and, on purpose, mislabel a data set.

    Args:
        name: ``"digits"``.
        label_noise: share of the training labels that are replaced by another class, uniformly
            among the others, in [0, 1].
        seed: of which labels are replaced; the split is the same for every seed.
        test_fraction: share held out, in (0, 1).
    Raises:
        ValueError: unknown name, or a share out of its range.
    """
    check_name("name", name, DATA_SETS)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction!r}: expected within (0, 1)")
    images, labels = _read_digits()
    order = torch.randperm(len(images), generator=make_generator(0, "image split"))
    cut = len(images) - round(len(images) * test_fraction)
    train, test = order[:cut], order[cut:]
    clean = labels[train]
    num_classes = int(labels.max()) + 1
    noisy = mislabel(clean, num_classes, label_noise, make_generator(seed, "label noise"))
    tensors = (images[train], noisy, clean, images[test], labels[test])
    return ImageData(name, num_classes, *tensors, hash=_hash(*tensors))


def mislabel(labels: Tensor, num_classes: int, share: float, generator: torch.Generator) -> Tensor:
    """Replace ``share`` of the labels, rounded to a whole number, each by one of the other classes.

    Args:
        labels: integer [examples], not modified.
        num_classes: at least 2 where ``share`` > 0.
        share: in [0, 1].
        generator: on the CPU.
    Raises:
        ValueError: ``share`` outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"label_noise={share!r}: expected a share in [0, 1]")
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    result = labels.clone()
    result[chosen] = (labels[chosen] + shift) % num_classes
    return result


def _read_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.data).to(torch.float32) / 16
    return images, torch.from_numpy(digits.target).long()


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
