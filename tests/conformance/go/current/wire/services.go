package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// answers is the part of whole answers of KV, Cluster and Maintenance.
func (s *session) answers() {
	s.put("a", "1", 0)
	answer, err := s.kv.Range(s.ctx, &pb.RangeRequest{Key: s.key("a")})
	s.show("range", answer, err)
	answer, err = s.kv.Range(s.ctx, &pb.RangeRequest{Key: s.key("a"), SortOrder: 9})
	s.show("unknown order", answer, err)
	answer, err = s.kv.Range(s.ctx, &pb.RangeRequest{Key: s.key("a"), SortTarget: 9})
	s.show("unknown target", answer, err)
	answer, err = s.kv.Range(s.ctx, &pb.RangeRequest{Key: s.key("a"), Limit: -1, Revision: -1})
	s.show("negative limit and revision", answer, err)
	txn, err := s.kv.Txn(s.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{}}})
	s.show("empty operation", txn, err)
	txn, err = s.kv.Txn(s.ctx, &pb.TxnRequest{Compare: []*pb.Compare{{}}})
	s.show("empty compare", txn, err)
	txn, err = s.kv.Txn(s.ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: s.key("a"), Result: 9, Target: 9}}})
	s.show("unknown compare", txn, err)
	maintenance := pb.NewMaintenanceClient(s.conn)
	alarm, err := maintenance.Alarm(s.ctx, &pb.AlarmRequest{})
	s.show("alarms", alarm, err)
	alarm, err = maintenance.Alarm(s.ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: 7, Alarm: pb.AlarmType_NOSPACE})
	s.show("disarm what is not raised", alarm, err)
	defragment, err := maintenance.Defragment(s.ctx, &pb.DefragmentRequest{})
	s.show("defragment", defragment, err)
	compact, err := s.kv.Compact(s.ctx, &pb.CompactionRequest{Revision: s.base + 1})
	s.show("compact", compact, err)
	compact, err = s.kv.Compact(s.ctx, &pb.CompactionRequest{Revision: -1})
	s.show("compact below zero", compact, err)
	for _, linearizable := range []bool{true, false} {
		members, err := pb.NewClusterClient(s.conn).MemberList(s.ctx, &pb.MemberListRequest{Linearizable: linearizable})
		s.show("members", &pb.MemberListResponse{Header: members.GetHeader()}, err)
	}
}

// rangeStream is the part of the ranges that come in several messages.
func (s *session) rangeStream() {
	for i := range 25 {
		s.put(fmt.Sprintf("k%02d", i), "v", 0)
	}
	ranges := func(name string, request *pb.RangeRequest) {
		request.Key, request.RangeEnd = []byte(s.prefix), s.end()
		stream, err := s.kv.RangeStream(s.ctx, request)
		if err != nil {
			s.show(name, nil, err)
			return
		}
		whole := &pb.RangeResponse{}
		for {
			answer, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				s.show(name, nil, err)
				return
			}
			part := answer.RangeResponse
			whole.Kvs = append(whole.Kvs, part.Kvs...)
			if part.Header != nil {
				whole.Header, whole.Count, whole.More = part.Header, part.Count, part.More
			}
		}
		s.show(name, whole, nil)
	}
	ranges("all", &pb.RangeRequest{})
	ranges("limited", &pb.RangeRequest{Limit: 12, KeysOnly: true})
	ranges("count", &pb.RangeRequest{CountOnly: true})
	ranges("old", &pb.RangeRequest{Revision: s.base + 3})
	ranges("sorted", &pb.RangeRequest{SortOrder: pb.RangeRequest_DESCEND})
	ranges("bounded", &pb.RangeRequest{MinModRevision: 3})
	ranges("future", &pb.RangeRequest{Revision: s.base + 1000})
}

// health is the part of gRPC's health service.
func (s *session) health() {
	client := grpc_health_v1.NewHealthClient(s.conn)
	for _, service := range []string{"", "etcdserverpb.KV", "unknown"} {
		answer, err := client.Check(s.ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		s.show("health of '"+service+"'", answer, err)
	}
	list, err := client.List(s.ctx, &grpc_health_v1.HealthListRequest{})
	s.show("all health", list, err)
}

// passwords is the part of what a client learns that was given a password for a server without authentication.
func (s *session) passwords() {
	client := pb.NewAuthClient(s.conn)
	status, err := client.AuthStatus(s.ctx, &pb.AuthStatusRequest{})
	if status != nil {
		status.AuthRevision = 1
	}
	s.show("status", status, err)
	token, err := client.Authenticate(s.ctx, &pb.AuthenticateRequest{Name: "nobody", Password: "x"})
	s.show("authenticate", token, err)
	endpoint := strings.TrimPrefix(s.conn.Target(), "passthrough:///")
	config := clientv3.Config{Endpoints: []string{endpoint}, Username: "nobody", Password: "x", DialTimeout: limit}
	named, err := clientv3.New(config)
	if err == nil {
		_, err = named.Get(s.ctx, s.prefix+"none")
		named.Close()
	}
	fmt.Println("a client with a name:", err)
}

// auth is the part of authentication while it is disabled.
func (s *session) auth() {
	client := pb.NewAuthClient(s.conn)
	user, err := client.UserAdd(s.ctx, &pb.AuthUserAddRequest{})
	s.show("add a user without a name", user, err)
	role, err := client.RoleAdd(s.ctx, &pb.AuthRoleAddRequest{})
	s.show("add a role without a name", role, err)
	enable, err := client.AuthEnable(s.ctx, &pb.AuthEnableRequest{})
	s.show("enable without root", enable, err)
}

// snapshot is the part of the stream of the database.
func (s *session) snapshot() {
	stream, err := pb.NewMaintenanceClient(s.conn).Snapshot(s.ctx, &pb.SnapshotRequest{})
	if err != nil {
		s.show("snapshot", nil, err)
		return
	}
	if _, err = stream.Recv(); err != nil {
		s.show("snapshot", nil, err)
		return
	}
	fmt.Println("snapshot: begins")
}

// changes is the part of what changes or moves members.
func (s *session) changes() {
	cluster, maintenance := pb.NewClusterClient(s.conn), pb.NewMaintenanceClient(s.conn)
	_, err := cluster.MemberAdd(s.ctx, &pb.MemberAddRequest{PeerURLs: []string{"nonsense"}})
	s.show("add", &pb.MemberAddResponse{}, err)
	_, err = cluster.MemberPromote(s.ctx, &pb.MemberPromoteRequest{ID: 7})
	s.show("promote", &pb.MemberPromoteResponse{}, err)
	_, err = maintenance.Downgrade(s.ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "nonsense"})
	s.show("downgrade", &pb.DowngradeResponse{}, err)
}
