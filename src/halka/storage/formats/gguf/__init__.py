"""Write GGUF files for llama.cpp: a whole model with its tokenizer (`model`, `tokenizer`), or only a LoRA (`lora`)."""
