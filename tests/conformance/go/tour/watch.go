package main

import (
	"context"
	"fmt"
	"time"

	"trilith.test/etcd"
)

// watch opens a watch and waits until the server has it, so that what follows is live.
func (t *tour) watch(ctx context.Context, key string, options ...etcd.OpOption) etcd.WatchChan {
	channel := t.client.Watch(ctx, t.prefix+key, append(options, etcd.WithCreatedNotify())...)
	select {
	case answer, open := <-channel:
		if !open || !answer.Created || answer.Canceled {
			t.say("watch %q: open %t, canceled %t, compact revision %s, %v", key, open, answer.Canceled,
				t.rev(answer.CompactRevision), answer.Err())
		} else {
			t.say("watch %q: created at %s", key, t.rev(answer.Header.Revision))
		}
	case <-time.After(20 * time.Second):
		t.say("watch %q: not created within 20 seconds", key)
	}
	return channel
}

// watches is the part of watches on what happens now: options, filters, many on one stream, cancellation.
func (t *tour) watches() {
	ctx, cancel := context.WithCancel(etcd.WithRequireLeader(t.ctx))
	one := t.watch(ctx, "a")
	all := t.watch(ctx, "", etcd.WithPrefix(), etcd.WithPrevKV())
	span := t.watch(ctx, "b", etcd.WithRange(t.prefix+"d"))
	deletes := t.watch(ctx, "", etcd.WithPrefix(), etcd.WithFilterPut())
	puts := t.watch(ctx, "", etcd.WithPrefix(), etcd.WithFilterDelete())
	future := t.watch(ctx, "", etcd.WithPrefix(), etcd.WithRev(t.base+4))
	t.put("a", "1")
	t.put("b", "2")
	t.put("a", "3")
	t.put("d", "4")
	t.commit("three at once", nil, []etcd.Op{etcd.OpPut(t.prefix+"c", "5"), etcd.OpPut(t.prefix+"a", "6"),
		etcd.OpDelete(t.prefix+"b", etcd.WithRange(t.prefix+"c"))}, nil)
	t.del("absent", "none")
	t.del("all", "", etcd.WithPrefix())
	t.put("a", "again")
	t.events("one", one, 5)
	t.events("all", all, 11)
	t.events("span", span, 4)
	t.events("deletes", deletes, 4)
	t.events("puts", puts, 7)
	t.events("future", future, 8)
	cancel()
	t.closed("one after the cancel", one)
	t.closed("future after the cancel", future)
	t.manyWatches()
}

// manyWatches opens a hundred watches on one stream and wakes each of them.
func (t *tour) manyWatches() {
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	const count = 100
	channels := make([]etcd.WatchChan, count)
	for i := range channels {
		channels[i] = t.client.Watch(ctx, fmt.Sprintf("%smany/%03d", t.prefix, i), etcd.WithCreatedNotify())
	}
	for i := range channels {
		if answer := <-channels[i]; !answer.Created {
			t.say("watch %d is not created: %v", i, answer.Err())
		}
	}
	first := t.put("many/000", "x")
	for i := 1; i < count; i++ {
		if _, err := t.client.Put(t.ctx, fmt.Sprintf("%smany/%03d", t.prefix, i), "x"); err != nil {
			t.failed("put", err)
		}
	}
	right := 0
	for i := range channels {
		answer := <-channels[i]
		if len(answer.Events) == 1 && answer.Events[0].Kv.ModRevision == first+int64(i) {
			right++
		}
	}
	t.say("%d of %d watches on one stream saw their own event", right, count)
}

// watchesOfThePast is the part of watches that begin in history, and of history that is gone.
func (t *tour) watchesOfThePast() {
	for i := range 6 {
		t.put(fmt.Sprintf("k%d", i%3), fmt.Sprintf("v%d", i))
	}
	t.del("one", "k0")
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	t.events("from the beginning", t.client.Watch(ctx, t.prefix, etcd.WithPrefix(), etcd.WithRev(t.base+1)), 7)
	t.events("one key with what was before", t.client.Watch(ctx, t.prefix+"k0", etcd.WithRev(t.base+2), etcd.WithPrevKV()), 2)
	live := t.watch(ctx, "k1", etcd.WithRev(t.base+2))
	t.put("k1", "live")
	t.events("history, then live", live, 3)
	t.bulk(ctx)
	_, err := t.client.Compact(t.ctx, t.base+5)
	t.failed("compact", err)
	t.events("at the compacted revision", t.client.Watch(ctx, t.prefix, etcd.WithPrefix(), etcd.WithRev(t.base+5)), 3)
	compacted := t.watch(ctx, "", etcd.WithPrefix(), etcd.WithRev(t.base+4))
	t.events("below the compacted revision", compacted, 1)
	t.closed("below the compacted revision", compacted)
	before := t.client.Watch(ctx, t.prefix, etcd.WithPrefix(), etcd.WithRev(t.base+6), etcd.WithPrevKV())
	t.events("with what was before, as far as it is kept", before, 3)
	t.get("still served", "k1")
}

// bulk replays more revisions than one response may hold; their order is what counts.
func (t *tour) bulk(ctx context.Context) {
	const count = 2500
	start := t.base + 9
	for i := range count / 100 {
		operations := make([]etcd.Op, 0, 100)
		for j := range 100 {
			operations = append(operations, etcd.OpPut(fmt.Sprintf("%sbulk/%04d", t.prefix, i*100+j), "x"))
		}
		if _, err := t.client.Txn(t.ctx).Then(operations...).Commit(); t.failed("bulk", err) {
			return
		}
	}
	seen := 0
	for answer := range t.client.Watch(ctx, t.prefix+"bulk/", etcd.WithPrefix(), etcd.WithRev(start)) {
		for _, event := range answer.Events {
			wanted := fmt.Sprintf("%sbulk/%04d", t.prefix, seen)
			if string(event.Kv.Key) != wanted || event.Kv.ModRevision != start+int64(seen/100) {
				t.say("event %d is %s", seen, t.event((*etcd.Event)(event)))
			}
			seen++
		}
		if last := len(answer.Events); last > 0 && seen%100 != 0 {
			t.say("a response ends inside of a transaction, after %d events", seen)
		}
		if seen >= count {
			break
		}
	}
	t.say("%d events of history in order", seen)
}

// progress is the part of progress responses that are asked for, and of responses in parts.
func (t *tour) progress() {
	ctx, cancel := context.WithCancel(etcd.WithRequireLeader(t.ctx))
	defer cancel()
	channel := t.watch(ctx, "a", etcd.WithFragment()...)
	t.put("a", "1")
	t.put("elsewhere", "2")
	t.events("before the progress", channel, 1)
	if err := etcd.RequestProgress(ctx, t.client); t.failed("progress", err) {
		return
	}
	select {
	case answer := <-channel:
		t.say("progress: is progress %t at %s, %d events", answer.IsProgressNotify(), t.rev(answer.Header.Revision), len(answer.Events))
	case <-time.After(20 * time.Second):
		t.say("progress: nothing for 20 seconds")
	}
	t.put("a", "3")
	t.events("after the progress", channel, 1)
}
