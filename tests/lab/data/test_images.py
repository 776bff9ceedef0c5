"""The digits: what is in them, how they are split, and which labels are wrong on purpose."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from gqc_lab.data.images import load_image_data, mislabel
from gqc_lab.loop.placement import make_generator


def test_every_scan_is_on_one_side_with_its_label():
    data, source = load_image_data(), load_digits()
    assert (data.train_images.shape, data.test_images.shape) == ((1438, 64), (359, 64))
    assert data.num_classes == 10
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    rows = torch.cat([data.train_images, data.test_images])
    labels = torch.cat([data.train_labels, data.test_labels])
    ours = sorted(
        [*(16 * row).int().tolist(), y] for row, y in zip(rows, labels.tolist(), strict=True)
    )
    theirs = sorted([*map(int, x), int(y)] for x, y in zip(source.data, source.target, strict=True))
    assert ours == theirs


def test_the_hash_is_of_the_data():
    assert load_image_data().hash == load_image_data(seed=3).hash  # no label is wrong
    # The committed results were made from these scans and this split.
    assert load_image_data().hash.startswith("0b91df10cd497fc0")
    hashes = {load_image_data(label_noise=0.2, seed=s).hash for s in (0, 1)}
    assert len(hashes | {load_image_data().hash}) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_exactly_the_stated_share_is_mislabelled(share):
    data = load_image_data(label_noise=share, seed=1)
    wrong = data.train_labels != load_image_data().train_labels
    assert int(wrong.sum()) == round(share * 1438)
    assert torch.equal(data.test_labels, load_image_data().test_labels)


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = torch.full((9000,), 4)
    found = mislabel(labels, 10, 1.0, make_generator(0, "test")).bincount(minlength=10)
    assert found[4] == 0
    others = found[[0, 1, 2, 3, 5, 6, 7, 8, 9]]
    assert ((others - 1000).abs() < 4 * math.sqrt(1000)).all()  # four standard deviations


def test_the_labels_given_stay_as_they_are():
    labels = torch.arange(10)
    mislabel(labels, 10, 0.5, make_generator(0, "test"))
    assert torch.equal(labels, torch.arange(10))


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="name='digit': did you mean 'digits'"):
        load_image_data("digit")


def test_the_global_random_stream_is_not_touched():
    before = torch.get_rng_state()
    load_image_data(label_noise=0.5)
    assert torch.equal(torch.get_rng_state(), before)
