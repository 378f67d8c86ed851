#!/bin/sh
# Four daemons on this machine, a session, the death of the primary, and the session again.
#
#     sh examples/four_nodes.sh

set -eu
HOTSPARE=${HOTSPARE:-hotspare}
PORTS=${PORTS:-7401 7402 7403 7404}

nodes=
for port in $PORTS; do
    nodes=${nodes:+$nodes,}127.0.0.1:$port
done
directory=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; wait; rm -rf "$directory"' EXIT

for port in $PORTS; do
    "$HOTSPARE" serve --node "127.0.0.1:$port" --replicas "$nodes" --data-dir "$directory/$port" 2>"$directory/$port.log" &
    pids="$pids $!"
done

# They found the cluster by themselves; the one with the lowest name does, and becomes the primary.
until "$HOTSPARE" store alice '{"user": 7}' --ttl-ms 3600000 --node "$nodes" 2>/dev/null; do
    sleep 0.2
done
"$HOTSPARE" status --node "$nodes"

set -- $pids
kill -9 "$1"
"$HOTSPARE" store bob '{"user": 8}' --ttl-ms 3600000 --node "$nodes"
"$HOTSPARE" get alice --read primary --node "$nodes"
"$HOTSPARE" status --node "$nodes"
