"""Data: from files to examples, from examples to tokens, from tokens to batches; tasks.

Public: `examples` (`Example`, `read_examples`, `as_examples`), `task` (`Task`, `load_task`), `splits` (`hold_out`),
`metric`, `preview`.
"""
