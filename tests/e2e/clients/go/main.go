// Puts, gets and deletes with clientv3 and prints every answer, one line a call.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

type session struct {
	client *clientv3.Client
	ctx    context.Context
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go-client HOST:PORT")
		os.Exit(2)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{os.Args[1]},
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		fmt.Println("cannot connect:", err)
		os.Exit(1)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	s := session{client, ctx}
	s.puts()
	s.gets()
	s.deletes()
	s.errors()
	s.transactions()
	s.compactions()
	s.cluster(os.Args[1])
	s.alarms(os.Args[1])
	fmt.Println("done")
}

// show prints the answer as JSON or the error with its code.
func show(name string, answer any, err error) {
	if err != nil {
		var typed rpctypes.EtcdError
		if errors.As(err, &typed) {
			fmt.Printf("%s: error %v: %v\n", name, typed.Code(), typed)
		} else {
			fmt.Printf("%s: error %v\n", name, err)
		}
		return
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\n%s\n", name, text)
}

func (s session) put(key, value string, options ...clientv3.OpOption) {
	answer, err := s.client.Put(s.ctx, key, value, options...)
	show(fmt.Sprintf("put %q", key), answer, err)
}

func (s session) get(name, key string, options ...clientv3.OpOption) {
	answer, err := s.client.Get(s.ctx, key, options...)
	show(fmt.Sprintf("get %q %s", key, name), answer, err)
}

func (s session) del(name, key string, options ...clientv3.OpOption) {
	answer, err := s.client.Delete(s.ctx, key, options...)
	show(fmt.Sprintf("delete %q %s", key, name), answer, err)
}

func (s session) puts() {
	for i := range 10 {
		s.put(fmt.Sprintf("key/%02d", i), fmt.Sprintf("value %d", 9-i))
	}
	s.put("key/03", "again", clientv3.WithPrevKV())
	s.put("key/03", "third")
	s.put("key/03", "", clientv3.WithIgnoreValue(), clientv3.WithPrevKV())
	s.put("key/04", "kept lease", clientv3.WithIgnoreLease())
	s.put("bytes/\x00\xff", "\x00\x01\xfe\xff")
	s.put("empty", "")
	s.put("large", strings.Repeat("x", 1<<20))
}

func (s session) gets() {
	s.get("plain", "key/03")
	s.get("absent", "nothing")
	s.get("prefix", "key/", clientv3.WithPrefix())
	s.get("range", "key/02", clientv3.WithRange("key/05"))
	s.get("empty range", "key/05", clientv3.WithRange("key/02"))
	s.get("from key", "key/08", clientv3.WithFromKey())
	s.get("all keys only", "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	s.get("count", "key/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	s.get("count at revision", "key/", clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithRev(5))
	s.get("serializable", "key/03", clientv3.WithSerializable())
	for _, limit := range []int64{1, 9, 10, 11} {
		s.get(fmt.Sprintf("limit %d", limit), "key/", clientv3.WithPrefix(), clientv3.WithLimit(limit), clientv3.WithKeysOnly())
	}
	for revision := int64(2); revision <= 14; revision += 3 {
		s.get(fmt.Sprintf("revision %d", revision), "key/", clientv3.WithPrefix(), clientv3.WithRev(revision))
	}
	targets := map[string]clientv3.SortTarget{"key": clientv3.SortByKey, "version": clientv3.SortByVersion,
		"create": clientv3.SortByCreateRevision, "mod": clientv3.SortByModRevision, "value": clientv3.SortByValue}
	for _, name := range []string{"key", "version", "create", "mod", "value"} {
		for _, order := range []clientv3.SortOrder{clientv3.SortAscend, clientv3.SortDescend, clientv3.SortNone} {
			s.get(fmt.Sprintf("sorted by %s %d", name, order), "key/", clientv3.WithPrefix(),
				clientv3.WithSort(targets[name], order), clientv3.WithLimit(4))
		}
	}
	s.get("min mod revision", "key/", clientv3.WithPrefix(), clientv3.WithMinModRev(8))
	s.get("max mod revision", "key/", clientv3.WithPrefix(), clientv3.WithMaxModRev(8))
	s.get("min create revision", "key/", clientv3.WithPrefix(), clientv3.WithMinCreateRev(8), clientv3.WithLimit(2))
	s.get("max create revision", "key/", clientv3.WithPrefix(), clientv3.WithMaxCreateRev(8), clientv3.WithCountOnly())
	s.get("first create", "key/", clientv3.WithFirstCreate()...)
	s.get("last create", "key/", clientv3.WithLastCreate()...)
	s.get("first revision", "key/", clientv3.WithFirstRev()...)
	s.get("last revision", "key/", clientv3.WithLastRev()...)
	s.get("first key", "key/", clientv3.WithFirstKey()...)
	s.get("last key", "key/", clientv3.WithLastKey()...)
}

func (s session) deletes() {
	s.del("absent", "nothing")
	s.del("plain", "key/00")
	s.del("previous", "key/01", clientv3.WithPrevKV())
	s.del("range", "key/02", clientv3.WithRange("key/04"), clientv3.WithPrevKV())
	s.get("after", "key/", clientv3.WithPrefix())
	s.get("before", "key/", clientv3.WithPrefix(), clientv3.WithRev(12))
	s.put("key/01", "reborn", clientv3.WithPrevKV())
	s.get("reborn", "key/01")
	s.del("prefix", "key/", clientv3.WithPrefix())
	s.del("from key", "l", clientv3.WithFromKey())
	s.get("rest", "", clientv3.WithPrefix())
}

func (s session) errors() {
	s.put("", "no key")
	s.put("lease", "x", clientv3.WithLease(0x1234))
	s.put("nobody", "", clientv3.WithIgnoreValue())
	s.put("nobody", "x", clientv3.WithIgnoreValue())
	s.put("nobody", "x", clientv3.WithIgnoreLease())
	s.get("future revision", "key/03", clientv3.WithRev(1<<40))
	s.get("negative revision", "bytes/\x00\xff", clientv3.WithRev(-5))
	s.put("too large", strings.Repeat("x", 1600<<10))
}

func (s session) txn(name string, txn clientv3.Txn) {
	answer, err := txn.Commit()
	show("txn "+name, answer, err)
}

func (s session) transactions() {
	begin := func() clientv3.Txn { return s.client.Txn(s.ctx) }
	put, get, del := clientv3.OpPut, clientv3.OpGet, clientv3.OpDelete
	s.txn("empty", begin())
	s.txn("puts", begin().Then(put("txn/a", "1"), put("txn/b", "2"), put("txn/c", "3")))
	s.txn("reads only", begin().Then(get("txn/", clientv3.WithPrefix()), get("txn/a", clientv3.WithCountOnly())))
	s.txn("absent", begin().If(clientv3.Compare(clientv3.CreateRevision("txn/x"), "=", 0)).
		Then(put("txn/x", "made"), get("txn/x")).Else(get("txn/x")))
	s.txn("present", begin().If(clientv3.Compare(clientv3.CreateRevision("txn/x"), "=", 0)).
		Then(put("txn/x", "made")).Else(get("txn/x")))
	for _, sign := range []string{"=", "!=", "<", ">"} {
		s.txn("value "+sign, begin().If(clientv3.Compare(clientv3.Value("txn/b"), sign, "2")).Then(get("txn/b")))
		s.txn("version "+sign, begin().If(clientv3.Compare(clientv3.Version("txn/b"), sign, 1)).Then(get("txn/b")))
		s.txn("mod "+sign, begin().If(clientv3.Compare(clientv3.ModRevision("txn/b"), sign, 3)).Then(get("txn/b")))
		s.txn("lease "+sign, begin().If(clientv3.Compare(clientv3.LeaseValue("txn/b"), sign, 0)).Then(get("txn/b")))
		s.txn("range "+sign, begin().If(clientv3.Compare(clientv3.Version("txn/"), sign, 1).WithPrefix()).Then(get("txn/b")))
	}
	s.txn("delete and read", begin().Then(del("txn/a", clientv3.WithPrevKV()), get("txn/", clientv3.WithPrefix()),
		put("txn/d", "4", clientv3.WithPrevKV()), get("txn/d")))
	s.txn("nested", begin().Then(
		put("txn/outer", "1"),
		clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Version("txn/outer"), "=", 0)},
			[]clientv3.Op{put("txn/inner", "then")}, []clientv3.Op{put("txn/inner", "else")})))
	s.txn("duplicate key", begin().Then(put("txn/a", "1"), put("txn/a", "2")))
	s.txn("put below a deleted range", begin().Then(del("txn/", clientv3.WithPrefix()), put("txn/a", "1")))
	s.txn("failing put", begin().Then(put("txn/z", "1"), put("txn/nobody", "", clientv3.WithIgnoreValue())))
	s.txn("future revision", begin().Then(put("txn/z", "1"), get("txn/a", clientv3.WithRev(1<<40))))
	many := make([]clientv3.Op, 129)
	for i := range many {
		many[i] = put(fmt.Sprintf("txn/many/%03d", i), "x")
	}
	s.txn("too many", begin().Then(many...))
	s.txn("as many as allowed", begin().Then(many[:128]...))
	s.get("after transactions", "txn/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
}

func (s session) compactions() {
	compact := func(revision int64, options ...clientv3.CompactOption) {
		answer, err := s.client.Compact(s.ctx, revision, options...)
		show(fmt.Sprintf("compact %d", revision), answer, err)
	}
	compact(20)
	compact(20)
	compact(19)
	compact(0)
	compact(1 << 40)
	s.get("below the compaction", "txn/", clientv3.WithPrefix(), clientv3.WithRev(19))
	s.get("at the compaction", "txn/", clientv3.WithPrefix(), clientv3.WithRev(20))
	compact(25, clientv3.WithCompactPhysical())
	s.get("newest", "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	s.put("after compaction", "x", clientv3.WithPrevKV())
}

func (s session) alarms(endpoint string) {
	maintenance := pb.NewMaintenanceClient(s.client.ActiveConnection())
	alarm := func(name string, action pb.AlarmRequest_AlarmAction, member uint64, kind pb.AlarmType) {
		answer, err := maintenance.Alarm(s.ctx, &pb.AlarmRequest{Action: action, MemberID: member, Alarm: kind})
		if err != nil {
			err = rpctypes.Error(err)
		} else {
			// etcd lists them in the order of a Go map.
			sort.Slice(answer.Alarms, func(i, j int) bool { return answer.Alarms[i].MemberID < answer.Alarms[j].MemberID })
		}
		show("alarm "+name, answer, err)
	}
	get, raise, clear := pb.AlarmRequest_GET, pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE
	alarm("raise none", raise, 7, pb.AlarmType_NONE)
	for _, kind := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		name := kind.String()
		alarm("raise "+name, raise, 7, kind)
		alarm("raise again "+name, raise, 7, kind)
		alarm("raise for another "+name, raise, 8, kind)
		alarm("list all", get, 0, pb.AlarmType_NONE)
		alarm("list "+name, get, 9, kind)
		s.put("alarm/"+name, "x")
		s.get("under alarm", "alarm/", clientv3.WithPrefix())
		s.del("under alarm", "alarm/nobody")
		s.txn("put under alarm", s.client.Txn(s.ctx).Then(clientv3.OpPut("alarm/t", "x")))
		s.txn("read under alarm", s.client.Txn(s.ctx).Then(clientv3.OpGet("alarm/t")))
		status, err := s.client.Status(s.ctx, endpoint)
		if err == nil {
			// The spaces in this text differ between builds of etcd, its order between calls.
			sort.Strings(status.Errors)
			fmt.Printf("status errors: %q\n", strings.Fields(strings.Join(status.Errors, " ")))
		}
		alarm("clear for nobody "+name, clear, 9, kind)
		alarm("clear "+name, clear, 7, kind)
		alarm("clear the other "+name, clear, 8, kind)
		alarm("list none", get, 0, pb.AlarmType_NONE)
		s.put("alarm/after "+name, "x")
	}
}

func (s session) cluster(endpoint string) {
	members, err := s.client.MemberList(s.ctx)
	show("members", members, err)
	status, err := s.client.Status(s.ctx, endpoint)
	show("status", status, err)
	alarms, err := s.client.AlarmList(s.ctx)
	show("alarms", alarms, err)
}
