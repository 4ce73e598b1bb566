"""Rankings of documents for queries: by words, by vectors in memory, and as run files."""
