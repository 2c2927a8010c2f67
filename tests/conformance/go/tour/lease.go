package main

import (
	"sort"
	"time"

	"trilith.test/etcd"
)

// leaseCalls is the part of Lease's calls one by one.
func (t *tour) leaseCalls() {
	given := t.grant("given by the server", 60)
	t.revoke("it at once", t.grant("below the minimum", 1))
	t.revoke("it at once", t.grant("zero", 0))
	t.revoke("it at once", t.grant("negative", -5))
	long := t.grant("long", 9_000_000_000)
	t.timeToLive("fresh", given)
	t.put("a", "1", etcd.WithLease(given))
	t.put("b", "2", etcd.WithLease(given))
	t.put("c", "3", etcd.WithLease(long))
	t.timeToLive("with keys", given, etcd.WithAttachedKeys())
	t.get("of a lease", "a")
	t.attachments(given)
	t.keepOnce("given", given)
	t.listed(given, long)
	ctx, cancel := t.watchAll()
	defer cancel()
	t.revoke("given", given)
	t.events("revoked", ctx, 3)
	t.revoke("given again", given)
	t.timeToLive("revoked", given, etcd.WithAttachedKeys())
	t.keepOnce("revoked", given)
	t.put("a", "1", etcd.WithLease(given))
	t.get("after", "", etcd.WithPrefix())
	for _, id := range t.leases[4:] {
		t.revoke(t.lease(id), id)
	}
	t.get("after all", "", etcd.WithPrefix())
}

// attachments moves keys from lease to lease and from it.
func (t *tour) attachments(given etcd.LeaseID) {
	other := t.grant("other", 60)
	t.put("d", "4", etcd.WithLease(given))
	t.put("d", "5", etcd.WithLease(other))
	t.put("e", "6", etcd.WithLease(given))
	t.put("e", "7")
	t.put("f", "8", etcd.WithLease(other))
	t.put("f", "9", etcd.WithIgnoreLease())
	t.put("g", "10", etcd.WithLease(given))
	t.del("g", "g")
	t.put("h", "11", etcd.WithLease(given))
	t.put("h", "", etcd.WithIgnoreValue(), etcd.WithLease(other))
	t.commit("in a transaction", nil, []etcd.Op{etcd.OpPut(t.prefix+"i", "12", etcd.WithLease(given))}, nil)
	t.timeToLive("given", given, etcd.WithAttachedKeys())
	t.timeToLive("other", other, etcd.WithAttachedKeys())
	t.commit("compared", []etcd.Cmp{etcd.Compare(etcd.LeaseValue(t.prefix+"i"), "=", given)}, nil, nil)
}

func (t *tour) grant(name string, ttl int64) etcd.LeaseID {
	answer, err := t.client.Grant(t.ctx, ttl)
	if t.failed("grant "+name, err) {
		return 0
	}
	t.say("grant %s: %s %s ttl %d, positive id %t", name, t.header(answer.ResponseHeader), t.lease(answer.ID), answer.TTL, answer.ID > 0)
	return answer.ID
}

func (t *tour) revoke(name string, id etcd.LeaseID) {
	answer, err := t.client.Revoke(t.ctx, id)
	if !t.failed("revoke "+name, err) {
		t.say("revoke %s: %s", name, t.header(answer.Header))
	}
}

func (t *tour) keepOnce(name string, id etcd.LeaseID) {
	answer, err := t.client.KeepAliveOnce(t.ctx, id)
	if !t.failed("keep alive once "+name, err) {
		t.say("keep alive once %s: %s %s ttl %d", name, t.header(answer.ResponseHeader), t.lease(answer.ID), answer.TTL)
	}
}

func (t *tour) timeToLive(name string, id etcd.LeaseID, options ...etcd.LeaseOption) {
	answer, err := t.client.TimeToLive(t.ctx, id, options...)
	if t.failed("time to live "+name, err) {
		return
	}
	left := "not what was granted"
	if answer.TTL < 0 {
		left = "none"
	} else if answer.TTL <= answer.GrantedTTL && answer.TTL >= answer.GrantedTTL-20 {
		left = "some"
	}
	keys := make([]string, len(answer.Keys))
	for i, key := range answer.Keys {
		keys[i] = t.key(key)
	}
	sort.Strings(keys)
	t.say("time to live %s: %s %s left %s of %d, keys %v", name, t.header(answer.ResponseHeader), t.lease(answer.ID), left, answer.GrantedTTL, keys)
}

// listed says which of the leases the server lists; others may be there too.
func (t *tour) listed(ids ...etcd.LeaseID) {
	answer, err := t.client.Leases(t.ctx)
	if t.failed("leases", err) {
		return
	}
	for _, id := range ids {
		times := 0
		for _, lease := range answer.Leases {
			if lease.ID == id {
				times++
			}
		}
		t.say("leases: %s listed %d times", t.lease(id), times)
	}
}

// expiry is the part of leases that end by themselves, and of one that is kept.
func (t *tour) expiry() {
	channel, cancel := t.watchAll()
	defer cancel()
	short := t.grant("short", shortTTL)
	kept := t.grant("kept", shortTTL)
	t.put("short/a", "1", etcd.WithLease(short))
	t.put("short/b", "2", etcd.WithLease(short))
	t.put("kept", "3", etcd.WithLease(kept))
	alive, err := t.client.KeepAlive(t.ctx, kept)
	if t.failed("keep alive", err) {
		return
	}
	go func() {
		for range alive {
		}
	}()
	t.events("put and expired", channel, 5)
	t.timeToLive("expired", short)
	t.keepOnce("expired", short)
	t.revoke("expired", short)
	time.Sleep(2 * time.Second)
	t.get("after", "", etcd.WithPrefix())
	t.revoke("kept", kept)
	t.events("revoked", channel, 1)
	late, err := t.client.KeepAlive(t.ctx, kept)
	if t.failed("keep alive of a revoked lease", err) {
		return
	}
	select {
	case answer, open := <-late:
		t.say("keep alive of a revoked lease: open %t %v", open, answer)
	case <-time.After(20 * time.Second):
		t.say("keep alive of a revoked lease: open after 20 seconds")
	}
}
