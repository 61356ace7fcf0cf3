"""What a user writes: tables, functions, aggregates, job files."""
