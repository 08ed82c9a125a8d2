"""vLLM processes with the same base, which answer for LoRAs: <https://docs.vllm.ai/en/stable/features/lora>."""
