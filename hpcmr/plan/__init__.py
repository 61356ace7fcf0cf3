"""What will run: nodes, the stages made of them, fingerprints and their picture."""
