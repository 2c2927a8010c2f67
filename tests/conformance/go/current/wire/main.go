// Command wire shows what an etcd v3 endpoint answers to single messages, where clientv3 would hide the answers.
//
// Usage: wire HOST:PORT PART..
//
// It prints every message whole, as JSON: revisions relative to the one the part began at, leases by their order of
// appearance, ids and terms only as being there. Parts work below key prefixes of their own.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// limit is the longest a part may take.
const limit = 100 * time.Second

var parts = map[string]func(*session){
	"create":    (*session).create,
	"cancel":    (*session).cancel,
	"filters":   (*session).filters,
	"fragments": (*session).fragments,
	"progress":  (*session).progress,
	"notify":    (*session).notify,
	"compacted": (*session).compacted,
	"grant":     (*session).grant,
	"keepalive": (*session).keepAlive,
	"stream":    (*session).rangeStream,
	"answers":   (*session).answers,
	"health":    (*session).health,
	"passwords": (*session).passwords,
	"gzip":      (*session).compressed,
	"auth":      (*session).auth,
	"snapshot":  (*session).snapshot,
	"changes":   (*session).changes,
}

// session is one part under way.
type session struct {
	conn   *grpc.ClientConn
	kv     pb.KVClient
	lease  pb.LeaseClient
	ctx    context.Context
	prefix string
	base   int64
	leases []int64
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: wire HOST:PORT PART..")
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

func run(endpoint, name string, part func(*session)) {
	fmt.Println("== " + name)
	conn, err := grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		fmt.Println("cannot connect:", err)
		os.Exit(1)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s := &session{conn: conn, kv: pb.NewKVClient(conn), lease: pb.NewLeaseClient(conn), ctx: ctx, prefix: "conformance/wire/" + name + "/"}
	answer, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(s.prefix), RangeEnd: s.end()})
	if err != nil {
		fmt.Println("cannot begin:", err)
		os.Exit(1)
	}
	s.base = answer.Header.Revision
	part(s)
	if ctx.Err() != nil {
		fmt.Println("the part took too long")
		os.Exit(1)
	}
}

func (s *session) key(name string) []byte { return []byte(s.prefix + name) }

// end is the end of the range of the part's keys.
func (s *session) end() []byte {
	end := []byte(s.prefix)
	end[len(end)-1]++
	return end
}
