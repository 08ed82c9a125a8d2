"""Storage: an adapter's folder, written and read; many of them in a store, and the most recently used in memory.

Public: `AdapterFolder`, `AdapterPool`, `AdapterStore`, `Card`, `load`, `open`, `save`; other tools' formats are in
`formats`.
"""
