"""The command line: one command per file, nothing heavy imported until a command needs it."""
