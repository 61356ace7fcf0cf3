"""What moves: schemas, columns, batches, and the arithmetic of partitions. Knows no MPI and no files."""
