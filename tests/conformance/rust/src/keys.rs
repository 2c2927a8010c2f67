//! KV: every option of put, get, delete, compaction and transactions that the library has.

use etcd_client::{
    CompactionOptions, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse,
};

use crate::Tour;

impl Tour {
    pub(crate) async fn put(&mut self, key: &str, value: &str, options: PutOptions) {
        let result = self.client.put(self.key(key), value, Some(options)).await;
        let name = format!("put {key}");
        let Some(answer) = self.answer(&name, result) else { return };
        let before = answer.prev_key().map_or_else(String::new, |pair| format!(" before {}", self.pair(pair)));
        println!("{name}: {}{before}", self.header(answer.header()));
    }

    pub(crate) async fn get(&mut self, name: &str, key: &str, options: GetOptions) {
        let result = self.client.get(self.key(key), Some(options)).await;
        let Some(answer) = self.answer(name, result) else { return };
        println!("{name}: {} count {} more {}", self.header(answer.header()), answer.count(), answer.more());
        self.pairs(answer.kvs());
    }

    async fn delete(&mut self, name: &str, key: &str, options: DeleteOptions) {
        let result = self.client.delete(self.key(key), Some(options)).await;
        let Some(answer) = self.answer(name, result) else { return };
        println!("{name}: {} deleted {}", self.header(answer.header()), answer.deleted());
        self.pairs(answer.prev_kvs());
    }

    pub(crate) async fn keys(&mut self) {
        for number in 0..6 {
            self.put(&format!("k{number}"), &format!("v{}", 5 - number), PutOptions::new()).await;
        }
        self.put("k3", "again", PutOptions::new().with_prev_key()).await;
        self.put("k3", "", PutOptions::new().with_ignore_value()).await;
        self.put("k4", "x", PutOptions::new().with_ignore_lease()).await;
        self.put("none", "", PutOptions::new().with_ignore_value()).await;
        self.put("k4", "x", PutOptions::new().with_lease(77)).await;
        self.gets().await;
        self.delete("delete", "k0", DeleteOptions::new()).await;
        self.delete("delete absent", "k0", DeleteOptions::new()).await;
        self.delete("delete with what was", "k1", DeleteOptions::new().with_prev_key()).await;
        let end = self.key("k4");
        self.delete("delete range", "k2", DeleteOptions::new().with_range(end).with_prev_key()).await;
        self.get("left", "", GetOptions::new().with_prefix()).await;
        self.streamed().await;
        for (distance, physical) in [(5, false), (5, false), (1000, false), (7, true)] {
            let options = if physical { CompactionOptions::new().with_physical() } else { CompactionOptions::new() };
            let result = self.client.compact(self.base + distance, Some(options)).await;
            if let Some(answer) = self.answer("compact", result) {
                println!("compact: {}", self.header(answer.header()));
            }
        }
        self.get("compacted", "k3", GetOptions::new().with_revision(self.base + 6)).await;
    }

    async fn gets(&mut self) {
        let (base, all) = (self.base, GetOptions::new().with_prefix());
        self.get("one", "k3", GetOptions::new()).await;
        self.get("absent", "none", GetOptions::new()).await;
        self.get("all", "", all.clone()).await;
        self.get("range", "k1", GetOptions::new().with_range(self.key("k4"))).await;
        self.get("limit", "", all.clone().with_limit(2)).await;
        self.get("keys only", "", all.clone().with_keys_only()).await;
        self.get("count only", "", all.clone().with_count_only()).await;
        self.get("serializable", "k3", GetOptions::new().with_serializable()).await;
        self.get("revision", "k3", GetOptions::new().with_revision(base + 4)).await;
        self.get("future", "k3", GetOptions::new().with_revision(base + 1000)).await;
        self.get("mod at least", "", all.clone().with_min_mod_revision(base + 7)).await;
        self.get("mod at most", "", all.clone().with_max_mod_revision(base + 2)).await;
        self.get("created at least", "", all.clone().with_min_create_revision(base + 5)).await;
        self.get("created at most", "", all.clone().with_max_create_revision(base + 2)).await;
        let targets = [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
        for target in targets {
            for order in [SortOrder::Ascend, SortOrder::Descend] {
                let options = all.clone().with_sort(target, order).with_limit(3).with_keys_only();
                self.get(&format!("by {target:?} {order:?}"), "", options).await;
            }
        }
    }

    /// Ranges that come in several messages.
    async fn streamed(&mut self) {
        let key = self.key("");
        let result = self.client.kv_client().get_stream(key, Some(GetOptions::new().with_prefix())).await;
        let Some(mut stream) = self.answer("stream", result) else { return };
        loop {
            let result = stream.message().await;
            match self.answer("stream", result) {
                Some(Some(part)) => self.pairs(part.kvs()),
                Some(None) => return println!("stream: ended"),
                None => return,
            }
        }
    }

    async fn commit(&mut self, name: &str, txn: Txn) {
        let result = self.client.txn(txn).await;
        let Some(answer) = self.answer(name, result) else { return };
        println!("{name}: {} succeeded {}", self.header(answer.header()), answer.succeeded());
        self.responses(&answer.op_responses());
    }

    fn responses(&mut self, responses: &[TxnOpResponse]) {
        for response in responses {
            match response {
                TxnOpResponse::Put(_) => println!("  put"),
                TxnOpResponse::Get(answer) => {
                    println!("  get: count {}", answer.count());
                    self.pairs(answer.kvs());
                }
                TxnOpResponse::Delete(answer) => {
                    println!("  delete: {}", answer.deleted());
                    self.pairs(answer.prev_kvs());
                }
                TxnOpResponse::Txn(answer) => {
                    println!("  txn: succeeded {}", answer.succeeded());
                    self.responses(&answer.op_responses());
                }
            }
        }
    }

    pub(crate) async fn transactions(&mut self) {
        self.put("a", "1", PutOptions::new()).await;
        let (a, b, base) = (self.key("a"), self.key("b"), self.base);
        for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less] {
            let compares = [
                Compare::value(a.as_str(), op, "1"),
                Compare::version(a.as_str(), op, 1),
                Compare::create_revision(a.as_str(), op, base + 1),
                Compare::mod_revision(a.as_str(), op, base + 1),
                Compare::lease(a.as_str(), op, 0),
                Compare::version(self.prefix.as_str(), op, 1).with_prefix(),
            ];
            for (number, compare) in compares.into_iter().enumerate() {
                self.commit(&format!("{op:?} {number}"), Txn::new().when([compare])).await;
            }
        }
        let inner = Txn::new()
            .when([Compare::value(a.as_str(), CompareOp::Equal, "2")])
            .and_then([TxnOp::put(b.as_str(), "inner", None), TxnOp::get(a.as_str(), None)])
            .or_else([TxnOp::get(b.as_str(), None)]);
        let outer = Txn::new().and_then([TxnOp::put(a.as_str(), "2", None), TxnOp::txn(inner)]);
        self.commit("nested", outer).await;
        let otherwise = Txn::new()
            .when([Compare::version(a.as_str(), CompareOp::Equal, 0)])
            .or_else([TxnOp::delete(b.as_str(), Some(DeleteOptions::new().with_prev_key()))]);
        self.commit("otherwise", otherwise).await;
        let twice = [TxnOp::put(a.as_str(), "3", None), TxnOp::put(a.as_str(), "4", None)];
        self.commit("same key twice", Txn::new().and_then(twice)).await;
        self.commit("too many", Txn::new().and_then(vec![TxnOp::get(a.as_str(), None); 129])).await;
        self.get("after", "", GetOptions::new().with_prefix()).await;
    }
}
