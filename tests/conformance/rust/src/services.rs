//! Everything else: maintenance and members, the lock and election services, authentication, the snapshot.

use etcd_client::{AlarmAction, AlarmType, Client, LeaderKey, LockOptions, ProclaimOptions, ResignOptions};

use crate::{Tour, within};

impl Tour {
    pub(crate) async fn maintenance(&mut self) {
        self.put("a", "1", etcd_client::PutOptions::new()).await;
        let result = self.client.status().await;
        if let Some(status) = self.answer("status", result) {
            println!(
                "status: {} version {} storage {} quota {} learner {} size {} errors {:?}",
                self.header(status.header()),
                status.version(),
                status.storage_version(),
                status.db_size_quota() > 0,
                status.is_learner(),
                status.db_size() > 0,
                status.errors()
            );
        }
        for action in [AlarmAction::Get, AlarmAction::Deactivate] {
            let result = self.client.alarm(action, AlarmType::None, None).await;
            if let Some(alarms) = self.answer("alarms", result) {
                println!("alarms: {} {}", self.header(alarms.header()), alarms.alarms().len());
            }
        }
        let result = self.client.hash_kv(self.base + 1).await;
        if let Some(hash) = self.answer("hash", result) {
            println!("hash: {} of {}", self.header(hash.header()), self.revision(hash.hash_revision()));
        }
        let result = self.client.hash_kv(self.base + 1000).await;
        self.answer("hash of the future", result);
        let result = self.client.defragment().await;
        if let Some(answer) = self.answer("defragment", result) {
            println!("defragment: {}", self.header(answer.header()));
        }
        let result = self.client.member_list().await;
        if let Some(answer) = self.answer("members", result) {
            println!("members: {} {}", self.header(answer.header()), answer.members().len());
        }
    }

    /// etcd's lock service, which works on the server's side.
    pub(crate) async fn lock(&mut self) {
        let name = self.key("lock");
        let result = self.client.lease_grant(60, None).await;
        let lease = self.answer("grant", result).map_or(0, |answer| answer.id());
        self.lease_name(lease);
        let result = self.client.lock(name.as_str(), Some(LockOptions::new().with_lease(lease))).await;
        let key = self.answer("lock", result).map(|answer| answer.key().to_vec());
        if let Some(key) = &key {
            println!("lock: {}", self.plain(key));
        }
        let key = key.unwrap_or_else(|| name.clone().into_bytes());
        let mut other: Client = self.client.clone();
        let waiting = other.lock(name.as_str(), None);
        let mut client = self.client.clone();
        let (waited, unlocked) = tokio::join!(within(waiting), client.unlock(key));
        if let Some(answer) = self.answer("unlock", unlocked) {
            println!("unlock: {}", answer.header().is_some());
        }
        match waited {
            None => println!("the second lock: nothing for 20 seconds"),
            Some(result) => {
                if let Some(answer) = self.answer("the second lock", result) {
                    println!("the second lock: locked");
                    // Its lease is the server's, and would take the key with it in another part's time.
                    let result = client.unlock(answer.key()).await;
                    self.answer("unlock", result);
                }
            }
        }
        let result = self.client.lock("", None).await;
        if let Some(answer) = self.answer("without a name", result) {
            println!("without a name: locked");
            let result = client.unlock(answer.key()).await;
            self.answer("unlock", result);
        }
    }

    /// etcd's election service, which works on the server's side.
    pub(crate) async fn election(&mut self) {
        let name = self.key("post");
        let result = self.client.leader(name.as_str()).await;
        self.answer("nobody leads", result);
        let result = self.client.lease_grant(60, None).await;
        let lease = self.answer("grant", result).map_or(0, |answer| answer.id());
        self.lease_name(lease);
        let result = self.client.campaign(name.as_str(), "one", lease).await;
        let campaign = self.answer("campaign", result);
        let leader = campaign.and_then(|answer| answer.leader().cloned()).unwrap_or_else(LeaderKey::new);
        let result = self.client.leader(name.as_str()).await;
        if let Some(answer) = self.answer("leader", result) {
            answer.kv().map(|pair| println!("leader: {}", self.pair(pair)));
        }
        let proclaim = ProclaimOptions::new().with_leader(leader.clone());
        let result = self.client.proclaim("two", Some(proclaim)).await;
        if self.answer("proclaim", result).is_some() {
            println!("proclaim: done");
        }
        let result = self.client.observe(name.as_str()).await;
        if let Some(mut stream) = self.answer("observe", result) {
            match within(stream.message()).await {
                None => println!("observe: nothing for 20 seconds"),
                Some(result) => {
                    if let Some(Some(answer)) = self.answer("observe", result) {
                        answer.kv().map(|pair| println!("observe: {}", self.pair(pair)));
                    }
                }
            }
        }
        let result = self.client.resign(Some(ResignOptions::new().with_leader(leader))).await;
        if self.answer("resign", result).is_some() {
            println!("resign: done");
        }
    }

    pub(crate) async fn auth(&mut self) {
        let result = self.client.user_list().await;
        if let Some(answer) = self.answer("users", result) {
            println!("users: {}", answer.users().len());
        }
        let result = self.client.role_list().await;
        if let Some(answer) = self.answer("roles", result) {
            println!("roles: {}", answer.roles().len());
        }
        let result = self.client.user_get("nobody").await;
        self.answer("user", result);
        let result = self.client.role_delete("nothing").await;
        self.answer("delete a role", result);
        let result = self.client.auth_enable().await;
        self.answer("enable", result);
    }

    pub(crate) async fn snapshot(&mut self) {
        let result = self.client.snapshot().await;
        let Some(mut stream) = self.answer("snapshot", result) else { return };
        let mut length = 0;
        loop {
            let result = stream.message().await;
            match self.answer("snapshot", result) {
                Some(Some(part)) => length += part.blob().len(),
                Some(None) => return println!("snapshot: {} bytes beyond whole pages", length % 512),
                None => return,
            }
        }
    }
}
