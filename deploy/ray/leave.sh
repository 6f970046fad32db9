#!/bin/sh
# Before a pod of a Ray cluster ends (preStop): a driver here gets SIGTERM, flushes and writes its checkpoint, which a
# learner here takes part in; only then do Ray's own processes end. `ray stop` by itself would end them all at once.
#
# LEAVE_S   how long to wait for driver and learner   (35; the pod's grace period has to be 15 s longer)
set -eu
left="${LEAVE_S:-35}"
pkill -TERM -f '/qherd (train|resume) ' || true
while [ "$left" -gt 0 ] && pgrep -f '/qherd (train|resume) |^ray::LearnerWorker' >/dev/null; do
  sleep 1
  left=$((left - 1))
done
exec ray stop --grace-period 10
