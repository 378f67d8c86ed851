"""A whole cluster with its clients in one thread, under a seeded scheduler; see README.md."""
