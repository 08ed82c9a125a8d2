"""Embed texts as vectors. The default embedder is MiniLM, which comes in a PyPI wheel, so it needs no hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from halka.util.errors import HalkaError
from halka.util.quiet import quiet_libraries

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT = "minilm-l6"
SAMPLE, NUMBERS = "Parcels are sent on Monday, refunds take nine days.", 32  # of whose vector so many are recorded
ALIKE = 0.99  # their cosine at least; other devices and precisions leave 0.999
PASSAGE = 512  # the most tokens of a passage, however long the texts are that an embedder takes: several fit a prompt


class Embedder(Protocol):
    """The interface of embedders. Vectors have unit length, so that their dot products are cosines."""

    name: str
    width: int
    limit: int  # the most tokens of a passage, special ones included

    @property
    def tokenizer(self) -> Tokenizer: ...

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, width) of texts to search, fp32."""
        ...

    def query(self, text: str) -> np.ndarray:
        """The vector (width,) of a question, fp32."""
        ...


class SentenceEmbedder:
    """An embedder of the sentence-transformers library: a known short name, a folder, or a name on the hub."""

    def __init__(
        self, name_or_path: str = DEFAULT, *, dtype: str = "bfloat16", device: str | None = None, batch_size: int = 64
    ):
        """Load it. It computes in `dtype`, or as `load_base` does where the device lacks bfloat16; vectors are fp32.

        Raises HalkaError if the extra `rag` is missing, and for a name or folder that is not an embedder.
        """
        try:
            with quiet_libraries():
                from sentence_transformers import SentenceTransformer
        except ImportError:
            raise HalkaError("embedding texts needs the extra: pip install 'halka[rag]'") from None
        from halka.models.loading import place_of
        from halka.util.precision import usable_precision

        self.name = embedder_name(name_or_path)
        self.batch_size = batch_size
        folder, precision = str(folder_of(self.name)), usable_precision(dtype, place_of(device))
        try:
            with quiet_libraries():
                self._model: Any = SentenceTransformer(
                    folder,
                    device=device,
                    trust_remote_code=False,
                    model_kwargs={"dtype": precision, "use_kernels": False},  # which would be the hub's code
                )
        except (OSError, ValueError, KeyError) as error:
            raise HalkaError(f"{name_or_path} cannot be loaded as an embedder: {error}") from error
        self.width = int(self._model.get_embedding_dimension())
        self.limit = int(min(self._model.max_seq_length or PASSAGE, PASSAGE))  # inf where any length is taken
        tokenizer = self._model.tokenizer
        self._tokenizer = counting(getattr(tokenizer, "backend_tokenizer", tokenizer))  # or it is one of tokenizers'

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @cached_property
    def sample(self) -> list[float]:
        """The first numbers of a certain text's vector, by which these weights are recognised in any folder."""
        return [round(float(number), 4) for number in self.passages([SAMPLE])[0, :NUMBERS]]

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._vectors(list(texts), self._model.encode_document)

    def query(self, text: str) -> np.ndarray:
        return self._vectors([text], self._model.encode_query)[0]

    def _vectors(self, texts: list[str], encode: Callable[..., Any]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.width), np.float32)
        vectors = encode(texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True).float()
        return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy(force=True)


def counting(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that counts a text's tokens: without the padding and truncation that a tokenizer's file may set."""
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def about_embedder(embedder: Embedder) -> dict[str, Any]:
    """What a collection records of an embedder."""
    about = {"embedder": embedder.name, "width": embedder.width}
    return about | ({"sample": embedder.sample} if isinstance(embedder, SentenceEmbedder) else {})


def is_own(embedder: Embedder, about: Mapping[str, Any]) -> bool:
    """Whether an embedder makes the vectors of a collection with these records: by its sample, or else by its name."""
    if "sample" not in about or not isinstance(embedder, SentenceEmbedder):
        return embedder.name == about["embedder"] or embedder.name == embedder_name(about["embedder"])
    then, now = np.array(about["sample"]), np.array(embedder.sample)
    return then.shape == now.shape and bool(then @ now >= ALIKE * np.linalg.norm(then) * np.linalg.norm(now))


def embedder_name(name: str | Path) -> str:
    """An embedder's name in collections: the whole path of a folder, else the name."""
    from halka.models.fetching import known_bases

    return str(Path(name).absolute()) if str(name) not in known_bases() and Path(name).is_dir() else str(name)


def folder_of(name: str) -> str | Path:
    """The folder of an embedder with a short name, pulled if need be; else the folder or hub name itself."""
    from halka.models.fetching import known_bases, pull

    return pull(name) if name in known_bases() else name
