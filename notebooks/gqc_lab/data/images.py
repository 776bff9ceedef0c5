"""Images for classifiers: a data set with a fixed split and, on request, wrong labels.

- ``"digits"``: the 1,797 scans of handwritten digits, 8 x 8 pixels, that scikit-learn ships (test
  set of the UCI Optical Recognition of Handwritten Digits data; Alpaydin and Kaynak 1998).
  Available offline.
- ``"mnist"``, ``"fashion_mnist"``, ``"emnist"`` (balanced, 47 classes), ``"cifar10"``: the training
  sets, through torchvision, which downloads them.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqc_lab.errors import check_name
from gqc_lab.loop.placement import make_generator

#: name -> class in torchvision.datasets and its options
TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    "mnist": ("MNIST", {}),
    "fashion_mnist": ("FashionMNIST", {}),
    "emnist": ("EMNIST", {"split": "balanced"}),
    "cifar10": ("CIFAR10", {}),
}

DATA_SETS = ("digits", *TORCHVISION)
TEST_SHARE = 0.2  #: of the examples, held out


@dataclass(frozen=True)
class Scans:
    """A data set as it is stored, on the CPU.

    Args:
        pixels: uint8 [examples, pixels], from 0 to ``white``.
        labels: integer [examples].
        white: the largest value that a pixel can have.
    """

    pixels: Tensor
    labels: Tensor
    white: int

    @property
    def num_classes(self) -> int:
        """Number of classes; labels run from 0 to this number, exclusive."""
        return int(self.labels.max()) + 1

    def images(self, rows: Tensor) -> Tensor:
        """Return the examples ``rows`` as float32 in [0, 1]."""
        return self.pixels[rows].to(torch.float32) / self.white


@dataclass(frozen=True)
class ImageData:
    """Images as flat float32 rows in [0, 1] with integer labels, on the CPU.

    The labels to train on may be wrong, those of the test never are.  ``hash``: sha256 of both.
    """

    num_classes: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    hash: str


def load_image_data(name: str = "digits", label_noise: float = 0.0, seed: int = 0) -> ImageData:
    """Read and split a data set, of `DATA_SETS`: a fifth of the examples is held out.

    Args:
        label_noise: share of the training labels that are replaced by another class, uniformly
            among the others, in [0, 1].
        seed: of which labels are replaced; the split is the same for every seed.
    Raises: ValueError: unknown name.
    """
    scans = read_scans(name)
    order = torch.randperm(len(scans.labels), generator=make_generator(0, "image split"))
    cut = len(order) - round(len(order) * TEST_SHARE)
    train, test = order[:cut], order[cut:]
    clean = scans.labels[train]
    noisy = mislabel(clean, scans.num_classes, label_noise, make_generator(seed, "label noise"))
    images, test_images, test_labels = scans.images(train), scans.images(test), scans.labels[test]
    digest = hash_tensors(images, noisy, clean, test_images, test_labels)
    return ImageData(scans.num_classes, images, noisy, test_images, test_labels, digest)


def mislabel(labels: Tensor, num_classes: int, share: float, generator: torch.Generator) -> Tensor:
    """Replace ``share`` of the labels, rounded to a whole number, each by one of the other classes.

    The result is new; there are at least 2 classes where ``share`` > 0.
    """
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    result = labels.clone()
    result[chosen] = (labels[chosen] + shift) % num_classes
    return result


@lru_cache(maxsize=1)  # the runs of a comparison share it
def read_scans(name: str) -> Scans:
    """Read a whole data set, of `DATA_SETS`, neither split nor mislabelled.

    Raises: ValueError: unknown name.  ImportError: it needs torchvision, which is not installed.
    """
    check_name("name", name, DATA_SETS)
    if name == "digits":
        from sklearn.datasets import load_digits  # takes a second

        pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
        return Scans(pixels.to(torch.uint8), labels.long(), 16)
    kind, options = TORCHVISION[name]
    try:
        from torchvision import datasets
    except ImportError:
        raise ImportError(
            f"name={name!r} needs torchvision: pip install torchvision; 'digits' needs nothing"
        ) from None
    found = getattr(datasets, kind)(str(cache_folder()), train=True, download=True, **options)
    pixels = torch.as_tensor(found.data).flatten(1)
    return Scans(pixels, torch.as_tensor(found.targets).long(), 255)


def cache_folder() -> Path:
    """Where data are kept: the environment variable ``GQC_CACHE``, or ``~/.cache/gqc``."""
    folder = os.environ.get("GQC_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "gqc"


def hash_tensors(*tensors: Tensor) -> str:
    """Return the sha256 of shapes, dtypes and values of tensors on the CPU."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
