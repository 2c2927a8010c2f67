package main

import (
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func (s *session) granted(name string, id, ttl int64) int64 {
	answer, err := s.lease.LeaseGrant(s.ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
	s.show("grant "+name, answer, err)
	return answer.GetID()
}

func (s *session) revoked(id int64) {
	answer, err := s.lease.LeaseRevoke(s.ctx, &pb.LeaseRevokeRequest{ID: id})
	s.show(fmt.Sprintf("revoke %d", s.name(id)), answer, err)
}

func (s *session) left(id int64, keys bool) {
	answer, err := s.lease.LeaseTimeToLive(s.ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
	if answer.GetTTL() > 0 && answer.GetTTL() <= answer.GetGrantedTTL() {
		answer.TTL = math.MaxInt32
	}
	sorted(answer.GetKeys())
	s.show(fmt.Sprintf("time to live of %d", s.name(id)), answer, err)
}

// grant is the part of granting, asking, listing and revoking.
func (s *session) grant() {
	for _, id := range []int64{1001, -1, math.MinInt64, math.MaxInt64} {
		_, _ = s.lease.LeaseRevoke(s.ctx, &pb.LeaseRevokeRequest{ID: id})
	}
	chosen := s.granted("any id", 0, 100)
	s.granted("an id", 1001, 100)
	s.granted("an id in use", 1001, 100)
	s.granted("a negative id", -1, 100)
	least, most := s.granted("the least id", math.MinInt64, 100), s.granted("the greatest id", math.MaxInt64, 100)
	s.granted("the largest ttl", 1002, 9_000_000_000)
	s.granted("a larger ttl", 1003, 9_000_000_001)
	s.revoked(s.granted("ttl zero", 1003, 0))
	s.revoked(s.granted("negative ttl", 1004, -100))
	s.put("a", "1", 1001)
	s.put("b", "2", 1001)
	s.put("c", "3", chosen)
	s.put("d", "4", -1)
	s.put("e", "5", 1005)
	for _, id := range []int64{chosen, 1001, -1, least, most, 1005, 0} {
		s.left(id, false)
		s.left(id, true)
	}
	s.listed()
	for _, id := range []int64{chosen, 1001, 1001, -1, least, most, 1002, 1003, 1005, 0} {
		s.revoked(id)
	}
	answer, err := s.kv.Range(s.ctx, &pb.RangeRequest{Key: []byte(s.prefix), RangeEnd: s.end()})
	s.show("nothing is left", answer, err)
}

// listed says which of the part's leases are listed, in the order of their ids.
func (s *session) listed() {
	answer, err := s.lease.LeaseLeases(s.ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		s.show("leases", nil, err)
		return
	}
	for _, id := range []int64{1001, -1, 1002, 1003, 1005} {
		times := 0
		for _, lease := range answer.Leases {
			if lease.ID == id {
				times++
			}
		}
		fmt.Printf("leases: %d listed %d times\n", id, times)
	}
}

// keepAlive is the part of the stream that keeps leases.
func (s *session) keepAlive() {
	stream, err := s.lease.LeaseKeepAlive(s.ctx)
	if err != nil {
		s.show("keep alive", nil, err)
		return
	}
	keep := func(name string, id int64) {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			s.show(name, nil, err)
			return
		}
		answer, err := stream.Recv()
		s.show(name, answer, err)
	}
	s.revoked(2001)
	first, second := s.granted("first", 2001, 100), s.granted("second", 0, 5)
	keep("first", first)
	keep("second", second)
	keep("unknown", 2002)
	keep("zero", 0)
	keep("first again", first)
	s.revoked(first)
	keep("revoked", first)
	s.put("a", "1", second)
	for range 4 {
		time.Sleep(1500 * time.Millisecond)
		keep("second, again and again", second)
	}
	answer, err := s.kv.Range(s.ctx, &pb.RangeRequest{Key: s.key("a")})
	s.show("kept longer than its ttl", answer, err)
	w := s.open()
	defer w.end()
	w.create("watch", &pb.WatchCreateRequest{Key: s.key("a"), PrevKv: true})
	w.next("expired when it is no longer kept")
	keep("expired", second)
	if err = stream.CloseSend(); err == nil {
		message, err := stream.Recv()
		s.show("closed", message, err)
	}
}
