//! Leases: grant, keep alive, time to live, list, revoke, expiry.

use etcd_client::{Error, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, WatchOptions};

use crate::{Tour, within};

/// An id that no server chooses.
const CHOSEN: i64 = 5050;

impl Tour {
    async fn grant(&mut self, name: &str, ttl: i64, id: i64) -> i64 {
        let result = self.client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await;
        let Some(answer) = self.answer(name, result) else { return 0 };
        let lease = self.lease_name(answer.id());
        println!("{name}: {} {lease} ttl {}", self.header(answer.header()), answer.ttl());
        answer.id()
    }

    async fn revoke(&mut self, id: i64) {
        let name = format!("revoke {}", self.lease_name(id));
        let result = self.client.lease_revoke(id).await;
        if let Some(answer) = self.answer(&name, result) {
            println!("{name}: {}", self.header(answer.header()));
        }
    }

    async fn time_to_live(&mut self, id: i64) {
        let name = format!("time to live of {}", self.lease_name(id));
        let result = self.client.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await;
        let Some(answer) = self.answer(&name, result) else { return };
        let mut keys: Vec<String> = answer.keys().iter().map(|key| self.plain(key)).collect();
        keys.sort();
        let left = if answer.ttl() < 0 { "none" } else { "some" };
        println!("{name}: {} {left} of {}, keys {keys:?}", self.header(answer.header()), answer.granted_ttl());
    }

    pub(crate) async fn leases(&mut self) -> Result<(), Error> {
        let _ = self.client.lease_revoke(CHOSEN).await;
        let chosen = self.grant("chosen", 100, CHOSEN).await;
        self.grant("chosen again", 100, CHOSEN).await;
        self.grant("too long", 9_000_000_001, 0).await;
        self.put("a", "1", PutOptions::new().with_lease(chosen)).await;
        self.put("b", "2", PutOptions::new().with_lease(chosen)).await;
        self.time_to_live(chosen).await;
        self.time_to_live(77).await;
        let leases = self.client.leases().await?;
        println!("listed: {}", leases.leases().iter().filter(|lease| lease.id() == chosen).count());
        let (mut keeper, mut kept) = self.client.lease_keep_alive(chosen).await?;
        for _ in 0..3 {
            keeper.keep_alive().await?;
            if let Some(answer) = kept.message().await? {
                println!("kept: {} ttl {}", self.header(answer.header()), answer.ttl());
            }
        }
        let short = self.grant("short", 5, 0).await;
        self.put("short", "3", PutOptions::new().with_lease(short)).await;
        let options = WatchOptions::new().with_prefix().with_start_revision(self.base + 4);
        let mut stream = self.client.watch(self.prefix.as_str(), Some(options)).await?;
        for _ in 0..2 {
            match within(stream.message()).await {
                Some(Ok(Some(answer))) => answer.events().iter().for_each(|event| println!("{}", self.event(event))),
                other => println!("no event: {}", other.is_some()),
            }
        }
        self.time_to_live(short).await;
        self.revoke(short).await;
        self.revoke(chosen).await;
        self.get("after", "", GetOptions::new().with_prefix()).await;
        keeper.keep_alive().await?;
        if let Some(answer) = kept.message().await? {
            println!("kept no more: {} ttl {}", self.header(answer.header()), answer.ttl());
        }
        Ok(())
    }
}
