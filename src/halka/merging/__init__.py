"""Merge adapters: measure the error (`error`), combine several (`combining`), write for other tools (`exporting`)."""
