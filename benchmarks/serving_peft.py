"""What people write first to serve adapters: FastAPI around a PeftModel, which takes one request after the other.

python benchmarks/serving_peft.py STORE PORT
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from peft import PeftModel
from transformers import TextIteratorStreamer

from halka.models.loading import load_base
from halka.storage.adapter_store import AdapterStore


def app_of(store: AdapterStore) -> FastAPI:
    base, tokenizer = load_base("smollm2-135m", device="cpu")
    first, *others = store.list()
    model: Any = PeftModel.from_pretrained(base, first.folder, adapter_name=first.name)
    for stored in others:
        model.load_adapter(stored.folder, adapter_name=stored.name)
    model.eval()
    one_at_a_time = threading.Lock()
    app = FastAPI()

    @app.get("/")
    def ready() -> dict[str, str]:
        return {}

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> StreamingResponse:
        prompt = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

        def chunks() -> Iterator[str]:
            with one_at_a_time, torch.inference_mode():
                model.set_adapter(body["model"])
                streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
                options = {"max_new_tokens": body["max_tokens"], "do_sample": False, "streamer": streamer}
                tokens: list[int] = []
                work = threading.Thread(target=lambda: tokens.extend(generated(model, prompt, options)))
                work.start()
                for text in streamer:
                    yield line({"delta": {"content": text}, "finish_reason": None})
                work.join()
            yield line({"delta": {}, "finish_reason": "stop"}, {"completion_tokens": len(tokens)})

        return StreamingResponse(chunks(), media_type="text/event-stream")

    return app


def generated(model: Any, prompt: Any, options: dict[str, Any]) -> list[int]:
    with torch.inference_mode():
        return model.generate(**prompt, **options)[0, prompt["input_ids"].shape[1] :].tolist()


def line(choice: dict[str, Any], usage: dict[str, int] | None = None) -> str:
    chunk = {"object": "chat.completion.chunk", "created": int(time.time()), "choices": [choice], "usage": usage}
    return f"data: {json.dumps(chunk)}\n\n"


if __name__ == "__main__":
    uvicorn.run(app_of(AdapterStore(sys.argv[1])), port=int(sys.argv[2]), log_level="error")
