"""Streams of tasks: what is permuted, what comes when, and that a seed means one stream."""

import sys
import types

import numpy as np
import pytest
import torch

from gqc_lab.data.images import TORCHVISION, load_image_data, read_scans
from gqc_lab.data.streams import KINDS, TaskStream

SIZES = {"num_tasks": 4, "task_examples": 50}


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_the_data_with_one_permutation(kind):
    scans, stream = read_scans("digits"), TaskStream(kind, **SIZES)
    for number in range(4):
        images, labels = stream.task(number)
        permutation, rows = stream.drawn(number)
        assert (images.dtype, images.shape, labels.shape) == (torch.float32, (50, 64), (50,))
        for example in (0, 7, 49):  # element by element
            source = scans.pixels[rows[example]].tolist()
            label = int(scans.labels[rows[example]])
            if kind == "input_permuted":
                source = [source[i] for i in permutation.tolist()]
            else:
                label = int(permutation[label])
            assert images[example].tolist() == [v / 16 for v in source]
            assert int(labels[example]) == label


@pytest.mark.parametrize(("kind", "size"), [("input_permuted", 64), ("label_permuted", 10)])
def test_every_task_has_a_permutation_of_its_own(kind, size):
    stream = TaskStream(kind, num_tasks=6, task_examples=10)
    permutations = [tuple(stream.drawn(k)[0].tolist()) for k in range(6)]
    assert len(set(permutations)) == 6
    assert all(sorted(p) == list(range(size)) for p in permutations)


def test_no_example_comes_twice_before_all_came_once():
    examples = 1797
    _, rows = TaskStream("input_permuted", num_tasks=1, task_examples=4000).drawn(0)
    assert sorted(rows[:examples].tolist()) == list(range(examples))
    assert sorted(rows[examples : 2 * examples].tolist()) == list(range(examples))
    assert len(set(rows[2 * examples :].tolist())) == 4000 - 2 * examples
    assert not torch.equal(rows[:examples], rows[examples : 2 * examples])


def test_a_stream_can_be_entered_anywhere():
    stream, other = (TaskStream("label_permuted", **SIZES, seed=3) for _ in range(2))
    in_order = [stream.task(number) for number in range(4)]
    for number in (2, 0, 3, 1):
        for ours, theirs in zip(other.task(number), in_order[number], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_is_of_all_that_comes(kind):
    base = TaskStream(kind, **SIZES)
    assert base.hash == TaskStream(kind, **SIZES).hash
    others = [
        TaskStream(kind, **SIZES, seed=1),
        TaskStream(kind, num_tasks=5, task_examples=50),
        TaskStream(kind, num_tasks=4, task_examples=51),
        TaskStream(KINDS[1 - KINDS.index(kind)], **SIZES),
    ]
    assert len({base.hash, *(o.hash for o in others)}) == 5


def test_a_task_that_is_not_there_is_an_error():
    with pytest.raises(IndexError, match="task 4: expected 0 to 3"):
        TaskStream("input_permuted", **SIZES).task(4)


@pytest.mark.parametrize("name", TORCHVISION)
def test_without_torchvision_its_data_sets_are_a_clear_error(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=f"name='{name}' needs torchvision: pip install"):
        TaskStream("input_permuted", name)


def fake_torchvision(asked):
    """Eight images of each set, stored as torchvision stores them: tensors, or arrays and lists."""

    def data_set(kind, shape, num_classes, as_tensor):
        def make(root, train, download, **options):
            asked.append((kind, root, train, download, options))
            data = np.arange(8 * int(np.prod(shape)), dtype=np.uint8).reshape(8, *shape)
            targets = [num_classes - 1 - i for i in range(8)]
            if as_tensor:
                data, targets = torch.from_numpy(data), torch.tensor(targets)
            return types.SimpleNamespace(data=data, targets=targets)

        return make

    grey = {"MNIST": 10, "FashionMNIST": 10, "EMNIST": 47}
    sets = {k: data_set(k, (28, 28), n, True) for k, n in grey.items()}
    sets["CIFAR10"] = data_set("CIFAR10", (32, 32, 3), 10, False)
    return types.SimpleNamespace(datasets=types.SimpleNamespace(**sets))


@pytest.mark.parametrize(
    ("name", "pixels", "classes"),
    [("mnist", 784, 10), ("fashion_mnist", 784, 10), ("emnist", 784, 47), ("cifar10", 3072, 10)],
)
def test_torchvisions_sets_are_read_as_they_are_stored(
    name, pixels, classes, monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setitem(sys.modules, "torchvision", fake_torchvision(asked))
    monkeypatch.setenv("GQC_CACHE", str(tmp_path))
    scans = read_scans(name)
    assert scans.pixels.shape == (8, pixels)
    assert scans.num_classes == classes
    assert scans.images(torch.arange(8)).max() == 1.0
    kind, root, train, download, options = asked[0]
    assert (root, train, download) == (str(tmp_path), True, True)
    assert options == ({"split": "balanced"} if kind == "EMNIST" else {})
    monkeypatch.setattr("gqc_lab.data.images.read_scans", lambda name: scans)
    data = load_image_data(name)
    assert data.train_images.shape == (6, pixels)
    assert len(data.test_labels) == 2


def test_the_global_random_stream_is_not_touched():
    before = torch.get_rng_state()
    TaskStream("input_permuted", **SIZES).task(0)
    assert torch.equal(torch.get_rng_state(), before)
