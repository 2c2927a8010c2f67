package main

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// stream is one Watch stream with its responses in a channel.
type stream struct {
	session   *session
	call      pb.Watch_WatchClient
	end       context.CancelFunc
	responses chan *pb.WatchResponse
	failed    chan error
}

func (s *session) open() *stream {
	ctx, end := context.WithCancel(s.ctx)
	call, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		s.show("watch", nil, err)
		panic("no watch stream")
	}
	w := &stream{session: s, call: call, end: end, responses: make(chan *pb.WatchResponse, 1024), failed: make(chan error, 1)}
	go func() {
		for {
			response, err := call.Recv()
			if err != nil {
				w.failed <- err
				return
			}
			w.responses <- response
		}
	}()
	return w
}

func (w *stream) create(name string, request *pb.WatchCreateRequest) {
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}})
	w.next(name)
}

func (w *stream) cancel(id int64) {
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

func (w *stream) progress() {
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

func (w *stream) send(request *pb.WatchRequest) {
	if err := w.call.Send(request); err != nil {
		w.session.show("send", nil, err)
	}
}

// next prints the next response.
func (w *stream) next(name string) *pb.WatchResponse {
	select {
	case response := <-w.responses:
		w.session.show(name, response, nil)
		return response
	case err := <-w.failed:
		w.session.show(name, nil, err)
	case <-time.After(20 * time.Second):
		fmt.Printf("%s: nothing for 20 seconds\n", name)
	}
	return nil
}

// nextBut prints the next response that tells more than progress up to `known`: where a server tells of progress by
// itself, how often it does depends on how long the calls between take.
func (w *stream) nextBut(known int64, name string) {
	for {
		select {
		case response := <-w.responses:
			told := len(response.Events) == 0 && !response.Created && !response.Canceled
			if told && response.Header.Revision <= known {
				continue
			}
			w.session.show(name, response, nil)
			return
		case err := <-w.failed:
			w.session.show(name, nil, err)
			return
		case <-time.After(20 * time.Second):
			fmt.Printf("%s: nothing for 20 seconds\n", name)
			return
		}
	}
}

// history prints the events of the next responses, which a server may divide at any revision.
func (w *stream) history(name string, count int) {
	for seen := 0; seen < count; {
		select {
		case response := <-w.responses:
			for _, event := range response.Events {
				fmt.Printf("%s: watch %d: %s\n", name, response.WatchId, w.session.render(event))
			}
			seen += len(response.Events)
			if response.Canceled {
				w.session.show(name, response, nil)
				return
			}
		case <-time.After(20 * time.Second):
			fmt.Printf("%s: nothing for 20 seconds\n", name)
			return
		}
	}
}

// create is the part of what a request to create may say.
func (s *session) create() {
	w := s.open()
	defer w.end()
	s.put("a", "1", 0)
	w.create("server's choice", &pb.WatchCreateRequest{Key: s.key("a")})
	w.create("server's next choice", &pb.WatchCreateRequest{Key: s.key("b")})
	w.create("explicit id", &pb.WatchCreateRequest{Key: s.key("c"), WatchId: 7})
	w.create("id in use", &pb.WatchCreateRequest{Key: s.key("c"), WatchId: 7})
	w.create("negative id", &pb.WatchCreateRequest{Key: s.key("c"), WatchId: -5})
	w.create("the id that comes next", &pb.WatchCreateRequest{Key: s.key("d"), WatchId: 2})
	w.create("server skips it", &pb.WatchCreateRequest{Key: s.key("e")})
	w.create("empty range", &pb.WatchCreateRequest{Key: s.key("c"), RangeEnd: s.key("c")})
	w.create("range backwards", &pb.WatchCreateRequest{Key: s.key("d"), RangeEnd: s.key("c")})
	w.create("negative revision", &pb.WatchCreateRequest{Key: s.key("c"), StartRevision: -1})
	w.create("next revision", &pb.WatchCreateRequest{Key: s.key("f"), StartRevision: s.base + 2})
	w.create("far revision", &pb.WatchCreateRequest{Key: s.key("f"), StartRevision: s.base + 3})
	s.put("c", "2", 0)
	w.both("two watches of one key")
	s.put("f", "3", 0)
	w.both("two watches of another")
	w.create("now", &pb.WatchCreateRequest{Key: s.key("a"), StartRevision: s.base + 1, PrevKv: true})
	w.history("history", 1)
}

// both prints two responses in the order of their watches: one revision reaches several watches in any order.
func (w *stream) both(name string) {
	first, second := <-w.responses, <-w.responses
	if first.WatchId > second.WatchId {
		first, second = second, first
	}
	w.session.show(name, first, nil)
	w.session.show(name, second, nil)
}

// bothBut is both, leaving out progress up to `known`.
func (w *stream) bothBut(known int64, name string) {
	var told []*pb.WatchResponse
	for len(told) < 2 {
		response := <-w.responses
		if len(response.Events) > 0 || response.Header.Revision > known {
			told = append(told, response)
		}
	}
	if told[0].WatchId > told[1].WatchId {
		told[0], told[1] = told[1], told[0]
	}
	w.session.show(name, told[0], nil)
	w.session.show(name, told[1], nil)
}

// cancel is the part of ending watches and streams.
func (s *session) cancel() {
	w := s.open()
	w.create("create", &pb.WatchCreateRequest{Key: s.key("a")})
	w.create("create another", &pb.WatchCreateRequest{Key: s.key("a")})
	w.cancel(0)
	w.next("cancel")
	w.cancel(0)
	w.cancel(99)
	s.put("a", "1", 0)
	w.next("only the other is left")
	w.create("an id is not used again", &pb.WatchCreateRequest{Key: s.key("b")})
	w.create("unless it is asked for", &pb.WatchCreateRequest{Key: s.key("b"), WatchId: 99})
	if err := w.call.CloseSend(); err != nil {
		s.show("close", nil, err)
	}
	s.put("a", "2", 0)
	w.next("after the half close")
	w.end()
	w.next("canceled by the client")
}

// filters is the part of filters, previous pairs and transactions.
func (s *session) filters() {
	w := s.open()
	defer w.end()
	all := func(id int64, previous bool, filters ...pb.WatchCreateRequest_FilterType) *pb.WatchCreateRequest {
		return &pb.WatchCreateRequest{Key: []byte(s.prefix), RangeEnd: s.end(), WatchId: id, PrevKv: previous, Filters: filters}
	}
	w.create("everything", all(1, true))
	s.put("a", "1", 0)
	w.next("put")
	s.put("a", "2", 0)
	w.next("put over it")
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: s.key("b"), Value: []byte("3")}}}
	remove := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: s.key("a")}}}
	answer, err := s.kv.Txn(s.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put, remove}})
	s.show("txn", answer, err)
	w.next("one response for one revision")
	w.cancel(1)
	w.next("cancel")
	w.create("no puts", all(2, false, pb.WatchCreateRequest_NOPUT))
	w.create("no deletes", all(3, false, pb.WatchCreateRequest_NODELETE))
	w.create("neither", all(4, false, pb.WatchCreateRequest_NODELETE, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NOPUT))
	s.put("c", "4", 0)
	w.next("put")
	s.delete("c")
	w.next("delete")
	w.create("from a key on", &pb.WatchCreateRequest{Key: s.key("z"), RangeEnd: []byte{0}, WatchId: 5})
	s.put("zz", "5", 0)
	w.both("put beyond")
}

// fragments is the part of responses that are larger than a message should be.
func (s *session) fragments() {
	large := string(make([]byte, 700<<10))
	batch := func() []*pb.RequestOp {
		var operations []*pb.RequestOp
		for _, key := range []string{"a", "b"} {
			operations = append(operations, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: s.key(key), Value: []byte(large)}}})
		}
		return operations
	}
	commit := func() {
		answer, err := s.kv.Txn(s.ctx, &pb.TxnRequest{Success: batch()})
		s.show("txn", answer, err)
	}
	commit()
	whole, parts := s.open(), s.open()
	defer whole.end()
	defer parts.end()
	request := func(fragment bool) *pb.WatchCreateRequest {
		return &pb.WatchCreateRequest{Key: []byte(s.prefix), RangeEnd: s.end(), PrevKv: true, Fragment: fragment}
	}
	whole.create("whole", request(false))
	parts.create("in parts", request(true))
	commit()
	whole.next("whole")
	parts.next("first part")
	parts.next("last part")
	s.put("c", "small", 0)
	whole.next("small")
	parts.next("small")
}

// progress is the part of progress that is asked for.
func (s *session) progress() {
	w := s.open()
	defer w.end()
	w.create("create", &pb.WatchCreateRequest{Key: s.key("a")})
	w.progress()
	w.next("progress")
	s.put("elsewhere", "1", 0)
	w.progress()
	w.next("progress after another key")
	s.put("a", "2", 0)
	w.next("event")
	w.create("future", &pb.WatchCreateRequest{Key: s.key("a"), StartRevision: s.base + 5, WatchId: 9})
	w.progress()
	s.put("a", "3", 0)
	w.next("no progress while one waits for the future")
	w.cancel(9)
	w.next("cancel")
	w.progress()
	w.next("progress again")
	w.cancel(0)
	w.next("cancel")
	w.progress()
	w.create("no progress without a watch", &pb.WatchCreateRequest{Key: s.key("b")})
}

// notify is the part of progress that comes by itself, on a server that tells of it every second.
func (s *session) notify() {
	w := s.open()
	defer w.end()
	w.create("notified", &pb.WatchCreateRequest{Key: s.key("a"), ProgressNotify: true, WatchId: 5})
	w.next("progress")
	s.put("elsewhere", "1", 0)
	w.nextBut(s.base, "progress after another key")
	w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: s.key("a"), WatchId: 6}}})
	w.nextBut(s.base+1, "not notified")
	put := s.put("a", "2", 0)
	w.bothBut(put-1, "event")
	s.put("elsewhere", "3", 0)
	w.nextBut(put, "progress after the event")
	s.put("elsewhere", "4", 0)
	w.nextBut(put+1, "progress of one watch alone")
}

// compacted is the part of watches of history that is gone.
func (s *session) compacted() {
	for i := range 4 {
		s.put("a", fmt.Sprint(i), 0)
	}
	s.delete("a")
	answer, err := s.kv.Compact(s.ctx, &pb.CompactionRequest{Revision: s.base + 4, Physical: true})
	s.show("compact", answer, err)
	w := s.open()
	defer w.end()
	w.create("below", &pb.WatchCreateRequest{Key: s.key("a"), StartRevision: s.base + 2, WatchId: 3})
	w.next("canceled")
	w.create("at it", &pb.WatchCreateRequest{Key: s.key("a"), StartRevision: s.base + 4, WatchId: 4, PrevKv: true})
	w.history("history", 2)
	w.create("the id of the canceled one", &pb.WatchCreateRequest{Key: s.key("a"), WatchId: 3})
	w.cancel(3)
	w.next("cancel")
	w.create("the id after its cancel", &pb.WatchCreateRequest{Key: s.key("a"), WatchId: 3})
	s.put("a", "again", 0)
	w.both("still alive")
}
