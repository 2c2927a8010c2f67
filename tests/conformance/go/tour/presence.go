package main

import (
	"context"
	"time"

	"trilith.test/etcd"
)

// through connects a client by way of a proxy.
func (t *tour) through() (*proxy, *etcd.Client) {
	between, err := newProxy(t.endpoint)
	if err != nil {
		panic(err)
	}
	client, err := etcd.Connect(between.address)
	if err != nil {
		panic(err)
	}
	return between, client
}

// reconnect is the part of a watch and a lease that outlive their connection.
func (t *tour) reconnect() {
	between, client := t.through()
	defer client.Close()
	direct := t.client
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	t.client = client
	channel := t.watch(ctx, "", etcd.WithPrefix(), etcd.WithPrevKV())
	lease := t.grant("kept over the cut", 15)
	alive, err := client.KeepAlive(ctx, lease)
	t.failed("keep alive", err)
	<-alive
	t.client = direct
	t.put("a", "1")
	t.events("before the cut", channel, 1)
	between.cut(true)
	t.put("a", "2")
	t.put("b", "3", etcd.WithLease(lease))
	t.del("a", "a")
	between.restore()
	t.events("after the cut", channel, 3)
	t.put("a", "4")
	t.events("live again", channel, 1)
	between.cut(false)
	t.put("a", "5")
	t.events("after a short cut", channel, 1)
	t.eventually("the lease is kept again", func() bool {
		select {
		case _, open := <-alive:
			return open
		default:
			return false
		}
	})
	t.revoke("the lease", lease)
	t.events("revoked", channel, 1)
	t.eventually("the client knows that the lease is gone", func() bool {
		_, open := <-alive
		return !open
	})
}

// session is the part of sessions that end: closed, revoked, orphaned, expired behind a cut.
func (t *tour) session() {
	channel, cancel := t.watchAll()
	defer cancel()
	closed := t.open(t.client, 60)
	t.put("closed", "", etcd.WithLease(closed.Lease()))
	t.failed("close", closed.Close())
	t.ended("closed", closed)
	t.events("closed", channel, 2)
	revoked := t.open(t.client, shortTTL)
	t.put("revoked", "", etcd.WithLease(revoked.Lease()))
	t.revoke("under the session", revoked.Lease())
	t.events("revoked", channel, 2)
	t.ended("revoked", revoked)
	orphan := t.open(t.client, shortTTL)
	t.put("orphan", "", etcd.WithLease(orphan.Lease()))
	orphan.Orphan()
	t.ended("orphan", orphan)
	t.events("orphan", channel, 2)
	between, client := t.through()
	defer client.Close()
	lost := t.open(client, shortTTL)
	t.put("lost", "", etcd.WithLease(lost.Lease()))
	between.cut(true)
	t.events("lost", channel, 2)
	between.restore()
	t.ended("lost", lost)
	taken, err := etcd.NewSession(t.client, etcd.WithSessionLease(lost.Lease()))
	if err == nil {
		t.ended("on a lease that is gone", taken)
	} else {
		t.failed("on a lease that is gone", err)
	}
}

func (t *tour) ended(name string, session *etcd.Session) {
	select {
	case <-session.Done():
		t.say("session %s: done", name)
	case <-time.After(20 * time.Second):
		t.say("session %s: not done after 20 seconds", name)
	}
}

// registry is the part of a service that is registered with a lease and registers again when it lost it.
func (t *tour) registry() {
	channel, cancel := t.watchAll()
	defer cancel()
	between, client := t.through()
	defer client.Close()
	ctx, stop := context.WithCancel(t.ctx)
	stopped := make(chan struct{})
	go func() {
		t.serve(ctx, client)
		close(stopped)
	}()
	lease := t.registered("registered", channel)
	t.revoke("its lease", lease)
	t.events("unregistered", channel, 1)
	t.registered("registered again", channel)
	between.cut(true)
	t.events("expired behind a cut", channel, 1)
	between.restore()
	lease = t.registered("registered after the cut", channel)
	stop()
	<-stopped
	t.revoke("its lease", lease)
	t.events("gone", channel, 1)
}

// serve keeps one entry of the registry until the context ends; it prints nothing, the watch tells what it did.
func (t *tour) serve(ctx context.Context, client *etcd.Client) {
	for ctx.Err() == nil {
		lease, err := client.Grant(ctx, shortTTL)
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		alive, err := client.KeepAlive(ctx, lease.ID)
		if err != nil {
			continue
		}
		if _, err = client.Put(ctx, t.prefix+"service/one", "127.0.0.1:80", etcd.WithLease(lease.ID)); err != nil {
			continue
		}
		for range alive {
		}
	}
}

// registered prints the next event, which is a put, and returns its lease.
func (t *tour) registered(name string, channel etcd.WatchChan) etcd.LeaseID {
	select {
	case answer := <-channel:
		for _, event := range answer.Events {
			t.say("%s: %s", name, t.event((*etcd.Event)(event)))
			return etcd.LeaseID(event.Kv.Lease)
		}
		t.say("%s: no event, %v", name, answer.Err())
	case <-time.After(20 * time.Second):
		t.say("%s: nothing for 20 seconds", name)
	}
	return 0
}
