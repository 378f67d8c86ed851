"""Real daemons, killed, stopped, cut off and started again, while clients write."""
