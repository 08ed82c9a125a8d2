"""RAG: collections of documents, search in them, and answers with sources by any callable from a prompt to text.

Public: `collection.Collection` (documents under one name, kept fresh), `store.Scope` (who asks, and where to look),
`retrieve.Retriever` (a question to passages), `answer.Answerer` (a question to an answer with sources), `raft.Raft`
(training data for answering from passages). Each is imported from its module: they need the extra `rag`.
"""

PASSAGES = 4  # in a prompt, where nobody says how many; here, so that the command line starts without the rest
