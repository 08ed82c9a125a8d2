"""Retrieval: documents to passages, passages to answers with sources."""
