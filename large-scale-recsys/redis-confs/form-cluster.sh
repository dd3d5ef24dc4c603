#!/bin/sh
# Makes the Redis nodes host:port ... a cluster: gives each its share of the slots and makes them known to the first.
# It does only what is not done yet, so it may run at every start. Hosts are IP addresses, as CLUSTER MEET wants them.
set -eu

ask() {
  node=$1
  shift
  redis-cli -e -h "${node%:*}" -p "${node##*:}" "$@"
}

field() {
  ask "$1" cluster info | tr -d '\r' | sed -n "s/^cluster_$2://p"
}

for each; do
  until ask "$each" ping | grep -q PONG; do sleep 1; done
done

number=0
for each; do
  first=$((16384 * number / $#))
  number=$((number + 1))
  if [ "$(field "$each" slots_assigned)" = 0 ]; then
    ask "$each" cluster addslotsrange "$first" $((16384 * number / $# - 1)) > /dev/null
  fi
done

for each; do
  ask "$1" cluster meet "${each%:*}" "${each##*:}" > /dev/null
done

tries=60
for each; do
  until [ "$(field "$each" state) $(field "$each" slots_assigned) $(field "$each" known_nodes)" = "ok 16384 $#" ]; do
    tries=$((tries - 1))
    if [ "$tries" = 0 ]; then
      echo "$each is not in the cluster: see the logs of the nodes, and the output of: cluster nodes" >&2
      exit 1
    fi
    sleep 1
  done
done
echo "$# nodes form a cluster"
