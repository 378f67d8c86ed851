"""Raft, complete and pure: no sockets, files, clocks, threads or randomness.

Read in this order: `messages` (what servers say to each other), `quorum` (what a majority is), `log` (the
entries and the configurations in them), `progress` (what a leader knows of each follower), `node` (the
rules).

Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (2014), called *the paper* below;
Ongaro, "Consensus: Bridging Theory and Practice" (Stanford, 2014), called *the dissertation*.
"""
