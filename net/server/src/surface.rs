//! What an operator sees of a node beside its data: listeners, metrics, warnings, gates, automatic compaction.
//!
//! Owns: the options of these, and the records about slow work. Does not know: options' text forms, the turn.

use trilith_reactor::ListenerId;
use trilith_wire::api::methods::Method;

use crate::auto_compaction::Retention;
use crate::http::Audience;
use crate::journal::Field;
use crate::metrics::calls::SlowCall;
use crate::options::Options;
use crate::options::gates::Gates;

/// Choices that no data depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surface {
    /// Whom each listener is for, in the order of their numbers; further ones are the peers'.
    pub listeners: Vec<Audience>,
    /// `--metrics=extensive`.
    pub is_extensive: bool,
    /// `--warning-unary-request-duration`, nanoseconds.
    pub slow_call_after: u64,
    /// `--warning-apply-duration`, nanoseconds.
    pub slow_apply_after: u64,
    /// `--feature-gates`.
    pub gates: Gates,
    /// `--auto-compaction-retention`.
    pub auto_compaction: Retention,
}

impl Default for Surface {
    /// One listener for clients, etcd's defaults otherwise.
    fn default() -> Self {
        Self {
            listeners: vec![Audience::Clients],
            is_extensive: false,
            slow_call_after: 300_000_000,
            slow_apply_after: 100_000_000,
            gates: Gates::default(),
            auto_compaction: Retention::All,
        }
    }
}

impl Surface {
    /// The operator's choices. Listeners are numbered: clients, their HTTP, metrics, peers.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let has_http = !options.listen_client_http_urls.is_empty();
        let clients = if has_http { Audience::GrpcClients } else { Audience::Clients };
        let mut listeners = vec![clients; options.listen_client_urls.len()];
        listeners.extend(options.listen_client_http_urls.iter().map(|_| Audience::HttpClients));
        listeners.extend(options.listen_metrics_urls.iter().map(|_| Audience::Metrics));
        Self {
            listeners,
            is_extensive: options.metrics_extensive,
            slow_call_after: options.warning_unary_request_duration,
            slow_apply_after: options.warning_apply_duration,
            gates: options.feature_gates,
            auto_compaction: options.auto_compaction,
        }
    }

    /// Whom a listener is for.
    #[must_use]
    pub fn audience(&self, listener: ListenerId) -> Audience {
        self.listeners.get(listener.0 as usize).copied().unwrap_or(Audience::Peers)
    }
}

/// Calls `log` with the fields of etcd's record `request stats`. What was answered is known by its length alone.
pub fn describe_slow_call(slow: &SlowCall, wall_now: u64, log: impl FnOnce(&[(&str, Field<'_>)])) {
    let number = |value: u64| Field::Number(i64::try_from(value).unwrap_or(i64::MAX));
    let call = &slow.call;
    let start = crate::journal::timestamp(wall_now.saturating_sub(slow.duration));
    let spent = duration_text(slow.duration);
    let content = content(call.method, &call.beginning, call.request_bytes);
    log(&[
        ("start time", Field::Text(&start)),
        ("time spent", Field::Text(&spent)),
        ("response type", Field::Text(call.method.path())),
        ("request count", Field::Number(-1)),
        ("request size", number(call.request_bytes)),
        ("response count", Field::Number(-1)),
        ("response size", number(call.response_bytes)),
        ("request content", Field::Text(&content)),
    ]);
}

/// The key of a request, if its beginning has it: field 1 of the calls of KV that name one. Values are never shown.
fn content(method: Method, beginning: &[u8], request_bytes: u64) -> String {
    let names_a_key =
        matches!(method, Method::Put | Method::Range | Method::DeleteRange) && beginning.first() == Some(&0x0a);
    let len = usize::from(beginning.get(1).copied().unwrap_or(0));
    // Longer ones have a length of two bytes and more than is kept.
    if !names_a_key || len >= 0x80 || len as u64 > request_bytes {
        return String::new();
    }
    let key = beginning.get(2..).unwrap_or_default();
    let shown = &key[..key.len().min(len)];
    let cut = if shown.len() < len { "..." } else { "" };
    format!("key:\"{}{cut}\"", shown.escape_ascii())
}

/// A duration as Go prints it: `1.5s`, `300ms`, `1m2.5s`.
#[must_use]
pub fn duration_text(nanoseconds: u64) -> String {
    let (unit, scale) = match nanoseconds {
        0 => return "0s".to_owned(),
        1..1_000 => ("ns", 1),
        1_000..1_000_000 => ("\u{b5}s", 1_000),
        1_000_000..1_000_000_000 => ("ms", 1_000_000),
        _ => ("s", 1_000_000_000),
    };
    let (minutes, rest) =
        if unit == "s" { (nanoseconds / 60_000_000_000, nanoseconds % 60_000_000_000) } else { (0, nanoseconds) };
    let fraction = format!("{:09}", rest % scale * (1_000_000_000 / scale));
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{point}{fraction}{unit}", rest / scale);
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::calls::EndedCall;

    #[test]
    fn durations_as_go_prints_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5\u{b5}s"),
            (300_000_000, "300ms"),
            (1_000_000_000, "1s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration_text(nanoseconds), text);
        }
    }

    #[test]
    fn a_slow_call_names_its_key_and_not_its_value() {
        let mut beginning = [0; EndedCall::BEGINNING_BYTES];
        beginning[..9].copy_from_slice(b"\x0a\x03k\"y\x12\x02ab");
        let of = |method, beginning, request_bytes| {
            let call = EndedCall { method, started: 0, code: 0, request_bytes, response_bytes: 7, beginning };
            let mut shown = String::new();
            describe_slow_call(&SlowCall { call, duration: 1_500_000_000 }, 2_000_000_000, |fields| {
                shown = fields.iter().map(|(name, value)| format!("{name}={value:?};")).collect();
            });
            shown
        };
        let text = of(Method::Put, beginning, 9);
        assert!(text.contains(r#"start time=Text("1970-01-01T00:00:00.500000Z");time spent=Text("1.5s")"#), "{text}");
        assert!(text.contains(r#"request content=Text("key:\"k\\\"y\"")"#), "{text}");
        assert!(of(Method::Txn, beginning, 9).contains(r#"request content=Text("")"#));
        let mut long = [b'k'; EndedCall::BEGINNING_BYTES];
        (long[0], long[1]) = (0x0a, 100);
        assert!(of(Method::Range, long, 102).contains("k...\\\""), "a key that was cut says so");
        assert!(of(Method::Range, long, 50).contains(r#"request content=Text("")"#), "a length that cannot be");
    }

    #[test]
    fn listeners_beyond_the_list_are_the_peers() {
        let surface = Surface::default();
        assert_eq!([0, 1].map(|number| surface.audience(ListenerId(number))), [Audience::Clients, Audience::Peers]);
    }
}
