//! Tests of option parsing, against etcd's messages.

use super::*;

fn arguments(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn serve(list: &[&str]) -> Result<Box<Options>, OptionsError> {
    serve_with(list, &[])
}

fn serve_with(list: &[&str], environment: &[(&str, &str)]) -> Result<Box<Options>, OptionsError> {
    let environment: Vec<(String, String)> =
        environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    match parse(&arguments(list), &environment)? {
        Invocation::Serve(options) => Ok(options),
        other => panic!("expected a server, got {other:?}"),
    }
}

#[test]
fn table_is_consistent() {
    for (position, flag) in FLAGS.iter().enumerate() {
        assert!(FLAGS[..position].iter().all(|earlier| earlier.name != flag.name), "{} is listed twice", flag.name);
        assert_eq!(value::check(flag.kind, flag.default), Ok(()), "default of {}", flag.name);
        assert!(!LEGACY_IGNORED.contains(&flag.name), "{} is both known and ignored", flag.name);
    }
}

#[test]
fn defaults_are_etcds() {
    let options = serve(&[]).expect("defaults");
    assert_eq!(options.data_dir, "default.trilith");
    assert_eq!(options.listen_client_urls[0].port, 2379);
    assert_eq!(options.listen_peer_urls[0].port, 2380);
    assert_eq!(options.quota_backend_bytes, 2 << 30);
    assert_eq!(options.max_request_bytes, 1_572_864);
}

#[test]
fn go_flag_syntax() {
    let options = serve(&["-name", "n1", "--max-txn-ops=7", "--pre-vote", "--socket-reuse-port=true"]).expect("legal");
    assert_eq!((options.name.as_str(), options.max_txn_ops, options.socket_reuse_port), ("n1", 7, true));
    assert_eq!(options.data_dir, "n1.trilith");
    let error = |list: &[&str]| serve(list).expect_err("illegal");
    assert_eq!(error(&["--bogus"]), OptionsError::Usage("flag provided but not defined: -bogus".to_owned()));
    assert_eq!(error(&["--name"]), OptionsError::Usage("flag needs an argument: -name".to_owned()));
    assert_eq!(error(&["extra"]), OptionsError::Invalid("\"extra\" is not a valid flag".to_owned()));
    assert_eq!(
        error(&["--snapshot-count", "abc"]),
        OptionsError::Usage("invalid value \"abc\" for flag -snapshot-count: parse error".to_owned())
    );
    assert_eq!(
        error(&["--listen-client-urls", "nonsense"]),
        OptionsError::Usage(
            "invalid value \"nonsense\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: \
             nonsense"
                .to_owned()
        )
    );
    assert!(matches!(parse(&arguments(&["--version"]), &[]), Ok(Invocation::Version)));
    assert!(matches!(parse(&arguments(&["-h"]), &[]), Ok(Invocation::Help)));
}

#[test]
fn environment_ranks_below_flags_and_conflicts_are_fatal() {
    let options = serve_with(&[], &[("ETCD_NAME", "e1"), ("ETCD_FOO", "1"), ("OTHER", "x")]).expect("legal");
    assert_eq!(options.name, "e1");
    assert!(options.notes.contains(&Note::EnvironmentUnknown("ETCD_FOO=1".to_owned())));
    let error = serve_with(&["--name", "n1"], &[("ETCD_NAME", "n1")]).expect_err("shadowed");
    assert_eq!(error, OptionsError::Shadowed("ETCD_NAME".to_owned()));
    assert!(serve_with(&["--name", "n1"], &[("ETCD_NAME", "")]).is_ok(), "an empty value counts as unset");
}

#[test]
fn rules_between_options() {
    let error = |list: &[&str]| match serve(list).expect_err("illegal") {
        OptionsError::Invalid(text) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error(&["--listen-client-urls", "http://127.0.0.1:1"]),
        "--advertise-client-urls is required when --listen-client-urls is set explicitly"
    );
    assert_eq!(
        error(&["--listen-client-urls", "http://foo.bar:123", "--advertise-client-urls", "http://foo.bar:123"]),
        "expected IP in URL for binding (http://foo.bar:123)"
    );
    assert!(error(&["--heartbeat-interval", "300"]).starts_with("--election-timeout[1000ms]"));
    assert!(error(&["--cert-file", "x.pem"]).contains("no support for TLS"));
    assert!(error(&["--initial-cluster", "a=http://x:1"]).starts_with("couldn't find local name \"default\""));
    let two = "default=http://localhost:2380,b=http://127.0.0.1:9";
    assert!(error(&["--initial-cluster", two]).contains("clusters of several members"));
    assert!(error(&["--initial-cluster", "default=http://x:1"]).contains("missing from --initial-advertise-peer-urls"));
    assert!(serve(&["--initial-cluster", "n=http://localhost:2380", "--name", "n"]).is_ok());
}

#[test]
fn a_refused_flag_may_repeat_its_default() {
    assert!(serve(&["--auth-token", "simple", "--client-cert-auth=false"]).is_ok());
}
