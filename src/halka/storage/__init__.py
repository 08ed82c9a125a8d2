"""Storage: the adapter folder, its Card, a library of many adapters, a pool of those in memory; formats of others."""
