"""Files for llama.cpp: a whole model with its tokenizer (`model`, `tokenizer`), and a LoRA alone (`lora`)."""
