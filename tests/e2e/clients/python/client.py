"""Puts, gets and deletes with python-etcd3 and prints every answer, one line a call."""

import sys

import etcd3


def show(name, answer):
    """Prints one answer; metadata is spelled out field by field."""
    print(name, repr(answer))


def pair(item):
    """Value and metadata of one key."""
    value, meta = item
    if meta is None:
        return (value, None)
    facts = (meta.key, meta.create_revision, meta.mod_revision, meta.version, meta.lease_id)
    header = meta.response_header
    return (value, facts, (header.revision, header.raft_term, header.member_id, header.cluster_id))


def attempt(name, call):
    """Prints what the call returns or the class and text of what it raises."""
    try:
        show(name, call())
    except Exception as error:  # every error is an answer to compare
        code = getattr(error, "code", None)
        details = getattr(error, "details", None)
        show(name, (type(error).__name__, str(code() if code else error), details() if details else ""))


def main():
    client = etcd3.client(host="127.0.0.1", port=int(sys.argv[1]), timeout=60)
    for number in range(10):
        response = client.put("key/%02d" % number, "value %d" % (9 - number))
        show("put", (response.header.revision, response.header.raft_term))
    response = client.put("key/03", "again", prev_kv=True)
    show("put prev", (response.header.revision, response.prev_kv.value, response.prev_kv.mod_revision))
    show("put bytes", client.put(b"bytes/\x00\xff", b"\x00\x01\xfe\xff").header.revision)

    show("get", pair(client.get("key/03")))
    show("get absent", pair(client.get("nothing")))
    show("get serializable", pair(client.get("key/03", serializable=True)))
    show("prefix", [pair(item) for item in client.get_prefix("key/")])
    show("prefix keys only", [pair(item) for item in client.get_prefix("key/", keys_only=True)])
    show("range", [pair(item) for item in client.get_range("key/02", "key/05")])
    show("all", [pair(item) for item in client.get_all()])
    for target in ("key", "version", "create", "mod", "value"):
        for order in ("ascend", "descend"):
            items = client.get_prefix("key/", sort_order=order, sort_target=target)
            show("sorted %s %s" % (target, order), [item[1].key for item in items])

    show("delete", client.delete("key/00"))
    show("delete absent", client.delete("key/00"))
    response = client.delete("key/01", prev_kv=True, return_response=True)
    show("delete prev", (response.deleted, response.prev_kvs[0].value, response.header.revision))
    show("delete prefix", client.delete_prefix("key/").deleted)
    show("rest", [pair(item) for item in client.get_all()])

    attempt("empty key", lambda: client.put("", "x"))
    attempt("lease", lambda: client.put("k", "x", lease=4660))
    status = client.status()
    show("status", (status.version, status.leader.id, status.raft_term))
    members = [(member.id, member.name, list(member.peer_urls), list(member.client_urls)) for member in client.members]
    show("members", members)
    show("alarms", list(client.list_alarms()))
    print("done")


if __name__ == "__main__":
    main()
