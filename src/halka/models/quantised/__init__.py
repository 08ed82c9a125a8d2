"""A base's layers packed into fewer bits, and the two forms."""
