//! Tests of option parsing, against etcd's messages.

use super::*;
use crate::NodeOptions;

fn arguments(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn serve(list: &[&str]) -> Result<Box<Options>, OptionsError> {
    serve_with(list, &[])
}

fn serve_with(list: &[&str], environment: &[(&str, &str)]) -> Result<Box<Options>, OptionsError> {
    let environment: Vec<(String, String)> =
        environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    match parse(&arguments(list), &environment, |_| Err(io::ErrorKind::NotFound.into()))? {
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
    let asked = |flag| parse(&arguments(&[flag]), &[], |_| unreachable!("no file is named"));
    assert!(matches!(asked("--version"), Ok(Invocation::Version)));
    assert!(matches!(asked("-h"), Ok(Invocation::Help)));
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
fn a_malformed_variable_is_told_as_etcd_tells_it() {
    let error = serve_with(&[], &[("ETCD_HEARTBEAT_INTERVAL", "abc")]).expect_err("illegal");
    let text = "invalid value \"abc\" for ETCD_HEARTBEAT_INTERVAL: parse error";
    assert_eq!(error, OptionsError::Invalid(text.to_owned()));
}

#[test]
fn the_times_of_raft_have_etcds_limits() {
    let of = |heartbeat: &str, election: &str| {
        serve(&["--heartbeat-interval", heartbeat, "--election-timeout", election]).map(|o| o.election_timeout_ms)
    };
    assert_eq!(of("10000", "50000"), Ok(50_000));
    for (heartbeat, election, text) in [
        ("0", "1000", "--heartbeat-interval must be >0 (set to 0ms)"),
        ("100", "0", "--election-timeout must be >0 (set to 0ms)"),
        ("100", "50001", "--election-timeout[50001ms] is too long, and should be set less than 50000ms"),
    ] {
        assert_eq!(of(heartbeat, election), Err(OptionsError::Invalid(text.to_owned())));
    }
}

/// What etcd ends with code 2 and its usage is told from what it ends with code 1.
#[test]
fn errors_have_etcds_exit_codes() {
    for (argument, text) in [
        ("--logger=capnslog", "--logger=capnslog is removed in v3.5"),
        ("--logger=", "unknown logger option \"\""),
        ("--log-format=text", "unknown log format: text, supported values json, console"),
        ("-", "\"-\" is not a valid flag"),
        ("--listen-peer-urls=http://127.0.0.1:99999", "listen tcp: address 99999: invalid port"),
        (
            "--discovery-fallback=proxy",
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
        ),
        ("--tls-min-version=x", "--tls-min-version=x is refused: this version of trilithd has no support for TLS"),
    ] {
        assert_eq!(invalid(&[argument]), text);
    }
    for (argument, text) in [
        ("--version=x", "invalid boolean value \"x\" for -version: parse error"),
        ("--pre-vote=maybe", "invalid boolean value \"maybe\" for -pre-vote: parse error"),
        ("--discovery-fallback=x", "invalid value \"x\" for flag -discovery-fallback: "),
    ] {
        match serve(&[argument]).expect_err("illegal") {
            OptionsError::Usage(said) => assert!(said.starts_with(text), "{said}"),
            other => panic!("{argument}: {other:?}"),
        }
    }
}

#[test]
fn an_empty_or_an_odd_value_counts_as_in_etcd() {
    let options = serve(&["--log-level=", "--log-format=", "--auto-compaction-retention="]).expect("legal");
    assert_eq!((options.log_level, options.log_format), (Level::Info, Format::Json));
    assert_eq!(options.auto_compaction, Retention::All);
    assert_eq!(serve(&["--max-concurrent-streams=0"]).expect("legal").max_concurrent_streams, u32::MAX);
    assert!(serve(&["--backend-bbolt-freelist-type=x", "--advertise-client-urls=http://h:99999"]).is_ok());
    // What is ignored takes no argument.
    assert_eq!(serve(&["--snapshot", "--name=n"]).expect("legal").name, "n");
    assert_eq!(invalid(&["--force", "x"]), "\"x\" is not a valid flag");
}

#[test]
fn a_listener_may_be_a_path_and_is_one_however_often_it_is_named() {
    let urls = "unix://localhost:2379,http://127.0.0.1:1,unix:///run/x/it.sock,http://127.0.0.1:1/";
    let options =
        serve(&["--listen-client-urls", urls, "--advertise-client-urls", "unix:///run/x/it.sock"]).expect("legal");
    let addresses: Vec<String> = options.listen_client_urls.iter().map(Url::address).collect();
    assert_eq!(addresses, ["localhost:2379", "127.0.0.1:1", "/run/x/it.sock"]);
    assert_eq!(options.listen_client_urls[2].to_string(), "unix:///run/x/it.sock");
    let refused = |url| invalid(&["--listen-client-urls", url, "--advertise-client-urls", "http://127.0.0.1:1"]);
    assert!(refused("unix://").ends_with("the path of the socket is missing"));
    assert!(refused("unixs://a:1").ends_with("no support for TLS"));
    assert!(refused("https://[::1]:1").starts_with("cannot listen on https://[::1]:1: "));
}

#[test]
fn an_empty_data_directory_is_the_default() {
    assert_eq!(serve(&["--name=n1", "--data-dir="]).expect("legal").data_dir, "n1.trilith");
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
}

/// A member that exists does not care.
#[test]
fn what_is_wrong_with_the_initial_cluster_waits_for_the_data_directory() {
    let fault = |list: &[&str]| serve(list).unwrap().initial.cluster_fault;
    assert!(fault(&["--initial-cluster", "a=http://x:1"]).unwrap().starts_with("couldn't find local name \"default\""));
    let two = "default=http://localhost:2380,b=http://127.0.0.1:9";
    assert!(fault(&["--initial-cluster", two]).unwrap().contains("clusters of several members"));
    let elsewhere = fault(&["--initial-cluster", "default=http://x:1"]).unwrap();
    assert!(elsewhere.contains("missing from --initial-advertise-peer-urls"));
    assert_eq!(fault(&["--initial-cluster", "n=http://localhost:2380", "--name", "n"]), None);
}

#[test]
fn a_default_is_told_from_what_was_given() {
    let initial = |list: &[&str]| serve(list).unwrap().initial;
    let none = initial(&[]);
    assert!(
        !none.peer_urls_are_given && !none.token_is_given && none.cluster.is_none() && none.token == "etcd-cluster"
    );
    let same =
        initial(&["--initial-cluster-token=etcd-cluster", "--initial-advertise-peer-urls=http://localhost:2380"]);
    assert!(same.token_is_given && same.peer_urls_are_given);
}

#[test]
fn a_refused_flag_may_repeat_its_default() {
    assert!(serve(&["--auth-token", "simple", "--client-cert-auth=false"]).is_ok());
}

fn invalid(list: &[&str]) -> String {
    match serve(list).expect_err("illegal") {
        OptionsError::Invalid(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn automatic_compaction_is_read_as_etcd_reads_it() {
    let of = |mode: &str, retention: &str| {
        serve(&["--auto-compaction-mode", mode, "--auto-compaction-retention", retention]).map(|o| o.auto_compaction)
    };
    const HOUR: u64 = 3_600_000_000_000;
    assert_eq!(serve(&[]).expect("defaults").auto_compaction, Retention::All);
    assert_eq!(of("periodic", "2"), Ok(Retention::Period(2 * HOUR)), "a bare number is hours");
    assert_eq!(of("periodic", "90m"), Ok(Retention::Period(HOUR / 2 * 3)));
    assert_eq!(of("revision", "1000"), Ok(Retention::Revisions(1_000)));
    assert_eq!(of("revision", "10h"), Ok(Retention::Revisions(10 * HOUR)), "odd, but etcd's");
    assert_eq!(of("revision", "0"), Ok(Retention::All));
    let error = |mode, retention| of(mode, retention).expect_err("illegal");
    assert_eq!(error("foo", "1"), OptionsError::Invalid("unknown auto-compaction-mode \"foo\"".to_owned()));
    for (text, what) in [("abc", "invalid duration"), ("-5", "missing unit in duration"), ("1.5", "missing unit in")] {
        let OptionsError::Invalid(said) = error("periodic", text) else { panic!("logged, not printed") };
        assert!(said.starts_with(&format!("error parsing CompactionRetention: time: {what}")), "{said}");
    }
}

#[test]
fn listeners_for_http_and_metrics() {
    let options =
        serve(&["--listen-metrics-urls", "http://127.0.0.1:1", "--listen-client-http-urls", "http://[::1]:2"])
            .expect("legal");
    assert_eq!((options.listen_metrics_urls[0].port, options.listen_client_http_urls[0].port), (1, 2));
    let same = invalid(&["--listen-client-http-urls", "http://localhost:2379"]);
    let both =
        "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://localhost:2379";
    assert_eq!(same, both);
    assert!(invalid(&["--listen-metrics-urls", "https://127.0.0.1:1"]).contains("no support for TLS"));
    assert!(invalid(&["--listen-metrics-urls", "http://a.b:1"]).starts_with("expected IP in URL for binding"));
    assert!(matches!(serve(&["--listen-metrics-urls", "foo"]), Err(OptionsError::Usage(_))));
}

#[test]
fn log_outputs_and_rotation() {
    let options = serve(&["--log-outputs", "stderr,stdout,/tmp/x"]).expect("legal");
    assert_eq!((options.log_outputs.len(), options.log_rotation), (3, None));
    assert_eq!(invalid(&["--log-outputs", "stderr,default"]), "multi logoutput for \"default\" is not supported yet");
    assert!(invalid(&["--log-outputs", "systemd/journal"]).contains("say stderr"));
    assert!(invalid(&["--log-outputs="]).contains("empty path"));
    let single = "--log-outputs requires a single file path when --log-rotate-config-json is defined";
    assert_eq!(invalid(&["--enable-log-rotation"]), single);
    assert_eq!(invalid(&["--enable-log-rotation", "--log-outputs", "a,b"]), single);
    let rotated = serve(&["--enable-log-rotation", "--log-outputs", "a"]).expect("legal");
    assert_eq!(rotated.log_rotation.map(|rotation| rotation.bytes_max), Some(100 << 20));
    let malformed = invalid(&["--enable-log-rotation", "--log-outputs", "a", "--log-rotation-config-json", "{"]);
    assert!(malformed.starts_with("improperly formatted log rotation config: "));
}

#[test]
fn intervals_have_etcds_bounds() {
    let interval = |text| {
        serve(&["--watch-progress-notify-interval", text]).expect("legal").watch_progress_notify_interval / 1_000_000
    };
    assert_eq!(["5s", "50ms", "0s"].map(interval), [5_000, 100, 600_000]);
    assert_eq!(invalid(&["--compact-hash-check-time", "0s"]), "--compact-hash-check-time must be >0 (set to 0s)");
}

#[test]
fn names_of_earlier_releases_mean_their_successors() {
    let options = serve(&[
        "--experimental-initial-corrupt-check=true",
        "--experimental-watch-progress-notify-interval=5s",
        "--experimental-enable-lease-checkpoint",
        "--enable-v2=false",
        "--proxy",
        "off",
    ])
    .expect("what cluster tools still write");
    assert_eq!(options.watch_progress_notify_interval, 5_000_000_000);
    assert!(options.feature_gates.is_on("InitialCorruptCheck") && options.feature_gates.is_on("LeaseCheckpoint"));
    let renamed =
        |old: &str| options.notes.iter().any(|note| matches!(note, Note::Renamed { old: o, .. } if *o == old));
    assert!(renamed("experimental-initial-corrupt-check") && renamed("enable-v2"));
    assert!(invalid(&["--enable-v2"]).contains("no support for the v2 API"));
    assert!(invalid(&["--proxy", "on"]).contains("--proxy=on is refused"));
    assert!(invalid(&["--debug"]).contains("--log-level=debug"));
    let both = ["--experimental-initial-corrupt-check", "--feature-gates=InitialCorruptCheck=true"];
    assert!(invalid(&both).contains("cannot specify both"));
    let both = ["--max-learners=1", "--experimental-max-learners=1"];
    assert!(invalid(&both).contains("cannot specify both"));
    let by_environment = serve_with(&[], &[("ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK", "true")]).expect("legal");
    assert!(by_environment.feature_gates.is_on("InitialCorruptCheck"));
}

#[test]
fn gates_are_checked_where_etcd_checks_them() {
    let usage = serve(&["--feature-gates=Foo=true"]).expect_err("unknown");
    let text = "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo";
    assert_eq!(usage, OptionsError::Usage(text.to_owned()));
    assert!(invalid(&["--feature-gates=LeaseCheckpointPersist=true"]).contains("requires enabling feature gate"));
    let options = serve(&["--feature-gates=InitialCorruptCheck=true"]).expect("legal");
    assert!(options.notes.iter().any(|note| matches!(note, Note::Inert { flag: "InitialCorruptCheck", .. })));
}

#[test]
fn a_configuration_file_stands_alone() {
    let environment = [("ETCD_NAME".to_owned(), "e".to_owned()), ("ETCD_CONFIG_FILE".to_owned(), "c.yaml".to_owned())];
    let read = |path: &str| {
        assert_eq!(path, "c.yaml");
        Ok("name: f\nlisten-client-urls: http://127.0.0.1:9\nbogus: 1\n".to_owned())
    };
    let Ok(Invocation::Serve(options)) = parse(&arguments(&["--data-dir", "x"]), &environment, read) else {
        panic!("the file is legal")
    };
    assert_eq!(
        (options.name.as_str(), options.data_dir.as_str()),
        ("f", "f.trilith"),
        "flags and variables are ignored"
    );
    assert_eq!(options.listen_client_urls[0].port, 9, "no advertised URL is asked for");
    assert_eq!(options.notes, [Note::ConfigFile("c.yaml".to_owned()), Note::UnknownKey("bogus".to_owned())]);
    let unknown =
        parse(&arguments(&["--config-file", "c.yaml", "--bogus"]), &[], read).expect_err("checked all the same");
    assert!(matches!(unknown, OptionsError::Usage(_)));
    let missing = parse(&arguments(&["--config-file", "nope"]), &[], |_| Err(io::ErrorKind::NotFound.into()));
    assert_eq!(missing.expect_err("missing"), OptionsError::Invalid("open nope: no such file or directory".to_owned()));
    let refused = |text: &'static str| parse(&arguments(&["--config-file", "c"]), &[], |_| Ok(text.to_owned()));
    let error = refused("client-transport-security: {cert-file: x}\n").expect_err("absent");
    assert!(matches!(error, OptionsError::Invalid(text) if text.contains("no support for TLS")));
}

#[test]
fn cores_and_shards() {
    let cores = |text| serve(&[&format!("--cores={text}")]).map(|options| options.cores.map(|layout| layout.cpus));
    assert_eq!(cores("0").expect("legal"), None);
    assert_eq!(cores("4").expect("legal"), Some(vec![None; 4]));
    assert_eq!(cores("1,0").expect("legal"), Some(vec![Some(1), Some(0)]));
    let twice = OptionsError::Invalid("--cores=1,1 names processor 1 twice".to_owned());
    assert_eq!(cores("1,1").expect_err("illegal"), twice);
    let shards = |arguments: &[&str]| serve(arguments).map(|options| NodeOptions::new(&options).replica.shards.shards);
    assert_eq!(shards(&[]).expect("legal"), 1);
    assert_eq!(shards(&["--cores=7"]).expect("legal"), 2, "by the cores");
    assert_eq!(shards(&["--cores=7", "--shards=1"]).expect("legal"), 1);
    assert_eq!(shards(&["--shards=64"]).expect("legal"), 64, "on one core as well");
    assert!(shards(&["--shards=65"]).is_err() && shards(&["--shards=-1"]).is_err());
}

/// The lists of docs/compat.md, from the tables. Where the page differs, the failure prints what belongs there.
#[test]
fn the_compatibility_page_has_the_tables() {
    let page = include_str!("../../../../docs/compat.md");
    let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let of = |wanted: fn(&Support) -> Option<&'static str>| -> Vec<(&'static str, Vec<&'static str>)> {
        let mut rows: Vec<(&str, Vec<&str>)> = Vec::new();
        for flag in FLAGS {
            let Some(why) = wanted(&flag.support) else { continue };
            match rows.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(flag.name),
                None => rows.push((why, vec![flag.name])),
            }
        }
        rows
    };
    let table = |head: &str, rows: Vec<(&str, Vec<&str>)>| {
        let lines = rows.iter().map(|(why, names)| format!("| {} | {why} |\n", code(names))).collect::<String>();
        format!("| {head} |\n|---|---|\n{lines}")
    };
    let used = of(|support| matches!(support, Support::Used).then_some(""));
    let inert = of(|support| if let Support::Inert(why) = support { Some(why) } else { None });
    let absent = of(|support| if let Support::Absent(what) = support { Some(what) } else { None });
    let old: String = OLD_NAMES
        .iter()
        .map(|(name, successor)| match successor {
            Successor::Flag(new) => format!("| `{name}` | `{new}` |\n"),
            Successor::Gate(gate) => format!("| `{name}` | feature gate `{gate}` |\n"),
            Successor::Gone(_, what) => format!("| `{name}` | refused unless default: {what} |\n"),
        })
        .collect();
    let gates: String = gates::GATES
        .iter()
        .map(|gate| match gate.support {
            GateSupport::Used => format!("| `{}` | used |\n", gate.name),
            GateSupport::Inert(why) => format!("| `{}` | without effect: {why} |\n", gate.name),
            GateSupport::Absent => format!("| `{}` | refused when turned on |\n", gate.name),
        })
        .collect();
    for block in [
        format!("Used: {}.\n", code(&used[0].1)),
        table("accepted without effect | why", inert),
        table("refused unless default | what is absent", absent),
        format!("| name of an earlier release | stands for |\n|---|---|\n{old}"),
        format!("| feature gate | state |\n|---|---|\n{gates}"),
    ] {
        assert!(page.contains(&format!("\n{block}\n")), "docs/compat.md lacks:\n{block}");
    }
}
