package main

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"trilith.test/etcd"
)

// tour is one part under way.
type tour struct {
	endpoint string
	client   *etcd.Client
	ctx      context.Context
	// prefix is before every key of the part.
	prefix string
	// base is the revision that is printed as r+0.
	base int64
	// leases in the order of their first appearance.
	leases []etcd.LeaseID
	// unread holds events that came in one response with events that were asked for.
	unread map[etcd.WatchChan][]*etcd.Event
}

func (t *tour) say(format string, arguments ...any) {
	fmt.Printf(format+"\n", arguments...)
}

// rev names a revision by its distance from the beginning; 0 is none.
func (t *tour) rev(revision int64) string {
	if revision == 0 {
		return "r0"
	}
	return fmt.Sprintf("r%+d", revision-t.base)
}

// lease names a lease by its order of appearance; 0 is none.
func (t *tour) lease(id etcd.LeaseID) string {
	if id == 0 {
		return "none"
	}
	for i, known := range t.leases {
		if known == id {
			return fmt.Sprintf("L%d", i+1)
		}
	}
	t.leases = append(t.leases, id)
	return fmt.Sprintf("L%d", len(t.leases))
}

// key is the key without the part's prefix, with the hexadecimal ids of leases replaced by their names.
func (t *tour) key(key []byte) string {
	text := strings.TrimPrefix(string(key), t.prefix)
	for _, id := range t.leases {
		text = strings.ReplaceAll(text, fmt.Sprintf("%x", int64(id)), "<"+t.lease(id)+">")
	}
	return fmt.Sprintf("%q", text)
}

func value(value []byte) string {
	if len(value) > 64 {
		return fmt.Sprintf("%q... of %d bytes", value[:8], len(value))
	}
	return fmt.Sprintf("%q", value)
}

func (t *tour) pair(pair *etcd.KeyValue) string {
	if pair == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s = %s create %s mod %s version %d lease %s", t.key(pair.Key), value(pair.Value),
		t.rev(pair.CreateRevision), t.rev(pair.ModRevision), pair.Version, t.lease(etcd.LeaseID(pair.Lease)))
}

func (t *tour) header(header *etcd.ResponseHeader) string {
	if header == nil {
		return "no header"
	}
	filled := func(set bool, name string) string {
		if set {
			return ""
		}
		return " without " + name
	}
	return "at " + t.rev(header.Revision) + filled(header.ClusterId != 0, "cluster") +
		filled(header.MemberId != 0, "member") + filled(header.RaftTerm != 0, "term")
}

// failed prints the error, if there is one, with its code.
func (t *tour) failed(name string, err error) bool {
	if err == nil {
		return false
	}
	t.say("%s: %s", name, describe(err))
	return true
}

func describe(err error) string {
	if typed, is := err.(etcd.EtcdError); is {
		return fmt.Sprintf("error %v: %s", typed.Code(), typed.Error())
	}
	return "error " + strings.ReplaceAll(err.Error(), "rpc error: ", "")
}

func (t *tour) put(key, value string, options ...etcd.OpOption) int64 {
	name := fmt.Sprintf("put %q", key)
	answer, err := t.client.Put(t.ctx, t.prefix+key, value, options...)
	if t.failed(name, err) {
		return 0
	}
	previous := ""
	if answer.PrevKv != nil {
		previous = " before " + t.pair(answer.PrevKv)
	}
	t.say("%s: %s%s", name, t.header(answer.Header), previous)
	return answer.Header.Revision
}

func (t *tour) get(name, key string, options ...etcd.OpOption) {
	answer, err := t.client.Get(t.ctx, t.prefix+key, options...)
	name = fmt.Sprintf("get %q %s", key, name)
	if t.failed(name, err) {
		return
	}
	t.say("%s: %s count %d more %t", name, t.header(answer.Header), answer.Count, answer.More)
	for _, pair := range answer.Kvs {
		t.say("  %s", t.pair(pair))
	}
}

func (t *tour) del(name, key string, options ...etcd.OpOption) {
	answer, err := t.client.Delete(t.ctx, t.prefix+key, options...)
	name = fmt.Sprintf("delete %q %s", key, name)
	if t.failed(name, err) {
		return
	}
	t.say("%s: %s deleted %d", name, t.header(answer.Header), answer.Deleted)
	for _, pair := range answer.PrevKvs {
		t.say("  %s", t.pair(pair))
	}
}

func (t *tour) event(event *etcd.Event) string {
	previous := ""
	if event.PrevKv != nil {
		previous = " before " + t.pair(event.PrevKv)
	}
	return fmt.Sprintf("%v %s%s", event.Type, t.pair(event.Kv), previous)
}

// events prints the next events of a watch, and how the watch ended if it did.
func (t *tour) events(name string, channel etcd.WatchChan, count int) {
	for range count {
		for len(t.unread[channel]) == 0 {
			if !t.receive(name, channel) {
				return
			}
		}
		t.say("%s: %s", name, t.event(t.unread[channel][0]))
		t.unread[channel] = t.unread[channel][1:]
	}
}

// receive takes one response of a watch; false says, after a line of it, that there are no more.
func (t *tour) receive(name string, channel etcd.WatchChan) bool {
	select {
	case answer, open := <-channel:
		if !open {
			t.say("%s: closed", name)
			return false
		}
		if answer.Canceled {
			t.say("%s: canceled, compact revision %s, %v", name, t.rev(answer.CompactRevision), answer.Err())
			return false
		}
		for _, event := range answer.Events {
			t.unread[channel] = append(t.unread[channel], (*etcd.Event)(event))
		}
		return true
	case <-time.After(20 * time.Second):
		t.say("%s: nothing for 20 seconds", name)
		return false
	}
}

// closed waits until a watch's channel is closed.
func (t *tour) closed(name string, channel etcd.WatchChan) {
	select {
	case answer, open := <-channel:
		if open {
			t.say("%s: a response with %d events, canceled %t, error %v", name, len(answer.Events), answer.Canceled,
				answer.Err())
			return
		}
		t.say("%s: closed, %d events unread", name, len(t.unread[channel]))
	case <-time.After(20 * time.Second):
		t.say("%s: still open after 20 seconds", name)
	}
}

// eventually repeats the check until it holds.
func (t *tour) eventually(name string, holds func() bool) {
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if holds() {
			t.say("%s", name)
			return
		}
	}
	t.say("%s: not within 20 seconds", name)
}

// set names the fields of a message that are not zero.
func set(message any) string {
	var names []string
	fields := reflect.Indirect(reflect.ValueOf(message))
	for i := range fields.NumField() {
		kind := fields.Type().Field(i)
		if kind.IsExported() && kind.Name != "Header" && !strings.HasPrefix(kind.Name, "XXX_") && !fields.Field(i).IsZero() {
			names = append(names, kind.Name)
		}
	}
	return strings.Join(names, " ")
}
