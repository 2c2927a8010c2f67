// Command tour shows what an etcd v3 endpoint answers to every call of clientv3.
//
// Usage: tour HOST:PORT PART..
//
// Each part works below a key prefix of its own, removes it first, and prints one line an answer. Revisions are printed
// relative to the one the part began at, leases by the order in which they appear, so the lines of two servers that
// behave alike are the same, whatever was done to them before.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"trilith.test/etcd"
)

// limit is the longest a part may take.
const limit = 100 * time.Second

// shortTTL is that of leases which end by themselves or are kept: long enough for a busy machine to use or renew them.
const shortTTL = 5

var parts = map[string]func(*tour){
	"kv":          (*tour).keys,
	"txn":         (*tour).transactions,
	"errors":      (*tour).errors,
	"watch":       (*tour).watches,
	"watch-old":   (*tour).watchesOfThePast,
	"progress":    (*tour).progress,
	"reconnect":   (*tour).reconnect,
	"lease":       (*tour).leaseCalls,
	"expiry":      (*tour).expiry,
	"mutex":       (*tour).mutex,
	"election":    (*tour).election,
	"stm":         (*tour).stm,
	"session":     (*tour).session,
	"registry":    (*tour).registry,
	"maintenance": (*tour).maintenance,
	"members":     (*tour).members,
	"leader":      (*tour).leader,
	"changes":     (*tour).memberChanges,
	"auth":        (*tour).auth,
	"snapshot":    (*tour).snapshot,
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: tour HOST:PORT PART..")
		os.Exit(2)
	}
	for _, name := range os.Args[2:] {
		part, known := parts[name]
		if !known {
			fmt.Fprintf(os.Stderr, "there is no part '%s'\n", name)
			os.Exit(2)
		}
		run(os.Args[1], name, part)
	}
}

func run(endpoint, name string, part func(*tour)) {
	fmt.Println("== " + name)
	client, err := etcd.Connect(endpoint)
	if err != nil {
		fmt.Println("cannot connect:", err)
		os.Exit(1)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	t := &tour{endpoint: endpoint, client: client, ctx: ctx, prefix: "conformance/" + name + "/",
		unread: map[etcd.WatchChan][]*etcd.Event{}}
	if err := t.begin(); err != nil {
		fmt.Println("cannot begin:", err)
		os.Exit(1)
	}
	part(t)
	if ctx.Err() != nil {
		fmt.Println("the part took too long")
		os.Exit(1)
	}
}

// begin empties the part's prefix and notes the revision it begins at.
func (t *tour) begin() error {
	answer, err := t.client.Delete(t.ctx, t.prefix, etcd.WithPrefix())
	if err == nil {
		t.base = answer.Header.Revision
	}
	return err
}
