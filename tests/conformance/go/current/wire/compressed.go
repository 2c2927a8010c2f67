package main

import (
	"bytes"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
)

// compressed is the part of requests in gzip.
func (s *session) compressed() {
	gzipped := grpc.UseCompressor(gzip.Name)
	for _, length := range []int{0, 10, 100_000, 1 << 20, 2 << 20} {
		value := bytes.Repeat([]byte("a"), length)
		put, err := s.kv.Put(s.ctx, &pb.PutRequest{Key: s.key("a"), Value: value}, gzipped)
		s.show(fmt.Sprintf("put of %d bytes", length), put, err)
	}
	answer, err := s.kv.Range(s.ctx, &pb.RangeRequest{Key: s.key("a"), KeysOnly: true}, gzipped)
	s.show("range", answer, err)
	stream, err := pb.NewWatchClient(s.conn).Watch(s.ctx, gzipped)
	if err == nil {
		create := &pb.WatchCreateRequest{Key: s.key("b")}
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	}
	for _, name := range []string{"watch", "event"} {
		if err != nil {
			break
		}
		var event *pb.WatchResponse
		event, err = stream.Recv()
		s.show(name, event, err)
		if err == nil && name == "watch" {
			_, err = s.kv.Put(s.ctx, &pb.PutRequest{Key: s.key("b")}, gzipped)
		}
	}
}
