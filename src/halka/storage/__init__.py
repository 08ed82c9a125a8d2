"""Storage: write and read adapter folders, keep many in a store, and load those in use into memory.

Public: `AdapterFolder`, `AdapterPool`, `AdapterStore`, `Card`, `load`, `open`, `save`; other tools' formats are in
`formats`.
"""
