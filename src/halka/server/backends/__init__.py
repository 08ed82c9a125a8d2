"""Who makes the answers: the engine in this process, and others that answer a part of the requests in its place."""
