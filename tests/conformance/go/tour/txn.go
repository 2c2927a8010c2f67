package main

import (
	"trilith.test/etcd"
)

// transactions is Txn's part: every comparison, nesting, and what a transaction may not hold.
func (t *tour) transactions() {
	t.put("a", "1")
	t.put("b", "2")
	t.put("a", "3")
	t.comparisons()
	t.nesting()
	t.reading()
	t.refused()
}

func (t *tour) commit(name string, compares []etcd.Cmp, then, otherwise []etcd.Op) {
	answer, err := t.client.Txn(t.ctx).If(compares...).Then(then...).Else(otherwise...).Commit()
	if t.failed("txn "+name, err) {
		return
	}
	t.say("txn %s: %s succeeded %t", name, t.header(answer.Header), answer.Succeeded)
	t.responses("  ", answer.Responses)
}

func (t *tour) responses(indent string, responses []*etcd.ResponseOp) {
	for _, response := range responses {
		if answer := response.GetResponseRange(); answer != nil {
			t.say("%srange: %s count %d more %t", indent, t.header(answer.Header), answer.Count, answer.More)
			for _, pair := range answer.Kvs {
				t.say("%s  %s", indent, t.pair(pair))
			}
		} else if answer := response.GetResponsePut(); answer != nil {
			t.say("%sput: %s before %s", indent, t.header(answer.Header), t.pair(answer.PrevKv))
		} else if answer := response.GetResponseDeleteRange(); answer != nil {
			t.say("%sdelete: %s deleted %d", indent, t.header(answer.Header), answer.Deleted)
			for _, pair := range answer.PrevKvs {
				t.say("%s  %s", indent, t.pair(pair))
			}
		} else if answer := response.GetResponseTxn(); answer != nil {
			t.say("%stxn: %s succeeded %t", indent, t.header(answer.Header), answer.Succeeded)
			t.responses(indent+"  ", answer.Responses)
		}
	}
}

func (t *tour) comparisons() {
	test := func(name string, compares ...etcd.Cmp) { t.commit(name, compares, nil, nil) }
	a, b, none := t.prefix+"a", t.prefix+"b", t.prefix+"none"
	for _, result := range []string{"=", "!=", ">", "<"} {
		test("value a "+result+" 3", etcd.Compare(etcd.Value(a), result, "3"))
		test("value none "+result+" 3", etcd.Compare(etcd.Value(none), result, "3"))
		test("version a "+result+" 2", etcd.Compare(etcd.Version(a), result, 2))
		test("version none "+result+" 0", etcd.Compare(etcd.Version(none), result, 0))
		test("create a "+result, etcd.Compare(etcd.CreateRevision(a), result, t.base+1))
		test("mod a "+result, etcd.Compare(etcd.ModRevision(a), result, t.base+2))
		test("mod none "+result, etcd.Compare(etcd.ModRevision(none), result, 0))
		test("lease a "+result+" 0", etcd.Compare(etcd.LeaseValue(a), result, 0))
		test("version range "+result+" 1", etcd.Compare(etcd.Version(a), result, 1).WithRange(none))
		test("create prefix "+result, etcd.Compare(etcd.CreateRevision(t.prefix), result, t.base+1).WithPrefix())
		test("empty prefix "+result, etcd.Compare(etcd.Version(none), result, 1).WithPrefix())
	}
	test("nothing to compare")
	test("two, one false", etcd.Compare(etcd.Value(a), "=", "3"), etcd.Compare(etcd.Value(b), "=", "3"))
}

func (t *tour) nesting() {
	a, b, c := t.prefix+"a", t.prefix+"b", t.prefix+"c"
	inner := etcd.OpTxn([]etcd.Cmp{etcd.Compare(etcd.Value(a), "=", "outer")},
		[]etcd.Op{etcd.OpPut(b, "inner saw the outer put", etcd.WithPrevKV()), etcd.OpGet(a)},
		[]etcd.Op{etcd.OpPut(b, "inner saw the old value"), etcd.OpGet(a), etcd.OpDelete(c)})
	t.commit("nested", nil, []etcd.Op{etcd.OpPut(a, "outer", etcd.WithPrevKV()), inner, etcd.OpGet(t.prefix, etcd.WithPrefix())}, nil)
	deep := etcd.OpTxn(nil, []etcd.Op{etcd.OpPut(c, "deep"), etcd.OpGet(c)}, nil)
	for range 3 {
		deep = etcd.OpTxn(nil, []etcd.Op{deep}, nil)
	}
	t.commit("nested deeply", nil, []etcd.Op{deep}, nil)
	t.commit("else", []etcd.Cmp{etcd.Compare(etcd.Version(c), "=", 0)}, []etcd.Op{etcd.OpPut(a, "not done")},
		[]etcd.Op{etcd.OpDelete(c, etcd.WithPrevKV()), etcd.OpGet(c), etcd.OpDelete(c)})
	t.get("after", "", etcd.WithPrefix())
}

func (t *tour) reading() {
	a := t.prefix + "a"
	t.commit("reads only", nil, []etcd.Op{etcd.OpGet(a), etcd.OpGet(a, etcd.WithRev(t.base+1)), etcd.OpGet(a, etcd.WithSerializable()),
		etcd.OpGet(t.prefix, etcd.WithPrefix(), etcd.WithCountOnly())}, nil)
	t.commit("an old read among writes", nil, []etcd.Op{etcd.OpPut(t.prefix+"d", "1"), etcd.OpGet(a, etcd.WithRev(t.base+1))}, nil)
	t.commit("deletes nothing", nil, []etcd.Op{etcd.OpDelete(t.prefix + "none")}, nil)
}

func (t *tour) refused() {
	a, b := t.prefix+"a", t.prefix+"b"
	t.commit("same key twice", nil, []etcd.Op{etcd.OpPut(a, "1"), etcd.OpPut(a, "2")}, nil)
	t.commit("put and delete", nil, []etcd.Op{etcd.OpPut(a, "1"), etcd.OpDelete(t.prefix, etcd.WithPrefix())}, nil)
	t.commit("delete twice", nil, []etcd.Op{etcd.OpDelete(b), etcd.OpDelete(t.prefix+"b", etcd.WithPrefix())}, nil)
	t.commit("in both branches", nil, []etcd.Op{etcd.OpPut(a, "1")}, []etcd.Op{etcd.OpPut(a, "2")})
	t.commit("of the future", nil, []etcd.Op{etcd.OpPut(b, "1"), etcd.OpGet(a, etcd.WithRev(t.base+1000))}, nil)
	t.commit("unknown lease", nil, []etcd.Op{etcd.OpPut(b, "1"), etcd.OpPut(a, "1", etcd.WithLease(77))}, nil)
	t.commit("unknown lease not taken", nil, []etcd.Op{etcd.OpGet(b)}, []etcd.Op{etcd.OpPut(a, "1", etcd.WithLease(77))})
	t.commit("ignored value of a missing key", nil, []etcd.Op{etcd.OpPut(t.prefix+"none", "", etcd.WithIgnoreValue())}, nil)
	for _, count := range []int{128, 129} {
		operations := make([]etcd.Op, count)
		compares := make([]etcd.Cmp, count)
		for i := range operations {
			operations[i] = etcd.OpGet(a, etcd.WithCountOnly())
			compares[i] = etcd.Compare(etcd.Version(a), ">", 0)
		}
		answer, err := t.client.Txn(t.ctx).Then(operations...).Commit()
		if !t.failed("many operations", err) {
			t.say("%d operations: %d answers", count, len(answer.Responses))
		}
		t.commit("many compares", compares, nil, nil)
	}
}
