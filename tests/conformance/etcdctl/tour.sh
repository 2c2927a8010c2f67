#!/usr/bin/env bash
# Shows what an etcd v3 endpoint answers to the commands of etcdctl.
#
# Usage: tour.sh ETCDCTL HOST:PORT PART..
#
# Each part works below a key prefix of its own and removes it first. In commands `@a` is key a below that prefix and
# `%3` the third revision after the part began. Output is printed as it comes, but for ids, times, sizes and addresses;
# revisions are printed as 1000 plus the distance from the one the part began at.
set -u -o pipefail

[ $# -ge 3 ] || { echo "usage: tour.sh ETCDCTL HOST:PORT PART.." >&2; exit 2; }
ctl=$1 endpoint=$2
shift 2
for name in $(compgen -e | grep '^ETCDCTL_'); do unset "$name"; done
export LC_ALL=C
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT

# Every run: its own limits, of 2 and 5 seconds, are too short for a busy machine.
patient=(--endpoints="$endpoint" --dial-timeout=20s --command-timeout=20s)

# Runs etcdctl for at most 30 seconds.
etcdctl() { timeout 30 "$ctl" "${patient[@]}" "$@"; }

# Replaces what differs from run to run.
mask() {
  BASE=$base PREFIX=$prefix ENDPOINT=$endpoint perl -pe '
    next if s/^\{"level".*\n//;
    s/\Q$ENV{PREFIX}\E//g; s/\Q$ENV{ENDPOINT}\E/ENDPOINT/g; s/127\.0\.0\.1:\d+/ADDRESS/g;
    sub distance { $_[0] ? $_[0] - $ENV{BASE} + 1000 : 0 }
    sub ordered { join $_[0], sort split $_[0], $_[1] }
    s/("(?:\w*_)?revision":)(\d+)/$1 . distance($2)/ge;
    s/("\w*Revision" : )(\d+)/$1 . distance($2)/ge;
    s/(revision |progress notify: )(\d+)/$1 . distance($2)/ge;
    s/(attached keys\(\[)([^\]]*)/$1 . ordered(" ", $2)/ge; s/("keys":\[)([^\]]*)/$1 . ordered(",", $2)/ge;
    s/("(?:cluster_id|member_id|raft_term|leader|ID|id|lease|hash)":)-?\d+/${1}N/g;
    s/("(?:raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse|dbSizeQuota)":)-?\d+/${1}N/g;
    s/("(?:ClusterID|MemberID|RaftTerm|Leader|ID|Lease|Hash)" : )-?\d+/${1}N/g;
    s/("(?:RaftIndex|RaftAppliedIndex|DBSize|DbSize|DBSizeInUse|DBSizeQuota)" : )-?\d+/${1}N/g;
    s/("(?:took|name)":)"[^"]*"/${1}"T"/g; s/(took = |took )[0-9.]+[^ ,\s]*/${1}T/g;
    s/\b[0-9a-f]{15,16}\b/ID/g; s/\b\d{15,20}\b/ID/g; s/remaining\(\d+s\)/remaining(T)/;
  '
}

# The command as it is shown, with its words made real in `words`.
real() {
  words=()
  local word
  for word in "$@"; do
    word=${word//@/$prefix}
    if [[ $word =~ ^(.*)%([0-9]+)$ ]]; then word=${BASH_REMATCH[1]}$((base + BASH_REMATCH[2])); fi
    words+=("$word")
  done
}

# Runs one command and shows what it printed and its exit status.
e() {
  echo "\$ $*" | mask
  real "$@"
  local status
  etcdctl "${words[@]}" >"$work/out" 2>"$work/err" </dev/null
  status=$?
  cat "$work/out" "$work/err" | mask
  [ $status = 0 ] || echo "exit $status"
}

# The same with standard input, in which @ and % are made real too.
with_input() {
  local input=$1
  shift
  echo "\$ $* << $input"
  input=${input//@/$prefix}
  printf "$input" | etcdctl "$@" 2>&1 | mask
  echo "exit ${PIPESTATUS[1]}"
}

# Starts a command in the background, its output in the file of that name.
background() {
  local name=$1
  shift
  echo "\$ $* &" | mask
  real "$@"
  timeout 90 "$ctl" "${patient[@]}" "${words[@]}" >"$work/$name" 2>&1 </dev/null &
  job=$!
}

# Waits until the file has the pattern that many times.
await() {
  local name=$1 pattern=$2 count=$3 tries=0
  until [ "$(grep -c -- "$pattern" "$work/$name" 2>/dev/null)" -ge "$count" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then echo "$name: not $count times $pattern within 30 seconds"; return; fi
    sleep 0.05
  done
}

# Ends a background command and waits for it.
finish() {
  kill -"${2:-TERM}" "$1" 2>/dev/null
  wait "$1" 2>/dev/null
}

show() {
  echo "-- $1"
  mask <"$work/$1"
}

part_kv() {
  e put @a 1
  e put @a 2 --prev-kv
  e put @b b1
  e put @d/1 1
  e put @d/2 2
  e put @d/3 3
  e put @a --ignore-value
  e put @none --ignore-value
  e put @a 4 --ignore-lease
  e put @a 5 --lease=7b
  e put @a 6 -w json
  e put @a 7 -w fields
  e get @a
  e get @a -w json
  e get @a -w fields
  e get @a --print-value-only
  e get @a --hex
  e get @a --rev=%2
  e get @a --rev=%1000
  e get @none
  e get @d/ --prefix
  e get @d/ --prefix --limit=2 -w json
  e get @d/ --prefix --keys-only
  e get @d/ --prefix --count-only -w json
  e get @d/ --prefix --count-only -w fields
  e get @d/ --prefix --order=DESCEND
  e get @d/ --prefix --sort-by=VALUE --order=DESCEND
  e get @d/ --prefix --sort-by=CREATE --limit=2 -w json
  e get @d/ --prefix --sort-by=MODIFY
  e get @d/ --prefix --sort-by=VERSION
  e get @d/ --prefix --consistency=s
  e get @d/1 @d/3
  e get @d/3 @d/1
  e get @d/2 @e --limit=1 -w json
  e del @none
  e del @b --prev-kv
  e del @d/1 @d/3 -w json
  e del @d --prefix --prev-kv -w fields
  e get @ --prefix
  e compaction %4
  e compaction %4
  e compaction %1000
  e compaction %6 --physical
  e get @a --rev=%5
  e get @a --rev=%6
}

part_txn() {
  e put @a 1
  with_input 'value("@a") = "1"\n\nput @a 2\nget @a\n\nget @b\n\n' txn
  with_input 'value("@a") = "1"\n\nput @a 3\n\nget @a\nput @b 1\n\n' txn
  with_input 'version("@a") > "1"\nmod("@b") > "0"\n\ndel @b\nget @b\n\n\n' txn -w json
  with_input 'create("@none") = "0"\n\nput @none 1\n\n\n' txn -w fields
  with_input '\nput @a 1\nput @a 2\n\n\n' txn
  with_input 'nonsense\n\n\n\n' txn
  with_input 'value("@a") = "1"\n\nput @c 1\n\n\n' txn --interactive
  e get @ --prefix
}

part_watch() {
  background past watch @ --prefix --rev=%1
  past=$job
  background previous watch @a --prev-kv --rev=%1
  previous=$job
  background exec watch @a --rev=%1 -- sh -c 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'
  exec=$job
  background span watch @b @d --rev=%2
  span=$job
  e put @a 1
  e put @b 2
  e put @a 3
  e del @b
  e put @c 5
  e del @ --prefix
  await past DELETE 3
  await previous DELETE 1
  await exec '"DELETE"' 1
  await span DELETE 2
  for job in $past $previous $exec $span; do finish $job; done
  for name in past previous span; do show $name; done
  # Two processes write this one, in any order.
  show exec | sort
  part_watch_live
  part_watch_interactive
  e compaction %2
  e watch @x --rev=%1
}

# Watches of what comes: a key is put until both watches tell of it, and then left out of what they told.
part_watch_live() {
  background live watch @ --prefix
  local live=$job
  background json watch @ --prefix --prev-kv -w json
  local json=$job tries=0 encoded
  encoded=$(printf %s "${prefix}probe" | base64 -w0)
  until grep -q probe "$work/live" && grep -q "$encoded" "$work/json" || [ $((tries += 1)) -gt 400 ]; do
    etcdctl put "${prefix}probe" probe >"$work/probe"
    sleep 0.05
  done
  restart
  e put @x 1
  e put @x 2
  e del @x
  await live DELETE 1
  await json 'DELETE\|"type":1' 1
  finish $live
  finish $json
  perl -0pi -e 's/PUT\n[^\n]*probe\nprobe\n//g' "$work/live"
  sed -i "/\"key\":\"$encoded\"/d" "$work/json"
  show live
  show json
}

part_watch_interactive() {
  mkfifo "$work/commands"
  background_interactive
  exec 9>"$work/commands"
  echo "watch ${prefix}x --rev=$((base + 1))" >&9
  await interactive '^DELETE' 1
  echo "watch ${prefix}none" >&9
  echo "watch ${prefix}x ${prefix}z --rev=$((base + 2)) --prev-kv" >&9
  await interactive '^DELETE' 2
  echo progress >&9
  await interactive '^progress notify' 3
  echo nonsense >&9
  await interactive 'nonsense' 1
  exec 9>&-
  wait $interactive
  rm "$work/commands"
  show interactive
}

background_interactive() {
  echo "\$ watch -i &"
  timeout 90 "$ctl" "${patient[@]}" watch -i <"$work/commands" >"$work/interactive" 2>&1 9>&- &
  interactive=$!
}

granted() { sed -n 's/^lease \([0-9a-f]*\) granted.*/\1/p' "$work/out"; }

part_lease() {
  e lease grant 100
  local long short
  long=$(granted)
  e lease grant 0
  e lease grant 9000000001
  e lease grant 100 -w json
  e put @a 1 --lease="$long"
  e put @b 2 --lease="$long"
  e lease timetolive "$long"
  e lease timetolive "$long" --keys
  e lease timetolive "$long" --keys -w json | sed 's/"ttl":[0-9]*/"ttl":T/'
  e lease timetolive 7b
  e lease keep-alive --once "$long"
  e lease keep-alive 7b
  echo "\$ lease list has it: $(etcdctl lease list | grep -c "$long")"
  background gone watch @ --prefix --rev=%3
  local gone=$job
  e lease grant 5
  short=$(granted)
  e put @short 3 --lease="$short"
  await gone DELETE 1
  e lease timetolive "$short"
  e lease revoke "$long"
  e lease revoke "$long"
  await gone DELETE 3
  finish $gone
  show gone
  e lease grant 6
  short=$(granted)
  background kept lease keep-alive "$short"
  local kept=$job
  await kept keepalived 1
  e lease revoke "$short"
  wait $kept
  echo "-- kept"
  mask <"$work/kept" | uniq
  e get @ --prefix
}

part_locks() {
  e lock @lock echo held
  e lock @lock -- sh -c 'exit 3'
  background first lock @lock
  local first=$job
  await first lock/ 1
  background second lock @lock
  local second=$job tries=0
  until [ "$(etcdctl get "${prefix}lock/" --prefix --keys-only | grep -c .)" = 2 ] || [ $((tries += 1)) -gt 100 ]; do
    sleep 0.05
  done
  show second
  finish $first
  await second lock/ 1
  finish $second
  show first
  show second
  e get @lock --prefix
  background leader elect @post one
  local leader=$job
  await leader one 1
  background observer elect --listen @post
  local observer=$job
  await observer one 1
  background next elect @post two
  local next=$job
  finish $leader
  await next two 1
  await observer two 1
  finish $next
  finish $observer
  for name in leader next observer; do show $name; done
  e get @post --prefix
}

part_maintenance() {
  e put @a 1
  e endpoint health
  e endpoint health -w json
  e endpoint status -w json
  e endpoint status -w fields
  echo "\$ endpoint hashkv: $(etcdctl endpoint hashkv | awk -F', ' '{print NF " columns"}')"
  e endpoint hashkv -w json | sed 's/"compact_revision":[0-9-]*/"compact_revision":N/'
  e endpoint health --cluster | sed 's/http:..ADDRESS/ENDPOINT/'
  e member list -w json
  e member list -w fields | sed 's/"Name" : .*/"Name" : T/'
  echo "\$ member list: $(etcdctl member list | awk -F', ' '{print NF " columns, " $2 ", learner " $6}')"
  e alarm list
  e alarm disarm
  e defrag
  e defrag --cluster | sed 's/http:..ADDRESS/ENDPOINT/'
  e get @a
}

part_perf() {
  etcdctl_long check perf --load=s 2>&1 | tr '\r' '\n' | grep -o 'PASS.*\|FAIL.*' | sed 's/[0-9.]\+/N/g'
  e get /etcdctl-check-perf/ --prefix --keys-only
}

etcdctl_long() { timeout 150 "$ctl" "${patient[@]}" "$@"; }

# One line a command: that it is done, or why not.
brief() {
  local text
  if text=$(etcdctl "$@" 2>&1 </dev/null); then
    echo "${*//$work/}: done"
  else
    echo "${*//$work/}: $(printf '%s\n' "$text" | grep -v '^{"level"' | tail -1 | mask)"
  fi
}

part_auth() {
  brief user list
  brief role list
  brief user get nobody
  brief role get nothing
  brief user delete nobody
  brief auth enable
}

part_snapshot() {
  brief snapshot save "$work/snapshot"
}

# The revision that counts as the beginning.
restart() {
  base=$(etcdctl get conformance/none -w json | sed 's/.*"revision":\([0-9]*\).*/\1/')
}

for name in "$@"; do
  echo "== $name"
  prefix=conformance/etcdctl/$name/
  if ! declare -F "part_$name" >/dev/null; then echo "there is no part '$name'" >&2; exit 2; fi
  etcdctl del "$prefix" --prefix >"$work/out" 2>&1 || { echo "cannot begin:"; cat "$work/out"; exit 1; }
  restart
  "part_$name"
done
