package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// show prints a message, or the error that came in its place.
func (s *session) show(name string, message proto.Message, err error) {
	if err != nil {
		failure := status.Convert(err)
		fmt.Printf("%s: error %v: %s\n", name, failure.Code(), s.plain(failure.Message()))
		return
	}
	fmt.Printf("%s: %s\n", name, s.render(message))
}

// plain is text without the ids of members, which differ from cluster to cluster.
func (s *session) plain(text string) string {
	return strings.ReplaceAll(text, s.prefix, "")
}

// render is the message as JSON in one line.
func (s *session) render(message proto.Message) string {
	copied := proto.Clone(message)
	s.mask(copied.ProtoReflect())
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(copied)
	if err != nil {
		panic(err)
	}
	var compact bytes.Buffer
	if err = json.Compact(&compact, text); err != nil {
		panic(err)
	}
	return compact.String()
}

// mask changes what differs from run to run: revisions become distances, ids and terms 1, keys lose the part's prefix.
func (s *session) mask(message protoreflect.Message) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsList():
			for i := range value.List().Len() {
				item := value.List().Get(i)
				if field.Kind() == protoreflect.MessageKind {
					s.mask(item.Message())
				} else if field.Kind() == protoreflect.BytesKind {
					value.List().Set(i, protoreflect.ValueOfBytes(bytes.TrimPrefix(item.Bytes(), []byte(s.prefix))))
				}
			}
		case field.Kind() == protoreflect.MessageKind:
			s.mask(value.Message())
		default:
			message.Set(field, s.masked(string(message.Descriptor().Name()), string(field.Name()), value))
		}
		return true
	})
}

func (s *session) masked(message, field string, value protoreflect.Value) protoreflect.Value {
	switch field {
	case "revision", "create_revision", "mod_revision", "compact_revision", "hash_revision":
		return protoreflect.ValueOfInt64(value.Int() - s.base + 1000)
	case "cluster_id", "member_id", "raft_term":
		return protoreflect.ValueOfUint64(1)
	case "lease":
		return protoreflect.ValueOfInt64(s.name(value.Int()))
	case "ID":
		if strings.HasPrefix(message, "Lease") {
			return protoreflect.ValueOfInt64(s.name(value.Int()))
		}
	case "key":
		return protoreflect.ValueOfBytes(bytes.TrimPrefix(value.Bytes(), []byte(s.prefix)))
	case "value":
		if length := len(value.Bytes()); length > 64 {
			return protoreflect.ValueOfBytes([]byte(fmt.Sprint(length)))
		}
	}
	return value
}

// name numbers the leases that the server named; small ids were chosen here and stay.
func (s *session) name(id int64) int64 {
	if id > -1<<20 && id < 1<<20 {
		return id
	}
	for i, known := range s.leases {
		if known == id {
			return int64(1<<20 + i)
		}
	}
	s.leases = append(s.leases, id)
	return int64(1<<20 + len(s.leases) - 1)
}

func (s *session) put(key, value string, lease int64) int64 {
	answer, err := s.kv.Put(s.ctx, &pb.PutRequest{Key: s.key(key), Value: []byte(value), Lease: lease})
	s.show("put "+key, answer, err)
	return answer.GetHeader().GetRevision()
}

func (s *session) delete(key string) {
	answer, err := s.kv.DeleteRange(s.ctx, &pb.DeleteRangeRequest{Key: s.key(key)})
	s.show("delete "+key, answer, err)
}

// sorted sorts the keys of an answer that may list them in any order.
func sorted(keys [][]byte) {
	sort.Slice(keys, func(a, b int) bool { return bytes.Compare(keys[a], keys[b]) < 0 })
}
