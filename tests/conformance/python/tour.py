"""Shows what an etcd v3 endpoint answers to every call of python-etcd3.

Usage: tour.py HOST:PORT PART..

Each part works below a key prefix of its own, removes it first, and prints one line an answer. Revisions are printed
relative to the one the part began at, leases by the order in which they appear.
"""

import io
import queue
import sys
import time

import etcd3
import etcd3.exceptions

SECONDS_MAX = 20


class Tour:
    """One part under way."""

    def __init__(self, host, port, name):
        self.client = etcd3.client(host=host, port=port, timeout=SECONDS_MAX)
        self.prefix = "conformance/python/%s/" % name
        self.leases = []
        self.base = self.client.delete_prefix(self.prefix).header.revision

    def key(self, name):
        return self.prefix + name

    def revision(self, revision):
        return "r%+d" % (revision - self.base) if revision else "r0"

    def lease(self, number):
        if number == 0:
            return "none"
        if number not in self.leases:
            self.leases.append(number)
        return "L%d" % (self.leases.index(number) + 1)

    def pair(self, item):
        """Value and metadata of one key."""
        value, meta = item
        if meta is None:
            return "nothing"
        return "%r = %r create %s mod %s version %d lease %s at %s" % (
            meta.key.decode("latin-1").replace(self.prefix, ""),
            value,
            self.revision(meta.create_revision),
            self.revision(meta.mod_revision),
            meta.version,
            self.lease(meta.lease_id),
            self.revision(meta.response_header.revision),
        )

    def fields(self, pair):
        """A pair as it stands in a message."""
        if not pair.key:
            return "nothing"
        return "%r = %r mod %s version %d lease %s" % (
            pair.key.decode("latin-1").replace(self.prefix, ""),
            pair.value,
            self.revision(pair.mod_revision),
            pair.version,
            self.lease(pair.lease),
        )

    def attempt(self, name, call):
        """Prints what the call returns, or the class and text of what it raises."""
        try:
            print("%s: %s" % (name, call()))
        except Exception as error:  # every error is an answer to compare
            code = getattr(error, "code", None)
            details = getattr(error, "details", None)
            text = "%s %s" % (code(), details()) if code else str(error)
            print("%s: %s %s" % (name, type(error).__name__, text.replace(self.prefix, "")))

    def put(self, name, value, **options):
        def call():
            response = self.client.put(self.key(name), value, **options)
            return "%s before %s" % (self.revision(response.header.revision), self.fields(response.prev_kv))

        self.attempt("put %s" % name, call)


def show_all(name, items):
    print(name)
    for item in items:
        print("  " + item)


def kv(tour):
    for number in range(6):
        tour.put("k%d" % number, "v%d" % (5 - number))
    tour.put("k3", "again", prev_kv=True)
    tour.put("bytes\x00", b"\x00\xff")
    tour.put("", "the prefix itself")
    client = tour.client
    tour.attempt("get", lambda: tour.pair(client.get(tour.key("k3"))))
    tour.attempt("get absent", lambda: tour.pair(client.get(tour.key("none"))))
    tour.attempt("get serializable", lambda: tour.pair(client.get(tour.key("k3"), serializable=True)))
    show_all("prefix", [tour.pair(item) for item in client.get_prefix(tour.prefix)])
    show_all("keys only", [tour.pair(item) for item in client.get_prefix(tour.prefix, keys_only=True)])
    show_all("range", [tour.pair(item) for item in client.get_range(tour.key("k1"), tour.key("k4"))])
    for target in ("key", "version", "create", "mod", "value"):
        for order in ("ascend", "descend"):
            items = client.get_prefix(tour.key("k"), sort_order=order, sort_target=target)
            print("by %s %s: %s" % (target, order, [item[1].key[-2:].decode() for item in items]))
    tour.attempt("put if absent", lambda: client.put_if_not_exists(tour.key("k0"), "no"))
    tour.attempt("put if absent", lambda: client.put_if_not_exists(tour.key("new"), "yes"))
    tour.attempt("replace", lambda: client.replace(tour.key("new"), "yes", "replaced"))
    tour.attempt("replace the wrong value", lambda: client.replace(tour.key("new"), "yes", "no"))
    tour.attempt("delete", lambda: client.delete(tour.key("k0")))
    tour.attempt("delete absent", lambda: client.delete(tour.key("k0")))
    response = client.delete(tour.key("k1"), prev_kv=True, return_response=True)
    print("delete with what was: %d %s" % (response.deleted, tour.fields(response.prev_kvs[0])))
    tour.attempt("delete prefix", lambda: client.delete_prefix(tour.key("k")).deleted)
    tour.attempt("empty key", lambda: client.put("", "x"))
    tour.attempt("too large", lambda: client.put(tour.key("large"), "x" * (3 << 19)))
    tour.attempt("compact", lambda: client.compact(tour.base + 5))
    tour.attempt("compact again", lambda: client.compact(tour.base + 5))
    tour.attempt("compact the future", lambda: client.compact(tour.base + 1000))


def txn(tour):
    client, ops = tour.client, tour.client.transactions
    tour.put("a", "1")
    key, other = tour.key("a"), tour.key("b")

    def run(name, compare, success, failure=()):
        def call():
            succeeded, responses = client.transaction(compare=compare, success=success, failure=list(failure))
            texts = []
            for response in responses:
                if isinstance(response, list):
                    texts.append([tour.pair(item) for item in response])
                else:
                    texts.append(response.WhichOneof("response"))
            return "%s %s" % (succeeded, texts)

        tour.attempt(name, call)

    for name, target, value in (("value", ops.value, "1"), ("version", ops.version, 1)):
        run("%s equal" % name, [target(key) == value], [ops.get(key)], [ops.get(other)])
        run("%s not equal" % name, [target(key) != value], [ops.get(key)], [ops.get(other)])
        run("%s greater" % name, [target(key) > value], [ops.get(key)], [ops.get(other)])
        run("%s less" % name, [target(key) < value], [ops.get(key)], [ops.get(other)])
    run("create", [ops.create(key) == tour.base + 1], [ops.put(other, "2")])
    run("mod", [ops.mod(key) == tour.base + 1], [ops.put(key, "3"), ops.get(key), ops.delete(other)])
    run("absent", [ops.version(tour.key("none")) == 0], [ops.get(key)])
    run("range", [], [ops.get(tour.prefix, range_end=tour.prefix + "z")])
    run("same key twice", [], [ops.put(key, "4"), ops.put(key, "5")])
    run("too many", [], [ops.get(key)] * 129)
    nested = ops.txn([ops.value(key) == "3"], [ops.put(other, "nested")], [])
    run("nested", [], [nested])
    tour.attempt("after", lambda: tour.pair(client.get(other)))


def event(tour, item):
    kind = type(item).__name__
    return "%s %s" % (kind, tour.fields(item._event.kv))


def collect(tour, name, events, count):
    """Prints the next events of a queue."""
    for _ in range(count):
        try:
            item = events.get(timeout=SECONDS_MAX)
        except queue.Empty:
            print("%s: nothing for %d seconds" % (name, SECONDS_MAX))
            return
        if isinstance(item, Exception):
            revision = getattr(item, "compacted_revision", 0)
            print("%s: %s %s" % (name, type(item).__name__, tour.revision(revision)))
            return
        print("%s: %s before %s" % (name, event(tour, item), tour.fields(item._event.prev_kv)))


def subscribe(tour, name, prefix=False, **options):
    """Watches with a callback that fills a queue with events."""
    events = queue.Queue()

    def callback(response):
        if isinstance(response, Exception):
            events.put(response)
        else:
            for item in response.events:
                events.put(item)

    add = tour.client.add_watch_prefix_callback if prefix else tour.client.add_watch_callback
    number = add(tour.key(name), callback, **options)
    return events, number


def watch(tour):
    client = tour.client
    one, first = subscribe(tour, "a")
    everything, second = subscribe(tour, "", prefix=True, prev_kv=True)
    print("watch ids %s" % [first, second])
    tour.put("a", "1")
    tour.put("b", "2")
    tour.put("a", "3")
    client.delete(tour.key("b"))
    collect(tour, "one", one, 2)
    collect(tour, "everything", everything, 4)
    client.cancel_watch(first)
    tour.put("a", "4")
    collect(tour, "everything", everything, 1)
    past, _ = subscribe(tour, "a", start_revision=tour.base + 1)
    collect(tour, "past", past, 3)
    iterator, cancel = client.watch(tour.key("c"))
    tour.put("c", "5")
    print("iterator: %s" % event(tour, next(iterator)))
    cancel()
    tour.attempt("watch once, nothing comes", lambda: client.watch_once(tour.key("d"), timeout=1))
    print("none left of one: %s" % one.empty())
    client.compact(tour.base + 5)
    gone, _ = subscribe(tour, "a", start_revision=tour.base + 2)
    collect(tour, "compacted", gone, 1)


def lease(tour):
    client = tour.client
    short, chosen = client.lease(6), client.lease(60, lease_id=424243)
    print("granted %s %d, %d %d" % (tour.lease(short.id), short.ttl, chosen.id, chosen.ttl))
    tour.attempt("id in use", lambda: client.lease(60, lease_id=424243))
    tour.attempt("too large ttl", lambda: client.lease(9000000001))
    tour.put("a", "1", lease=short)
    tour.put("b", "2", lease=chosen)
    tour.put("c", "3", lease=chosen.id)
    tour.put("d", "4", lease=99)
    print("keys %s" % sorted(key.decode().replace(tour.prefix, "") for key in chosen.keys))
    print("granted ttl %d, remaining %s" % (chosen.granted_ttl, 40 <= chosen.remaining_ttl <= 60))
    events, _ = subscribe(tour, "", prefix=True, prev_kv=True)
    for _ in range(4):
        time.sleep(1.75)
        responses = short.refresh()
        print("refresh: %s" % [(tour.lease(response.ID), response.TTL) for response in responses])
    tour.attempt("kept", lambda: tour.pair(client.get(tour.key("a"))))
    collect(tour, "expired", events, 1)
    responses = short.refresh()
    print("refresh: %s" % [(tour.lease(response.ID), response.TTL) for response in responses])
    print("time to live %d" % short.remaining_ttl)
    tour.attempt("revoke the expired", short.revoke)
    tour.attempt("revoke", chosen.revoke)
    collect(tour, "revoked", events, 2)


def lock(tour):
    # The library keeps locks below a prefix of its own.
    tour.client.delete("/locks/" + tour.prefix + "lock")
    first = tour.client.lock(tour.prefix + "lock", ttl=30)
    second = tour.client.lock(tour.prefix + "lock", ttl=30)
    print("first %s" % first.acquire(timeout=5))
    print("first holds %s, second holds %s" % (first.is_acquired(), second.is_acquired()))
    print("second, which waits, %s" % second.acquire(timeout=2))
    print("refresh %s" % [response.TTL for response in first.refresh()])
    print("release %s" % first.release())
    print("second %s" % second.acquire(timeout=5))
    print("release by the former holder %s" % first.release())
    print("release %s" % second.release())
    brief = tour.client.lock(tour.prefix + "lock", ttl=2)
    print("brief %s" % brief.acquire(timeout=5))
    with tour.client.lock(tour.prefix + "lock", ttl=30) as held:
        print("after its lease %s" % held.is_acquired())


def maintenance(tour):
    client = tour.client
    tour.put("a", "1")
    status = client.status()
    print("version %s, size %s, leads %s" % (status.version, status.db_size > 0, status.leader.id != 0))
    members = list(client.members)
    print("members %d, named %s, URLs %s" % (
        len(members), bool(members[0].name), [len(members[0].peer_urls), len(members[0].client_urls)]))
    print("alarms %s" % list(client.list_alarms()))
    tour.attempt("disarm", lambda: list(client.disarm_alarm()))
    tour.attempt("raise", lambda: [alarm.alarm_type for alarm in client.create_alarm()])
    tour.put("b", "2")
    tour.attempt("delete", lambda: client.delete(tour.key("a")))
    print("alarms %s" % [alarm.alarm_type for alarm in client.list_alarms()])
    tour.attempt("disarm", lambda: [alarm.alarm_type for alarm in client.disarm_alarm()])
    tour.put("b", "3")
    tour.attempt("defragment", client.defragment)
    tour.attempt("hash", lambda: client.hash() > 0)


def snapshot(tour):
    def call():
        stream = io.BytesIO()
        tour.client.snapshot(stream)
        return len(stream.getvalue()) % 512

    tour.attempt("snapshot", call)


PARTS = {part.__name__: part for part in (kv, txn, watch, lease, lock, maintenance, snapshot)}


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: tour.py HOST:PORT PART..")
    host, port = sys.argv[1].rsplit(":", 1)
    for name in sys.argv[2:]:
        print("== " + name)
        PARTS[name](Tour(host, int(port), name))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
