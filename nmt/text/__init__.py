"""Text to batches of ids: pairs of lines, vocabularies, encoded corpora, batches."""
