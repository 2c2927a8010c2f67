package main

import (
	"fmt"

	"trilith.test/etcd"
)

// keys is KV's part: every option of put, get and delete, and compaction.
func (t *tour) keys() {
	for i := range 8 {
		t.put(fmt.Sprintf("k%d", i), fmt.Sprintf("v%d", 7-i))
	}
	t.put("k3", "again", etcd.WithPrevKV())
	t.put("k3", "third")
	t.put("k3", "", etcd.WithIgnoreValue(), etcd.WithPrevKV())
	t.put("k4", "no lease kept", etcd.WithIgnoreLease())
	t.put("empty", "")
	t.put("bytes\x00\xff", "\x00\xfe")
	t.gets()
	t.sorted()
	t.bounded()
	t.deletes()
	t.fromKey()
	t.compaction()
}

func (t *tour) gets() {
	t.get("plain", "k3")
	t.get("absent", "none")
	t.get("prefix", "k", etcd.WithPrefix())
	t.get("range", "k2", etcd.WithRange(t.prefix+"k5"))
	t.get("empty range", "k5", etcd.WithRange(t.prefix+"k2"))
	t.get("keys only", "", etcd.WithPrefix(), etcd.WithKeysOnly())
	t.get("count", "k", etcd.WithPrefix(), etcd.WithCountOnly())
	t.get("serializable", "k3", etcd.WithSerializable())
	t.get("count at a revision", "k", etcd.WithPrefix(), etcd.WithCountOnly(), etcd.WithRev(t.base+4))
	for _, limit := range []int64{1, 7, 8, 9} {
		t.get(fmt.Sprintf("limit %d", limit), "k", etcd.WithPrefix(), etcd.WithLimit(limit), etcd.WithKeysOnly())
	}
	for distance := int64(1); distance <= 10; distance += 3 {
		t.get(fmt.Sprintf("at %d", distance), "k", etcd.WithPrefix(), etcd.WithRev(t.base+distance))
	}
}

// fromKey works at the end of all keys, where others are unlikely to have any.
func (t *tour) fromKey() {
	whole := t.prefix
	t.prefix = "\xff\xff" + whole
	t.put("a", "1")
	t.put("b", "2")
	t.get("from it on", "a", etcd.WithFromKey())
	t.get("from it on, limited", "a", etcd.WithFromKey(), etcd.WithLimit(1))
	t.del("from it on", "a", etcd.WithFromKey(), etcd.WithPrevKV())
	t.prefix = whole
}

func (t *tour) sorted() {
	targets := []etcd.SortTarget{etcd.SortByKey, etcd.SortByVersion, etcd.SortByCreateRevision, etcd.SortByModRevision,
		etcd.SortByValue}
	for i, target := range targets {
		for _, order := range []etcd.SortOrder{etcd.SortAscend, etcd.SortDescend, etcd.SortNone} {
			t.get(fmt.Sprintf("by %d order %d", i, order), "k", etcd.WithPrefix(), etcd.WithSort(target, order),
				etcd.WithLimit(3))
		}
	}
	t.get("first create", "k", etcd.WithFirstCreate()...)
	t.get("last create", "k", etcd.WithLastCreate()...)
	t.get("first revision", "k", etcd.WithFirstRev()...)
	t.get("last revision", "k", etcd.WithLastRev()...)
	t.get("first key", "k", etcd.WithFirstKey()...)
	t.get("last key", "k", etcd.WithLastKey()...)
}

func (t *tour) bounded() {
	t.get("mod at least", "k", etcd.WithPrefix(), etcd.WithMinModRev(t.base+7))
	t.get("mod at most", "k", etcd.WithPrefix(), etcd.WithMaxModRev(t.base+7))
	t.get("created at least", "k", etcd.WithPrefix(), etcd.WithMinCreateRev(t.base+6), etcd.WithLimit(1))
	t.get("created at most", "k", etcd.WithPrefix(), etcd.WithMaxCreateRev(t.base+6), etcd.WithCountOnly())
}

func (t *tour) deletes() {
	t.del("absent", "none")
	t.del("plain", "k0")
	t.del("previous", "k1", etcd.WithPrevKV())
	t.del("range", "k2", etcd.WithRange(t.prefix+"k4"), etcd.WithPrevKV())
	t.get("after", "k", etcd.WithPrefix())
	t.get("before", "k", etcd.WithPrefix(), etcd.WithRev(t.base+12), etcd.WithKeysOnly())
	t.put("k1", "reborn", etcd.WithPrevKV())
	t.get("reborn", "k1")
	t.del("prefix", "k", etcd.WithPrefix())
	t.get("rest", "", etcd.WithPrefix())
}

func (t *tour) compaction() {
	compact := func(name string, revision int64, options ...etcd.CompactOption) {
		answer, err := t.client.Compact(t.ctx, revision, options...)
		if !t.failed(name, err) {
			t.say("%s: %s", name, t.header(answer.Header))
		}
	}
	compact("compact", t.base+10)
	compact("compact again", t.base+10)
	compact("compact below", t.base+9)
	compact("compact the future", t.base+1000)
	compact("compact physically", t.base+12, etcd.WithCompactPhysical())
	t.get("compacted", "k3", etcd.WithRev(t.base+11))
	t.get("at the compacted revision", "k3", etcd.WithRev(t.base+12))
	t.get("of the future", "k3", etcd.WithRev(t.base+1000))
}
