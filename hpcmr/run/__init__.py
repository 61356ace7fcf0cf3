"""When it happens: the engine, dealing, progress, metrics and reports."""
