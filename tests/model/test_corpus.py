"""The corpus: real text, split by file, and readable without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from model import corpus


def test_training_and_held_out_files_share_nothing() -> None:
    """The split is by file, complete, the same each time, and both sides are big enough to be of use."""
    training, held_out = corpus.training_files(), corpus.held_out_files()
    assert not set(training) & set(held_out)
    assert sorted(map(str, training + held_out)) == sorted(map(str, corpus.library_files()))
    assert len(held_out) >= 40
    assert sum(path.stat().st_size for path in training) > 2_000_000
    assert training == corpus.training_files()


def test_no_tests_and_no_strangers() -> None:
    """Neither the library's tests nor installed packages are read."""
    for path in corpus.library_files():
        assert not corpus.SKIPPED_FOLDERS & set(corpus.library_name(path).split("/"))


def test_tokens_are_bytes() -> None:
    """A file's tokens are its bytes, cut where asked, as int64."""
    path = corpus.held_out_files(min_bytes=500)[0]
    tokens = corpus.read_tokens(path, max_bytes=100)
    assert tokens.dtype == np.int64
    assert bytes(tokens.tolist()) == path.read_bytes()[:100]
    assert len(corpus.read_tokens(path)) == path.stat().st_size


def test_bits_per_byte_of_known_texts() -> None:
    """Two equally frequent bytes cost one bit each; a code made for them pays dearly for any other byte."""
    two = np.frombuffer(b"ab" * 50_000, dtype=np.uint8)
    frequencies = corpus.byte_frequencies(two)
    assert frequencies.sum() == pytest.approx(1)
    assert corpus.bits_per_byte(two, frequencies) == pytest.approx(1, abs=0.01)
    assert corpus.bits_per_byte(np.frombuffer(b"z", dtype=np.uint8), frequencies) > 16


def test_the_corpus_needs_no_torch() -> None:
    """Importing the corpus and the contract leaves torch and onnx out: the demo reads them."""
    code = "import sys, model.corpus, model.contract; assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
