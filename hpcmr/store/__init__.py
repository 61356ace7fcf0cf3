"""What must survive: names of files, shards, manifests, publishing."""
