//! The plain HTTP side of both listeners: health, version, members.
//!
//! Owns: paths, status codes, bodies and headers as etcd 3.7 answers them. Does not know: HTTP versions or
//! connections; a request comes decoded and a [`Response`] goes back.
//!
//! Invariants
//! - I1: a probe that promises a linearizable read is answered only after one was confirmed ([`Answer::AfterRead`]).
//! - I2: `health` in the body is a string, not a boolean: probes of many platforms compare text.

use std::fmt::Write as _;
use std::sync::Arc;

use trilith_engine::tables::Tables;

use crate::journal::push_json_string;

/// etcd's version that this server reports to clients.
pub const SERVER_VERSION: &str = "3.7.3";
/// Cluster version, and storage version: the server's minor release.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// Which listener a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// `--listen-client-urls`: gRPC and HTTP.
    Clients,
    /// `--listen-client-urls` beside `--listen-client-http-urls`: gRPC alone.
    GrpcClients,
    /// `--listen-client-http-urls`: HTTP alone.
    HttpClients,
    /// `--listen-metrics-urls`.
    Metrics,
    /// `--listen-peer-urls`.
    Peers,
}

impl Audience {
    /// Whether gRPC calls are served.
    #[must_use]
    pub fn has_grpc(self) -> bool {
        matches!(self, Self::Clients | Self::GrpcClients)
    }
}

/// What an answer to a probe adds to the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tally {
    /// Nothing.
    #[default]
    Nothing,
    /// `/health` was answered.
    Health {
        /// Whether all is well.
        ok: bool,
    },
    /// Checks were made.
    Checks {
        /// `livez` or `readyz`.
        kind: &'static str,
        /// The checks, and whether each passed.
        results: Vec<(&'static str, bool)>,
    },
}

/// A decoded request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Method name, upper case.
    pub method: &'a [u8],
    /// Path without query.
    pub path: &'a [u8],
    /// Query without question mark.
    pub query: &'a [u8],
}

/// A whole response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header names (lower case) and values.
    pub headers: Vec<(&'static str, String)>,
    /// Body; shared where many are told the same.
    pub body: Arc<[u8]>,
    /// What it adds to the counters.
    pub tally: Tally,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Now(Response),
    /// Confirm a linearizable read, then send [`Probe::finish`].
    AfterRead(Probe),
    /// Send [`metrics_response`] with the text of the moment.
    Metrics,
    /// There is no HTTP here: give the stream up, the connection if it is HTTP/1.1.
    Reset,
}

/// A health question that waits for a linearizable read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Who asked.
    audience: Audience,
    question: Question,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    /// `/health`.
    Health,
    /// `/readyz` and `/readyz/<check>`.
    Checks {
        /// Checks before the read.
        before: Vec<Check>,
        /// Checks after the read.
        after: Vec<Check>,
        /// The whole list is wanted even when all is well.
        verbose: bool,
    },
}

/// A check and why it failed, if it did.
type Check = (&'static str, Option<String>);

/// What the handlers need to know of the server.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    /// This member believes that there is a leader.
    pub has_leader: bool,
    /// The corruption alarm is on.
    pub corrupt: bool,
    /// The space alarm is on.
    pub no_space: bool,
    /// Cluster identifier, for the peer side.
    pub cluster_id: u64,
    /// The small tables, for `/members`.
    pub tables: &'a Tables,
    /// Nanoseconds since the Unix epoch.
    pub wall_now: u64,
}

/// Answers a request, or says which read must be confirmed first.
#[must_use]
pub fn respond(audience: Audience, request: &Request<'_>, status: &Status<'_>) -> Answer {
    let mut answer = match audience {
        Audience::Clients | Audience::HttpClients => client_answer(audience, request, status),
        Audience::Metrics => monitor_answer(audience, request, status).unwrap_or_else(not_found),
        Audience::GrpcClients => Answer::Reset,
        Audience::Peers => Answer::Now(peer_answer(request, status)),
    };
    if let Answer::Now(response) = &mut answer {
        finish_headers(response, audience, status.wall_now);
    }
    answer
}

/// The answer to `/metrics`.
#[must_use]
pub fn metrics_response(audience: Audience, text: &Arc<[u8]>, wall_now: u64) -> Response {
    let headers = vec![("content-type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores".to_owned())];
    let mut response = Response { status: 200, headers, body: Arc::clone(text), tally: Tally::Nothing };
    finish_headers(&mut response, audience, wall_now);
    response
}

fn client_answer(audience: Audience, request: &Request<'_>, status: &Status<'_>) -> Answer {
    if request.method == b"OPTIONS" {
        return Answer::Now(Response { status: 200, ..Response::default() });
    }
    match request.path {
        b"/version" => Answer::Now(get_only(request, version)),
        _ => monitor_answer(audience, request, status).unwrap_or_else(not_found),
    }
}

fn not_found() -> Answer {
    Answer::Now(plain(404, "404 page not found\n"))
}

/// Health and metrics: the same on every listener that has them.
fn monitor_answer(audience: Audience, request: &Request<'_>, status: &Status<'_>) -> Option<Answer> {
    if let Some(check) = check_name(request.path, b"/livez") {
        return Some(checks(audience, request, status, check, "livez"));
    }
    if let Some(check) = check_name(request.path, b"/readyz") {
        return Some(checks(audience, request, status, check, "readyz"));
    }
    match request.path {
        b"/health" => Some(health(audience, request, status)),
        // Whatever the method, as in etcd.
        b"/metrics" => Some(Answer::Metrics),
        _ => None,
    }
}

fn peer_answer(request: &Request<'_>, status: &Status<'_>) -> Response {
    match request.path {
        b"/version" => get_only(request, version),
        b"/members" => get_only(request, || Response {
            status: 200,
            headers: vec![
                ("content-type", "application/json".to_owned()),
                ("x-etcd-cluster-id", format!("{:x}", status.cluster_id)),
            ],
            body: members_json(status.tables).into_bytes().into(),
            tally: Tally::Nothing,
        }),
        _ => plain(404, "404 page not found\n"),
    }
}

/// The member list in etcd's field order; absent values are left out.
fn members_json(tables: &Tables) -> String {
    let mut body = String::from("[");
    for (position, (id, member)) in tables.members().iter().enumerate() {
        body.push_str(if position > 0 { ",{" } else { "{" });
        let _ = write!(body, "\"id\":{id},\"peerURLs\":");
        push_list(&mut body, &member.peer_urls);
        if !member.name.is_empty() {
            body.push_str(",\"name\":");
            push_json_string(&mut body, &member.name);
        }
        if !member.client_urls.is_empty() {
            body.push_str(",\"clientURLs\":");
            push_list(&mut body, &member.client_urls);
        }
        body.push('}');
    }
    body.push_str("]\n");
    body
}

fn push_list(out: &mut String, items: &[String]) {
    out.push('[');
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            out.push(',');
        }
        push_json_string(out, item);
    }
    out.push(']');
}

fn version() -> Response {
    let body = format!(
        "{{\"etcdserver\":\"{SERVER_VERSION}\",\"etcdcluster\":\"{CLUSTER_VERSION}\",\
         \"storage\":\"{CLUSTER_VERSION}\"}}"
    );
    let headers = vec![("content-type", "application/json".to_owned())];
    Response { status: 200, headers, body: body.into_bytes().into(), tally: Tally::Nothing }
}

fn get_only(request: &Request<'_>, answer: impl FnOnce() -> Response) -> Response {
    method_refusal(request).unwrap_or_else(answer)
}

/// The answer to anything but GET.
fn method_refusal(request: &Request<'_>) -> Option<Response> {
    if request.method == b"GET" {
        return None;
    }
    let mut refusal = plain(405, "Method Not Allowed\n");
    refusal.headers.push(("allow", "GET".to_owned()));
    Some(refusal)
}

/// Go's `http.Error` form.
fn plain(status: u16, text: &str) -> Response {
    Response {
        status,
        headers: vec![
            ("content-type", "text/plain; charset=utf-8".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
        ],
        body: text.as_bytes().into(),
        tally: Tally::Nothing,
    }
}

fn health(audience: Audience, request: &Request<'_>, status: &Status<'_>) -> Answer {
    if let Some(refusal) = method_refusal(request) {
        return Answer::Now(refusal);
    }
    let excluded = |alarm: &str| query_values(request.query, "exclude").any(|value| value == alarm.as_bytes());
    let serializable = query_values(request.query, "serializable").any(|value| value == b"true");
    if status.no_space && !excluded("NOSPACE") {
        return Answer::Now(unhealthy("ALARM NOSPACE"));
    }
    if status.corrupt && !excluded("CORRUPT") {
        return Answer::Now(unhealthy("ALARM CORRUPT"));
    }
    if serializable {
        return Answer::Now(healthy());
    }
    if !status.has_leader {
        return Answer::Now(unhealthy("RAFT NO LEADER"));
    }
    Answer::AfterRead(Probe { audience, question: Question::Health })
}

fn healthy() -> Response {
    Response {
        status: 200,
        headers: vec![("content-type", "text/plain; charset=utf-8".to_owned())],
        body: b"{\"health\":\"true\",\"reason\":\"\"}".as_slice().into(),
        tally: Tally::Health { ok: true },
    }
}

fn unhealthy(reason: &str) -> Response {
    let body = format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n");
    Response { tally: Tally::Health { ok: false }, ..plain(503, &body) }
}

const LIVEZ: [&str; 1] = ["serializable_read"];
const READYZ: [&str; 4] = ["data_corruption", "serializable_read", "linearizable_read", "non_learner"];
const LINEARIZABLE: &str = "linearizable_read";

/// `Some("")` for the root path itself, `Some(check)` for a path below it.
fn check_name<'a>(path: &'a [u8], root: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(root)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

fn checks(audience: Audience, request: &Request<'_>, status: &Status<'_>, only: &[u8], kind: &'static str) -> Answer {
    let known: &[&'static str] = if kind == "livez" { &LIVEZ } else { &READYZ };
    if let Some(refusal) = method_refusal(request) {
        return Answer::Now(refusal);
    }
    if !only.is_empty() && !known.iter().any(|name| name.as_bytes() == only) {
        return not_found();
    }
    let verbose = query_values(request.query, "verbose").next().is_some();
    let wanted = |name: &&&'static str| {
        let name = name.as_bytes();
        (only.is_empty() || name == only) && !query_values(request.query, "exclude").any(|value| value == name)
    };
    let result = |name: &'static str| {
        let failed = name == "data_corruption" && status.corrupt;
        (name, failed.then(|| "alarm activated: CORRUPT".to_owned()))
    };
    let mut before = Vec::new();
    let mut after = Vec::new();
    let mut needs_read = false;
    for name in known.iter().filter(wanted) {
        match *name {
            LINEARIZABLE => needs_read = true,
            name if needs_read => after.push(result(name)),
            name => before.push(result(name)),
        }
    }
    if needs_read {
        return Answer::AfterRead(Probe { audience, question: Question::Checks { before, after, verbose } });
    }
    Answer::Now(check_list(kind, &before, verbose))
}

fn check_list(kind: &'static str, results: &[Check], verbose: bool) -> Response {
    let failed = results.iter().any(|(_, failure)| failure.is_some());
    let mut text = String::new();
    if failed || verbose {
        for (name, failure) in results {
            let _ = match failure {
                None => writeln!(text, "[+]{name} ok"),
                Some(reason) => writeln!(text, "[-]{name} failed: {reason}"),
            };
        }
    }
    let results = results.iter().map(|(name, failure)| (*name, failure.is_none())).collect();
    let tally = Tally::Checks { kind, results };
    if failed {
        return Response { tally, ..plain(503, &text) };
    }
    text.push_str("ok\n");
    Response { tally, ..plain(200, &text) }
}

impl Probe {
    /// The response, once the read was confirmed (`None`) or failed (`Some(reason)`).
    #[must_use]
    pub fn finish(self, failure: Option<&str>, wall_now: u64) -> Response {
        let mut response = match (self.question, failure) {
            (Question::Health, None) => healthy(),
            (Question::Health, Some(reason)) => unhealthy(&format!("RANGE ERROR:{reason}")),
            (Question::Checks { mut before, after, verbose }, failure) => {
                before.push((LINEARIZABLE, failure.map(str::to_owned)));
                before.extend(after);
                check_list("readyz", &before, verbose)
            }
        };
        finish_headers(&mut response, self.audience, wall_now);
        response
    }
}

fn finish_headers(response: &mut Response, audience: Audience, wall_now: u64) {
    if matches!(audience, Audience::Clients | Audience::HttpClients) {
        let cors = [
            ("access-control-allow-headers", "accept, content-type, authorization"),
            ("access-control-allow-methods", "POST, GET, OPTIONS, PUT, DELETE"),
            ("access-control-allow-origin", "*"),
        ];
        response.headers.splice(0..0, cors.map(|(name, value)| (name, value.to_owned())));
    }
    response.headers.push(("date", http_date(wall_now)));
}

/// RFC 9110 section 5.6.7 form of a wall-clock time.
#[must_use]
pub fn http_date(wall_now: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = wall_now / 1_000_000_000;
    let days = seconds / 86_400;
    let (year, month, day) = trilith_reactor::civil_date(days);
    let second_of_day = seconds % 86_400;
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[usize::try_from(days % 7).expect("below seven")],
        MONTHS[usize::try_from(month - 1).expect("a month")],
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60
    )
}

/// The raw values of a query parameter; values of the probes need no percent-decoding.
fn query_values<'a>(query: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    query.split(|&byte| byte == b'&').filter_map(move |pair| {
        let mut parts = pair.splitn(2, |&byte| byte == b'=');
        (parts.next() == Some(name.as_bytes())).then(|| parts.next().unwrap_or(b""))
    })
}

#[cfg(test)]
mod tests {
    use trilith_engine::tables::Member;

    use super::*;

    fn status(tables: &Tables) -> Status<'_> {
        Status { has_leader: true, corrupt: false, no_space: false, cluster_id: 0xab, tables, wall_now: 0 }
    }

    fn get<'a>(path: &'a str, query: &'a str) -> Request<'a> {
        Request { method: b"GET", path: path.as_bytes(), query: query.as_bytes() }
    }

    fn now(answer: Answer) -> Response {
        match answer {
            Answer::Now(response) => response,
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn health_needs_a_read_unless_serializable() {
        assert_eq!(
            respond(Audience::Clients, &get("/health", ""), &status(&Tables::default())),
            Answer::AfterRead(Probe { audience: Audience::Clients, question: Question::Health }),
            "a linearizable probe waits"
        );
        let response =
            now(respond(Audience::Clients, &get("/health", "serializable=true"), &status(&Tables::default())));
        assert_eq!((response.status, &response.body[..]), (200, &b"{\"health\":\"true\",\"reason\":\"\"}"[..]));
    }

    #[test]
    fn alarms_turn_health_red_unless_excluded() {
        let tables = Tables::default();
        let status = Status { no_space: true, ..status(&tables) };
        let response = now(respond(Audience::Clients, &get("/health", ""), &status));
        assert_eq!(response.status, 503);
        assert_eq!(&response.body[..], b"{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n");
        let excluded = respond(Audience::Clients, &get("/health", "exclude=NOSPACE"), &status);
        assert_eq!(excluded, Answer::AfterRead(Probe { audience: Audience::Clients, question: Question::Health }));
    }

    #[test]
    fn readyz_lists_checks_in_order() {
        let Answer::AfterRead(probe) =
            respond(Audience::Clients, &get("/readyz", "verbose"), &status(&Tables::default()))
        else {
            panic!("readyz confirms a read");
        };
        let body = probe.finish(None, 0).body;
        let expected =
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
        assert_eq!(String::from_utf8_lossy(&body), expected);
        let question = Question::Checks { before: vec![], after: vec![], verbose: false };
        let failed = Probe { audience: Audience::Clients, question }.finish(Some("no"), 0);
        let tally = Tally::Checks { kind: "readyz", results: vec![("linearizable_read", false)] };
        assert_eq!(failed.tally, tally);
        assert_eq!((failed.status, &failed.body[..]), (503, &b"[-]linearizable_read failed: no\n"[..]));
    }

    #[test]
    fn each_listener_serves_its_own() {
        use Audience::{Clients, GrpcClients, HttpClients, Metrics, Peers};
        let tables = Tables::default();
        let ask = |audience, path| respond(audience, &get(path, "serializable=true"), &status(&tables));
        let code = |audience, path| now(ask(audience, path)).status;
        for audience in [Clients, HttpClients, Metrics] {
            assert_eq!(ask(audience, "/metrics"), Answer::Metrics);
            assert_eq!(code(audience, "/health"), 200);
            assert_eq!(code(audience, "/livez"), 200);
            assert!(matches!(ask(audience, "/readyz"), Answer::AfterRead(_)));
        }
        assert_eq!(
            [Clients, HttpClients, Metrics, Peers].map(|audience| code(audience, "/version")),
            [200, 200, 404, 200]
        );
        assert_eq!(["/metrics", "/health", "/livez"].map(|path| code(Peers, path)), [404; 3]);
        assert_eq!(
            ["/metrics", "/health", "/version"].map(|path| ask(GrpcClients, path)),
            [const { Answer::Reset }; 3]
        );
        let post = Request { method: b"POST", path: b"/metrics", query: b"" };
        assert_eq!(respond(Clients, &post, &status(&tables)), Answer::Metrics, "etcd does not mind the method");
    }

    #[test]
    fn only_clients_get_headers_for_browsers() {
        let tables = Tables::default();
        let headers = |audience| {
            let response = now(respond(audience, &get("/health", "serializable=true"), &status(&tables)));
            response.headers.iter().any(|(name, _)| *name == "access-control-allow-origin")
        };
        assert_eq!([Audience::Clients, Audience::HttpClients, Audience::Metrics].map(headers), [true, true, false]);
        let Answer::AfterRead(probe) = respond(Audience::Metrics, &get("/health", ""), &status(&tables)) else {
            panic!("a linearizable probe waits");
        };
        let response = probe.finish(None, 0);
        assert_eq!(response.headers.len(), 2, "{:?}", response.headers);
        assert_eq!(response.tally, Tally::Health { ok: true });
    }

    #[test]
    fn wrong_methods_and_paths() {
        let post = Request { method: b"POST", path: b"/version", query: b"" };
        let response = now(respond(Audience::Clients, &post, &status(&Tables::default())));
        assert_eq!(response.status, 405);
        assert!(response.headers.contains(&("allow", "GET".to_owned())));
        assert_eq!(now(respond(Audience::Clients, &get("/members", ""), &status(&Tables::default()))).status, 404);
        let member = Member { name: "n\"".to_owned(), peer_urls: vec!["http://a:1".to_owned()], client_urls: vec![] };
        let tables = Tables::with_members([(7, member)]);
        let body = now(respond(Audience::Peers, &get("/members", ""), &status(&tables))).body;
        assert_eq!(String::from_utf8_lossy(&body), "[{\"id\":7,\"peerURLs\":[\"http://a:1\"],\"name\":\"n\\\"\"}]\n");
    }

    #[test]
    fn dates_are_rfc_9110() {
        assert_eq!(http_date(1_700_000_000_000_000_000), "Tue, 14 Nov 2023 22:13:20 GMT");
    }
}
