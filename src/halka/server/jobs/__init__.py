"""Training, evaluation and advice as jobs: a folder on the disk, a queue, and a process that survives the server."""
