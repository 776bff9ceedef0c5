r"""Streams of tasks: the same images, with their pixels or labels permuted from task to task.

- ``"input_permuted"``: in each task the pixels of all images are permuted in one new way; what was
  learned in the previous task does not help, so a learner has to start over each time.
- ``"label_permuted"``: in each task the classes swap names; what was learned about the images
  helps, if it is kept.

Each example comes once, in random order; if a task is longer than the data set, it starts over in a
new order.  A task depends only on the seed and its number, so a stream can be entered anywhere.

Source: Elsayed and Mahmood, ICLR 2024, arXiv:2404.00781, sections 4.2 and 4.3.
"""

from functools import cached_property

import torch
from torch import Tensor

from gqc_lab.data.images import hash_tensors, read_scans
from gqc_lab.loop.placement import make_generator

KINDS = ("input_permuted", "label_permuted")


class TaskStream:
    """A sequence of tasks on a data set.

    Args:
        kind: one of `KINDS`.
        name: of the data set, see `gqc_lab.data.images`.
        num_tasks, task_examples: both at least 1; the source has 5000 and 2500 examples.
        seed: of permutations and order.
    Raises: ImportError: the data set needs torchvision, which is not installed.
    """

    def __init__(
        self,
        kind: str,
        name: str = "digits",
        num_tasks: int = 20,
        task_examples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.scans, self.kind, self.seed = read_scans(name), kind, seed
        self.num_tasks, self.task_examples = num_tasks, task_examples

    def task(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the examples of a task, numbered from 0, in the order in which they come.

        Returns: images, float32 in [0, 1] [task_examples, pixels]; labels [task_examples].
        Raises: IndexError: there is no task with that number.
        """
        permutation, rows = self.drawn(number)
        images, labels = self.scans.images(rows), self.scans.labels[rows]
        if self.kind == "input_permuted":
            return images[:, permutation], labels
        return images, permutation[labels]

    def drawn(self, number: int) -> tuple[Tensor, Tensor]:
        """Return what is random about a task: the permutation, and the order of the examples.

        Returns: for ``"input_permuted"`` the pixel that goes to each place [pixels], for
            ``"label_permuted"`` the new label of each class [classes]; rows [task_examples].
        """
        if not 0 <= number < self.num_tasks:
            raise IndexError(f"task {number}: expected 0 to {self.num_tasks - 1}")
        generator = make_generator(self.seed, f"{self.kind} task {number}")
        examples, pixels = self.scans.pixels.shape
        size = pixels if self.kind == "input_permuted" else self.scans.num_classes
        permutation = torch.randperm(size, generator=generator)
        passes = range(-(-self.task_examples // examples))
        orders = [torch.randperm(examples, generator=generator) for _ in passes]
        return permutation, torch.cat(orders)[: self.task_examples]

    @cached_property
    def hash(self) -> str:
        """The sha256 of the images, and of the permutation and order of every task."""
        drawn = [tensor for k in range(self.num_tasks) for tensor in self.drawn(k)]
        white = torch.tensor(self.scans.white)
        kind = torch.tensor(KINDS.index(self.kind))
        return hash_tensors(self.scans.pixels, self.scans.labels, white, kind, *drawn)
