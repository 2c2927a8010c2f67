//! `--config-file`: etcd's YAML (or JSON) form of the options.
//!
//! Owns: the keys and the types of their values; a file becomes the same texts that flags have. Does not know: where
//! the file is, the rules between options.
//!
//! Keys are the names of flags. Durations are whole nanoseconds, lists of URLs and gates are strings with commas, log
//! outputs and cipher suites are lists; TLS, sockets and discovery stand in sections of their own. As in etcd, a value
//! of another type is an error and an unknown key is not.

use yaml_rust2::{Yaml, YamlLoader};

use super::flags::{self, FLAGS, Flag, Kind};
use super::{Values, value};

/// Flags whose value is a list.
const LISTS: [&str; 2] = ["log-outputs", "cipher-suites"];
/// Flags that stand for nothing in a file.
const NOT_IN_FILES: [&str; 3] = ["config-file", "raft-read-timeout", "raft-write-timeout"];

/// Sections: their key, and the flags of their keys.
const SECTIONS: &[(&str, &[(&str, &str)])] = &[
    (
        "client-transport-security",
        &[
            ("cert-file", "cert-file"),
            ("key-file", "key-file"),
            ("client-cert-file", "client-cert-file"),
            ("client-key-file", "client-key-file"),
            ("client-cert-auth", "client-cert-auth"),
            ("trusted-ca-file", "trusted-ca-file"),
            ("auto-tls", "auto-tls"),
            ("allowed-hostname", "client-cert-allowed-hostname"),
        ],
    ),
    (
        "peer-transport-security",
        &[
            ("cert-file", "peer-cert-file"),
            ("key-file", "peer-key-file"),
            ("client-cert-file", "peer-client-cert-file"),
            ("client-key-file", "peer-client-key-file"),
            ("client-cert-auth", "peer-client-cert-auth"),
            ("trusted-ca-file", "peer-trusted-ca-file"),
            ("auto-tls", "peer-auto-tls"),
            ("allowed-cn", "peer-cert-allowed-cn"),
            ("allowed-hostname", "peer-cert-allowed-hostname"),
            ("skip-client-san-verification", "peer-skip-client-san-verification"),
        ],
    ),
    ("socket-options", &[("reuse-port", "socket-reuse-port"), ("reuse-address", "socket-reuse-address")]),
    ("discovery-config", &[("token", "discovery-token")]),
];

/// Reads a file's text into values; the keys that name nothing are the second half of the answer.
///
/// # Errors
/// What is wrong with the text, or with the value of which key.
pub(super) fn read(text: &str) -> Result<(Values, Vec<String>), String> {
    let documents =
        YamlLoader::load_from_str(text).map_err(|error| format!("error converting YAML to JSON: {error}"))?;
    let mut values = Values::new();
    let mut unknown = Vec::new();
    match documents.first() {
        None | Some(Yaml::Null) => {}
        Some(Yaml::Hash(entries)) => {
            for (key, value) in entries {
                let key = key.as_str().ok_or("error unmarshaling JSON: a key of the file is not a string")?;
                if !read_entry(key, value, &mut values, &mut unknown)? {
                    unknown.push(key.to_owned());
                }
            }
        }
        Some(other) => return Err(format!("error unmarshaling JSON: the file holds {}, not keys", kind_name(other))),
    }
    Ok((values, unknown))
}

/// Whether the key is known.
fn read_entry(key: &str, value: &Yaml, values: &mut Values, unknown: &mut Vec<String>) -> Result<bool, String> {
    if let Some((_, fields)) = SECTIONS.iter().find(|(section, _)| *section == key) {
        match value {
            Yaml::Null => {}
            Yaml::Hash(entries) => {
                for (name, value) in entries {
                    let name = name.as_str().unwrap_or("?");
                    let field = fields.iter().find(|(field, _)| *field == name);
                    match field.and_then(|(_, flag)| flags::find(flag)) {
                        Some(flag) => insert(flag, &format!("{key}.{name}"), value, values)?,
                        None => unknown.push(format!("{key}.{name}")),
                    }
                }
            }
            other => return Err(wrong_type(key, other, "keys")),
        }
        return Ok(true);
    }
    let flag = FLAGS.iter().find(|flag| flag.name == key && !NOT_IN_FILES.contains(&flag.name));
    if let Some(flag) = flag {
        insert(flag, key, value, values)?;
    }
    Ok(flag.is_some())
}

fn insert(flag: &'static Flag, key: &str, value: &Yaml, values: &mut Values) -> Result<(), String> {
    if matches!(value, Yaml::Null) {
        return Ok(());
    }
    let text = text_of(flag, key, value)?;
    value::check(flag.kind, &text).map_err(|reason| format!("invalid value {text:?} for {key}: {reason}"))?;
    values.insert(flag.name, text);
    Ok(())
}

/// A value as its flag would have it.
fn text_of(flag: &Flag, key: &str, value: &Yaml) -> Result<String, String> {
    if let Yaml::Array(items) = value {
        let is_list = LISTS.contains(&flag.name) || key.contains(".allowed-");
        let texts: Option<Vec<&str>> = items.iter().map(Yaml::as_str).collect();
        return texts
            .filter(|_| is_list)
            .map(|texts| texts.join(","))
            .ok_or_else(|| wrong_type(key, value, expected(flag)));
    }
    if LISTS.contains(&flag.name) {
        return Err(wrong_type(key, value, "a list of strings"));
    }
    match (flag.kind, value) {
        (Kind::Bool, Yaml::Boolean(truth)) => Ok(truth.to_string()),
        (Kind::Integer { .. }, Yaml::Integer(number)) => Ok(number.to_string()),
        (Kind::Duration, Yaml::Integer(nanoseconds)) if *nanoseconds >= 0 => Ok(format!("{nanoseconds}ns")),
        (Kind::Bool | Kind::Integer { .. } | Kind::Duration, _) => Err(wrong_type(key, value, expected(flag))),
        (_, Yaml::String(text)) => Ok(text.clone()),
        _ => Err(wrong_type(key, value, expected(flag))),
    }
}

fn expected(flag: &Flag) -> &'static str {
    match flag.kind {
        Kind::Bool => "true or false",
        Kind::Integer { .. } => "an integer",
        Kind::Duration => "a whole number of nanoseconds",
        _ => "a string",
    }
}

fn wrong_type(key: &str, value: &Yaml, expected: &str) -> String {
    format!("error unmarshaling JSON: {key} holds {}, where {expected} is expected", kind_name(value))
}

fn kind_name(value: &Yaml) -> &'static str {
    match value {
        Yaml::Real(_) | Yaml::Integer(_) => "a number",
        Yaml::String(_) => "a string",
        Yaml::Boolean(_) => "a boolean",
        Yaml::Array(_) => "a list",
        Yaml::Hash(_) => "keys",
        Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => "nothing of use",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read(text).expect_err(text)
    }

    #[test]
    fn values_become_the_texts_of_flags() {
        let text = "name: 'n1'\nlisten-client-urls: http://127.0.0.1:1,http://127.0.0.1:2\nheartbeat-interval: 50\n\
                    quota-backend-bytes: -1\nwatch-progress-notify-interval: 600000000000\npre-vote: false\n\
                    log-outputs: [stderr, /tmp/x]\nauto-compaction-retention: \"10m\"\nmax-txn-ops:\n\
                    socket-options:\n  reuse-port: true\n  bogus: 1\n\
                    peer-transport-security: {client-cert-auth: true, allowed-cn: [a, b]}\nbogus: [1]\n";
        let (values, unknown) = read(text).expect("legal");
        let of = |name: &str| values.get(name).map(String::as_str);
        assert_eq!(of("name"), Some("n1"));
        assert_eq!(of("listen-client-urls"), Some("http://127.0.0.1:1,http://127.0.0.1:2"));
        assert_eq!((of("heartbeat-interval"), of("quota-backend-bytes")), (Some("50"), Some("-1")));
        assert_eq!(of("watch-progress-notify-interval"), Some("600000000000ns"));
        assert_eq!((of("pre-vote"), of("log-outputs")), (Some("false"), Some("stderr,/tmp/x")));
        assert_eq!((of("auto-compaction-retention"), of("max-txn-ops")), (Some("10m"), None));
        assert_eq!((of("socket-reuse-port"), of("peer-client-cert-auth")), (Some("true"), Some("true")));
        assert_eq!(of("peer-cert-allowed-cn"), Some("a,b"));
        assert_eq!(unknown, ["socket-options.bogus", "bogus"]);
        assert_eq!(read("").expect("empty").0.len(), 0);
        assert_eq!(read("{\"name\": \"json\"}").expect("JSON").0["name"], "json");
    }

    #[test]
    fn what_etcd_refuses_is_refused() {
        for (text, key) in [
            ("name: [1,2]\n", "name holds a list"),
            ("name: 17\n", "name holds a number"),
            ("watch-progress-notify-interval: 10m\n", "a whole number of nanoseconds"),
            ("heartbeat-interval: \"100\"\n", "heartbeat-interval holds a string"),
            ("heartbeat-interval: 100.5\n", "heartbeat-interval holds a number, where an integer"),
            ("auto-compaction-retention: 10\n", "auto-compaction-retention holds a number"),
            ("log-outputs: stderr\n", "a list of strings"),
            ("socket-options: 3\n", "socket-options holds a number"),
            ("- name\n", "the file holds a list"),
        ] {
            let said = error(text);
            assert!(said.starts_with("error unmarshaling JSON: ") && said.contains(key), "{text}: {said}");
        }
        assert!(error("name: a\n  bad: : :\n").starts_with("error converting YAML to JSON: "));
        assert!(error("max-txn-ops: -1\n").contains("max-txn-ops"));
        assert!(error("listen-client-urls: nonsense\n").contains("URL scheme must be"));
        assert!(error("feature-gates: Foo=true\n").contains("unrecognized feature gate: Foo"));
    }
}
