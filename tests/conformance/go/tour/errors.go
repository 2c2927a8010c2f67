package main

import (
	"strings"

	"trilith.test/etcd"
)

// errors is the part of what a client may do wrong.
func (t *tour) errors() {
	whole := t.prefix
	t.prefix = ""
	t.put("", "empty key")
	t.get("empty key", "")
	t.del("empty key", "")
	t.prefix = whole
	t.put("none", "", etcd.WithIgnoreValue())
	t.put("none", "v", etcd.WithIgnoreLease())
	t.put("none", "v", etcd.WithIgnoreValue())
	t.put("none", "v", etcd.WithIgnoreLease(), etcd.WithLease(7))
	t.put("none", "v", etcd.WithLease(7))
	t.put("none", "", etcd.WithLease(-1))
	t.get("future", "none", etcd.WithRev(t.base+1000))
	t.put("large", strings.Repeat("x", 3<<19))
	t.put("too large for a message", strings.Repeat("x", 3<<20))
	t.put("fits", strings.Repeat("x", 3<<19-1024))
	t.get("fits", "fits")
	_, err := t.client.Revoke(t.ctx, 7)
	t.failed("revoke", err)
	_, err = t.client.Grant(t.ctx, 9_000_000_001)
	t.failed("too large ttl", err)
	_, err = t.client.KeepAliveOnce(t.ctx, 7)
	t.failed("keep alive", err)
	_, err = t.client.HashKV(t.ctx, t.endpoint, t.base+1000)
	t.failed("hash of the future", err)
	_, err = t.client.Compact(t.ctx, t.base+1000)
	t.failed("compact the future", err)
}
