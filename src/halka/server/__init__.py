"""OpenAI's API over the engine: keys and tenants, adapters, documents, jobs."""
