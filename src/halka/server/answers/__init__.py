"""OpenAI's routes that answer: chat, completions, responses, the list of models."""
