"""What must survive: names of files, shards, manifests, publishing. Knows no MPI: ranks bring their results together in `run`."""
