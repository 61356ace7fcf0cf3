"""Formats, one per file. A source cuts its input into splits from the data alone and reads a split as batches."""
