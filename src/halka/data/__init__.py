"""Data: files to examples, examples to tokens, tokens to batches, and the task that holds them together."""
