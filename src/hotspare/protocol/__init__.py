"""What surrounds the consensus, just as pure: founding and joining, origins, cluster time, snapshots."""
