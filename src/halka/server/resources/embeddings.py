"""`/v1/embeddings`: vectors of texts by the embedder of the collections, which is a model of its own."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from halka.rag.collection import BATCH
from halka.rag.embed import Embedder
from halka.server.errors import ApiError, unknown_model
from halka.server.guards.access import CallerDep
from halka.server.requests import ANY, Body
from halka.server.service import ServiceDep
from halka.server.wire import Json

router = APIRouter()
MOST = 2048  # texts of a request, as OpenAI has it
LONGEST = 100_000  # characters of a text


class EmbeddingsRequest(Body):
    neutral: ClassVar[dict[str, Any]] = {"user": ANY, "dimensions": ()}
    model: str
    input: (
        Annotated[str, Field(max_length=LONGEST)]
        | Annotated[list[Annotated[str, Field(max_length=LONGEST)]], Field(min_length=1, max_length=MOST)]
    )
    encoding_format: Literal["float", "base64"] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: Any) -> Any:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, int) or (isinstance(first, list) and all(isinstance(token, int) for token in first)):
            raise PydanticCustomError(
                "unsupported",
                "input is token ids, which are another tokenizer's: send text (LangChain's OpenAIEmbeddings does with "
                "check_embedding_ctx_length=False)",
            )
        return value


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsRequest, service: ServiceDep, caller: CallerDep) -> Response:
    """Embed a text, or each of a list."""
    if body.model != service.embedders.default:
        raise unknown_model(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    search = service.threads.near.search
    embedder = await search(service.embedders.get)
    tokens = await search(lambda: _tokens(embedder, texts))
    caller.lease.reserve(0, tokens)
    caller.lease.spend(tokens)
    vectors = list[np.ndarray]()
    for start in range(0, len(texts), BATCH):  # a call each: others' searches go in between
        vectors.extend(await search(partial(embedder.passages, texts[start : start + BATCH])))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}

    def response() -> Response:
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        return Json({"object": "list", "data": data, "model": body.model, "usage": usage})

    return await service.threads.read(response)  # millions of numbers take a second to write


def _tokens(embedder: Embedder, texts: list[str]) -> int:
    """How many tokens texts have. Raises ApiError for one that is empty, or longer than the embedder reads."""
    tokens = [len(encoding.ids) for encoding in embedder.tokenizer.encode_batch(texts)]
    for index, count in enumerate(tokens):
        if not texts[index].strip():
            raise ApiError(400, f"input[{index}] is empty: send some text", param="input")
        if count > embedder.limit:
            raise ApiError(
                400,
                f"input[{index}] has {count} tokens, and {embedder.name} reads {embedder.limit}: send shorter pieces",
                param="input",
                code="context_length_exceeded",
            )
    return sum(tokens)


def _encoded(vector: np.ndarray, form: str | None) -> list[float] | str:
    """A vector as numbers, or in base64 as little-endian fp32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
