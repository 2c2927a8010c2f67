//! Every RPC of the API: path, kind, REST paths, and the names that appear in metrics.
//!
//! Owns: the table and the lookup of a request path in it.
//!
//! Does not know: messages (see `proto`), permissions, or which methods this server answers.
//!
//! Invariants:
//! - I1: [`Method::from_path`] finds exactly the paths of the table, with one comparison: a hash without collisions is
//!   searched for at compile time.
//! - I2: the table names the methods of `net/wire/proto/*.proto`, no more and no fewer.

/// How messages flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl Kind {
    /// The value of the metric label `grpc_type`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// What the table says about one method.
#[derive(Debug)]
struct Row {
    method: Method,
    service: &'static str,
    name: &'static str,
    path: &'static str,
    kind: Kind,
    rest_paths: &'static [&'static str],
}

/// Declares [`Method`] and its table from rows grouped by service.
macro_rules! methods {
    ($($service:literal { $($variant:ident = $name:literal $kind:ident [$($rest:literal),*];)* })*) => {
        /// One RPC.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Method {
            $($(#[doc = concat!("`/", $service, "/", $name, "`")] $variant,)*)*
        }

        const TABLE: &[Row] = &[
            $($(Row {
                method: Method::$variant,
                service: $service,
                name: $name,
                path: concat!("/", $service, "/", $name),
                kind: Kind::$kind,
                rest_paths: &[$($rest),*],
            },)*)*
        ];
    };
}

methods! {
    "etcdserverpb.KV" {
        Put = "Put" Unary ["/v3/kv/put"];
        Range = "Range" Unary ["/v3/kv/range"];
        RangeStream = "RangeStream" ServerStream [];
        DeleteRange = "DeleteRange" Unary ["/v3/kv/deleterange"];
        Txn = "Txn" Unary ["/v3/kv/txn"];
        Compact = "Compact" Unary ["/v3/kv/compaction"];
    }
    "etcdserverpb.Watch" {
        Watch = "Watch" BidiStream ["/v3/watch"];
    }
    "etcdserverpb.Lease" {
        LeaseGrant = "LeaseGrant" Unary ["/v3/lease/grant"];
        LeaseRevoke = "LeaseRevoke" Unary ["/v3/lease/revoke", "/v3/kv/lease/revoke"];
        LeaseKeepAlive = "LeaseKeepAlive" BidiStream ["/v3/lease/keepalive"];
        LeaseTimeToLive = "LeaseTimeToLive" Unary ["/v3/lease/timetolive", "/v3/kv/lease/timetolive"];
        LeaseLeases = "LeaseLeases" Unary ["/v3/lease/leases", "/v3/kv/lease/leases"];
    }
    "etcdserverpb.Cluster" {
        MemberAdd = "MemberAdd" Unary ["/v3/cluster/member/add"];
        MemberRemove = "MemberRemove" Unary ["/v3/cluster/member/remove"];
        MemberUpdate = "MemberUpdate" Unary ["/v3/cluster/member/update"];
        MemberList = "MemberList" Unary ["/v3/cluster/member/list"];
        MemberPromote = "MemberPromote" Unary ["/v3/cluster/member/promote"];
    }
    "etcdserverpb.Maintenance" {
        Alarm = "Alarm" Unary ["/v3/maintenance/alarm"];
        Status = "Status" Unary ["/v3/maintenance/status"];
        Defragment = "Defragment" Unary ["/v3/maintenance/defragment"];
        Hash = "Hash" Unary ["/v3/maintenance/hash"];
        HashKv = "HashKV" Unary ["/v3/maintenance/hashkv"];
        Snapshot = "Snapshot" ServerStream ["/v3/maintenance/snapshot"];
        MoveLeader = "MoveLeader" Unary ["/v3/maintenance/transfer-leadership"];
        Downgrade = "Downgrade" Unary ["/v3/maintenance/downgrade"];
    }
    "etcdserverpb.Auth" {
        AuthEnable = "AuthEnable" Unary ["/v3/auth/enable"];
        AuthDisable = "AuthDisable" Unary ["/v3/auth/disable"];
        AuthStatus = "AuthStatus" Unary ["/v3/auth/status"];
        Authenticate = "Authenticate" Unary ["/v3/auth/authenticate"];
        UserAdd = "UserAdd" Unary ["/v3/auth/user/add"];
        UserGet = "UserGet" Unary ["/v3/auth/user/get"];
        UserList = "UserList" Unary ["/v3/auth/user/list"];
        UserDelete = "UserDelete" Unary ["/v3/auth/user/delete"];
        UserChangePassword = "UserChangePassword" Unary ["/v3/auth/user/changepw"];
        UserGrantRole = "UserGrantRole" Unary ["/v3/auth/user/grant"];
        UserRevokeRole = "UserRevokeRole" Unary ["/v3/auth/user/revoke"];
        RoleAdd = "RoleAdd" Unary ["/v3/auth/role/add"];
        RoleGet = "RoleGet" Unary ["/v3/auth/role/get"];
        RoleList = "RoleList" Unary ["/v3/auth/role/list"];
        RoleDelete = "RoleDelete" Unary ["/v3/auth/role/delete"];
        RoleGrantPermission = "RoleGrantPermission" Unary ["/v3/auth/role/grant"];
        RoleRevokePermission = "RoleRevokePermission" Unary ["/v3/auth/role/revoke"];
    }
    "v3lockpb.Lock" {
        Lock = "Lock" Unary ["/v3/lock/lock"];
        Unlock = "Unlock" Unary ["/v3/lock/unlock"];
    }
    "v3electionpb.Election" {
        Campaign = "Campaign" Unary ["/v3/election/campaign"];
        Proclaim = "Proclaim" Unary ["/v3/election/proclaim"];
        Leader = "Leader" Unary ["/v3/election/leader"];
        Observe = "Observe" ServerStream ["/v3/election/observe"];
        Resign = "Resign" Unary ["/v3/election/resign"];
    }
    "grpc.health.v1.Health" {
        HealthCheck = "Check" Unary [];
        HealthList = "List" Unary [];
        HealthWatch = "Watch" ServerStream [];
    }
}

impl Method {
    /// How many methods there are; `method as usize` is below it, so it sizes arrays of counters.
    pub const COUNT: usize = TABLE.len();

    /// All methods, in the order of their numbers.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        TABLE.iter().map(|row| row.method)
    }

    /// The method of a gRPC request path such as `/etcdserverpb.KV/Put`.
    #[inline]
    pub fn from_path(path: &[u8]) -> Option<Self> {
        let row = TABLE.get(usize::from(SLOTS[slot(path, SEED)]))?;
        (row.path.as_bytes() == path).then_some(row.method)
    }

    /// The method of a REST path such as `/v3/kv/put`. The gateway is no hot path: this is a scan.
    pub fn from_rest_path(path: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.rest_paths.contains(&path)).map(|row| row.method)
    }

    const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Full service name, `etcdserverpb.KV`: the metric label `grpc_service`.
    pub const fn service(self) -> &'static str {
        self.row().service
    }

    /// Name within the service, `Put`: the metric label `grpc_method`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// gRPC request path.
    pub const fn path(self) -> &'static str {
        self.row().path
    }

    /// How messages flow.
    pub const fn kind(self) -> Kind {
        self.row().kind
    }

    /// Paths of the JSON gateway, the canonical one first; empty for methods without.
    pub const fn rest_paths(self) -> &'static [&'static str] {
        self.row().rest_paths
    }
}

/// Whether `name` is the full name of a service.
pub fn is_service(name: &str) -> bool {
    TABLE.iter().any(|row| row.service == name)
}

const SLOT_COUNT: usize = 256;

/// A multiplier under which all paths fall into different slots.
const SEED: u64 = find_seed();

/// Row number per slot; rows end below 255, which stands for an empty slot.
const SLOTS: [u8; SLOT_COUNT] = match fill_slots(SEED) {
    Some(slots) => slots,
    None => panic!("the seed was chosen so that the slots can be filled"),
};

const _: () = assert!(TABLE.len() < 255, "a row number fits a slot");

/// Slot of a path: its length and last eight bytes, multiplied. Shorter ones belong to no method and share a slot.
const fn slot(path: &[u8], seed: u64) -> usize {
    let Some(end) = path.last_chunk::<8>() else { return 0 };
    let word = u64::from_le_bytes(*end) ^ path.len() as u64;
    (word.wrapping_mul(seed) >> 56) as usize
}

const fn fill_slots(seed: u64) -> Option<[u8; SLOT_COUNT]> {
    let mut slots = [u8::MAX; SLOT_COUNT];
    let mut row = 0;
    while row < TABLE.len() {
        let slot = slot(TABLE[row].path.as_bytes(), seed);
        if slots[slot] != u8::MAX {
            return None;
        }
        slots[slot] = row as u8;
        row += 1;
    }
    Some(slots)
}

const fn find_seed() -> u64 {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    while fill_slots(seed).is_none() {
        seed = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(2);
    }
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_found_and_nothing_near_it() {
        for method in Method::all() {
            let path = method.path().as_bytes();
            assert_eq!(Method::from_path(path), Some(method));
            assert_eq!(Method::from_path(&path[1..]), None);
            assert_eq!(Method::from_path(&path[..path.len() - 1]), None);
            for index in 0..path.len() {
                let mut near = path.to_vec();
                near[index] ^= 0x20;
                assert_eq!(Method::from_path(&near), None);
            }
        }
        assert_eq!(Method::from_path(b""), None);
        assert_eq!(Method::from_path(&[b'x'; 4096]), None);
    }

    #[test]
    fn rows_stand_at_their_numbers() {
        for (index, method) in Method::all().enumerate() {
            assert_eq!(method as usize, index);
        }
        assert_eq!(Method::COUNT, 52);
    }

    /// (full service name, method, kind) of every `rpc` line of a definition.
    fn declared(text: &str) -> Vec<(String, String, Kind)> {
        let package = text.lines().find_map(|line| line.strip_prefix("package ")).expect("a package line");
        let mut service = String::new();
        let mut methods = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("service ") {
                service = format!("{}.{}", package.trim_end_matches(';'), name.trim_end_matches(" {"));
            }
            if let Some(rest) = line.trim().strip_prefix("rpc ") {
                let (name, types) = rest.split_once('(').expect("a method has parentheses");
                let kind = match (types.starts_with("stream "), types.contains("(stream ")) {
                    (false, false) => Kind::Unary,
                    (false, true) => Kind::ServerStream,
                    (true, _) => Kind::BidiStream,
                };
                methods.push((service.clone(), name.to_owned(), kind));
            }
        }
        methods
    }

    #[test]
    fn table_equals_the_definitions() {
        let mut expected: Vec<_> = [
            include_str!("../../proto/etcdserverpb.proto"),
            include_str!("../../proto/v3lockpb.proto"),
            include_str!("../../proto/v3electionpb.proto"),
            include_str!("../../proto/health.proto"),
        ]
        .into_iter()
        .flat_map(declared)
        .map(|(service, name, kind)| (format!("/{service}/{name}"), kind.label()))
        .collect();
        let mut table: Vec<_> = TABLE.iter().map(|row| (row.path.to_owned(), row.kind.label())).collect();
        expected.sort();
        table.sort();
        assert_eq!(table, expected);
    }

    #[test]
    fn rest_paths_are_distinct_and_found() {
        let mut seen = Vec::new();
        for method in Method::all() {
            for path in method.rest_paths() {
                assert!(path.starts_with("/v3/"), "{path}");
                assert!(!seen.contains(path), "{path}");
                assert_eq!(Method::from_rest_path(path), Some(method));
                seen.push(path);
            }
        }
        assert_eq!(Method::from_rest_path("/v3/kv"), None);
        assert_eq!(Method::HashKv.rest_paths(), ["/v3/maintenance/hashkv"]);
    }
}
