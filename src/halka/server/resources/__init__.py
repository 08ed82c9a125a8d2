"""What tenants keep: adapters, collections of documents, and the embedder as a model of its own."""
