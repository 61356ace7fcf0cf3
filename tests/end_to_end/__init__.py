"""The command line as a user runs it: files in, committed results out, on several numbers of ranks."""
