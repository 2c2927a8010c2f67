package main

import (
	"context"
	"fmt"
	"time"

	"trilith.test/etcd"
)

func (t *tour) watchAll() (etcd.WatchChan, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.ctx)
	return t.watch(ctx, "", etcd.WithPrefix()), cancel
}

// open opens a session; its lease gets the next name.
func (t *tour) open(client *etcd.Client, ttl int) *etcd.Session {
	session, err := etcd.NewSession(client, etcd.WithTTL(ttl))
	if t.failed("session", err) {
		panic("the part cannot go on without a session")
	}
	t.say("session %s", t.lease(session.Lease()))
	return session
}

// mutex is the part of locks: waiting in turn, giving up, the end of a holder's session.
func (t *tour) mutex() {
	first, second, third := t.open(t.client, 60), t.open(t.client, 60), t.open(t.client, 60)
	channel, cancel := t.watchAll()
	defer cancel()
	a, b, c := etcd.NewMutex(first, t.prefix+"lock"), etcd.NewMutex(second, t.prefix+"lock"), etcd.NewMutex(third, t.prefix+"lock")
	t.failed("lock a", a.Lock(t.ctx))
	t.say("a holds %s, %s", t.key([]byte(a.Key())), t.header(a.Header()))
	t.failed("lock a again", a.Lock(t.ctx))
	if err := etcd.TryLock(t.ctx, b); err != etcd.ErrAbsent {
		t.failed("try to lock b", err)
	} else {
		// The keys of an attempt that this client cannot make.
		t.failed("attempt", t.attempt(second))
	}
	locked := make(chan error, 2)
	go func() { locked <- b.Lock(t.ctx) }()
	t.events("b waits", channel, 4)
	short, end := context.WithTimeout(t.ctx, 4*time.Second)
	defer end()
	t.say("c gives up: %v", c.Lock(short))
	t.events("c gave up", channel, 2)
	t.commit("by the owner", []etcd.Cmp{a.IsOwner()}, []etcd.Op{etcd.OpPut(t.prefix+"guarded", "a")}, nil)
	t.failed("unlock a", a.Unlock(t.ctx))
	t.say("b is locked: %v", <-locked)
	go func() { locked <- c.Lock(t.ctx) }()
	t.events("c waits", channel, 3)
	t.failed("close the session of b", second.Close())
	t.say("c is locked: %v", <-locked)
	t.commit("by the former owner", []etcd.Cmp{b.IsOwner()}, []etcd.Op{etcd.OpPut(t.prefix+"guarded", "b")}, nil)
	t.say("lock b without a session: %v", b.Lock(t.ctx) != nil)
	t.failed("unlock c", c.Unlock(t.ctx))
	t.events("the end", channel, 2)
	t.failed("close", first.Close())
	t.failed("close", third.Close())
}

func (t *tour) attempt(session *etcd.Session) error {
	key := fmt.Sprintf("%slock/%x", t.prefix, int64(session.Lease()))
	if _, err := t.client.Put(t.ctx, key, "", etcd.WithLease(session.Lease())); err != nil {
		return err
	}
	_, err := t.client.Delete(t.ctx, key)
	return err
}

// election is the part of elections: campaign, proclaim, observe, resign, resume, loss.
func (t *tour) election() {
	first, second := t.open(t.client, 60), t.open(t.client, 60)
	a, b := etcd.NewElection(first, t.prefix+"post"), etcd.NewElection(second, t.prefix+"post")
	_, err := a.Leader(t.ctx)
	t.failed("nobody leads", err)
	t.failed("campaign a", a.Campaign(t.ctx, "a"))
	t.say("a leads with %s since %s, %s", t.key([]byte(a.Key())), t.rev(a.Rev()), t.header(a.Header()))
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	observed := b.Observe(ctx)
	t.observe(observed)
	t.failed("proclaim", a.Proclaim(t.ctx, "a proclaims"))
	t.observe(observed)
	won := make(chan error, 1)
	go func() { won <- b.Campaign(t.ctx, "b") }()
	t.eventually("b stands behind a", func() bool {
		answer, err := t.client.Get(t.ctx, t.prefix+"post", etcd.WithPrefix(), etcd.WithCountOnly())
		return err == nil && answer.Count == 2
	})
	resumed := etcd.ResumeElection(first, t.prefix+"post", a.Key(), a.Rev())
	t.failed("proclaim when resumed", resumed.Proclaim(t.ctx, "a resumed"))
	t.observe(observed)
	t.failed("resign", a.Resign(t.ctx))
	t.say("b won: %v", <-won)
	t.observe(observed)
	t.failed("proclaim without office", a.Proclaim(t.ctx, "too late"))
	leader, err := a.Leader(t.ctx)
	if !t.failed("leader", err) {
		t.say("leader: %s", t.pair(leader.Kvs[0]))
	}
	t.failed("close the session of b", second.Close())
	_, err = a.Leader(t.ctx)
	t.failed("nobody leads any more", err)
	t.failed("close", first.Close())
}

func (t *tour) observe(observed <-chan etcd.Observed) {
	select {
	case answer, open := <-observed:
		if !open {
			t.say("observed: closed")
			return
		}
		t.say("observed: %s", t.pair(answer.Kvs[0]))
	case <-time.After(20 * time.Second):
		t.say("observed: nothing for 20 seconds")
	}
}

// stm is the part of software transactional memory: concurrent transfers lose nothing at any isolation that promises it.
func (t *tour) stm() {
	t.transfers("snapshot", etcd.SerializableSnapshot)
	t.transfers("serializable", etcd.Serializable)
	t.transfers("repeatable", etcd.RepeatableReads)
	key := t.prefix + "value"
	answer, err := etcd.NewSTM(t.client, func(memory etcd.STM) error {
		memory.Put(key, "first")
		memory.Put(key+"2", memory.Get(key)+" read back")
		return nil
	}, etcd.WithIsolation(etcd.ReadCommitted))
	if !t.failed("read committed", err) {
		t.say("read committed: %s succeeded %t", t.header(answer.Header), answer.Succeeded)
	}
	_, err = etcd.NewSTM(t.client, func(memory etcd.STM) error {
		memory.Del(key)
		return fmt.Errorf("abandoned at version %d", memory.Rev(key)-t.base)
	})
	t.failed("abandoned", err)
	t.get("after", "value", etcd.WithPrefix())
}

func (t *tour) transfers(name string, isolation etcd.Isolation) {
	from, to := t.prefix+name+"/from", t.prefix+name+"/to"
	t.put(name+"/from", "40")
	t.put(name+"/to", "0")
	const workers, each = 4, 5
	done := make(chan error, workers)
	for range workers {
		go func() { done <- transfer(t, from, to, each, isolation) }()
	}
	for range workers {
		t.failed("transfer", <-done)
	}
	for _, key := range []string{from, to} {
		answer, err := t.client.Get(t.ctx, key)
		if !t.failed("get", err) {
			t.say("stm %s: %s = %s version %d", name, t.key([]byte(key)), answer.Kvs[0].Value, answer.Kvs[0].Version)
		}
	}
	// Attempts that lost changed nothing; the next part's revisions count from here.
	answer, err := t.client.Get(t.ctx, from)
	if err == nil {
		t.base = answer.Header.Revision
	}
}

func transfer(t *tour, from, to string, times int, isolation etcd.Isolation) error {
	for range times {
		_, err := etcd.NewSTM(t.client, func(memory etcd.STM) error {
			var left, there int
			fmt.Sscan(memory.Get(from), &left)
			fmt.Sscan(memory.Get(to), &there)
			memory.Put(from, fmt.Sprint(left-1))
			memory.Put(to, fmt.Sprint(there+1))
			return nil
		}, etcd.WithIsolation(isolation))
		if err != nil {
			return err
		}
	}
	return nil
}
