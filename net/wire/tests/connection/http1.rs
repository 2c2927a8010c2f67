//! HTTP/1.1 on the same port.

use trilith_wire::connection::ConnectionLimits;

use crate::harness::{Owner, route};

fn owner() -> Owner {
    Owner::new(&ConnectionLimits::new(route))
}

fn exchange(input: &str) -> (String, Owner) {
    let mut owner = owner();
    let output = owner.turn(input.as_bytes());
    (String::from_utf8(output).unwrap(), owner)
}

#[test]
fn a_request_and_its_answer() {
    let (output, owner) = exchange("GET /health?x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(owner.log, ["1 GET /health "]);
    assert_eq!(output, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n");
    assert!(!owner.connection.is_finished());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let post = "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let chunked = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n";
    let close = "GET /g HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n";
    let (output, mut owner) = exchange(&[post, chunked, close].concat());
    assert_eq!(owner.log, ["1 POST /p abc", "2 POST /c de", "3 GET /g "]);
    assert_eq!(output.matches("HTTP/1.1 200 OK").count(), 3);
    assert!(output.contains("Connection: close") && owner.connection.is_finished());
    owner.connection.release(&mut owner.budget);
    assert_eq!(owner.budget.used_bytes(), 0);
}

#[test]
fn the_next_request_waits_for_the_answer() {
    let mut owner = owner();
    owner.answers = false;
    owner.turn(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(owner.log.len(), 1);
    let first = owner.streams[0];
    owner.connection.send_http(first, 404, &[("x-etcd-cluster-id", "1")], b"no\n");
    let output = String::from_utf8(owner.drain()).unwrap();
    assert_eq!(output, "HTTP/1.1 404 Not Found\r\nX-Etcd-Cluster-Id: 1\r\nContent-Length: 3\r\n\r\nno\n");
    assert_eq!(owner.log.len(), 2);
    owner.connection.send_http(first, 200, &[], b"stale");
    assert!(owner.drain().is_empty(), "an answer to an answered request has no effect");
}

#[test]
fn chunks_out() {
    let mut owner = owner();
    owner.answers = false;
    owner.turn(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
    let stream = owner.streams[0];
    owner.connection.start_http(stream, 200, &[]);
    owner.connection.send_http_body(stream, b"hello world, hello");
    owner.connection.send_http_body(stream, b"");
    owner.connection.finish_http(stream);
    let output = String::from_utf8(owner.drain()).unwrap();
    let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\nhello world, hello\r\n0\r\n\r\n";
    assert_eq!(output, expected);
}

#[test]
fn head_and_continue() {
    let (output, _) = exchange("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(output.ends_with("Content-Length: 0\r\n\r\n"), "{output}");
    let (output, owner) = exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!((output.as_str(), owner.log.len()), ("HTTP/1.1 100 Continue\r\n\r\n", 0));
}

#[test]
fn a_peer_that_begins_unlike_http_is_not_waited_for() {
    for (input, ends) in
        [("\x16\x03\x01\x02\x00", true), ("\x16", true), ("G", false), ("\r", false), ("PRI * HT", false)]
    {
        let (output, owner) = exchange(input);
        assert_eq!((output.as_str(), owner.connection.is_finished()), ("", ends), "{input:?}");
    }
}

#[test]
fn errors_close_with_gos_words() {
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request: missing required Host header"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505 HTTP Version Not Supported: unsupported protocol version"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", "413 Request Entity Too Large"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400 Bad Request"),
    ];
    for (input, expected) in cases {
        let (output, owner) = exchange(input);
        assert!(output.starts_with(&format!("HTTP/1.1 {}", &expected[..3])), "{output}");
        assert!(output.ends_with(&format!("\r\n\r\n{expected}")), "{output}");
        assert!(owner.connection.is_finished());
    }
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(70_000));
    assert!(exchange(&long).0.contains("431 Request Header Fields Too Large"));
}

#[test]
fn what_is_not_http_gets_no_answer() {
    for input in ["INVALID CONNECTION PREFACE\r\n\r\n", "\u{16}\u{3}\u{1}\n", "PRI * HTTP/2.0\r\n\r\nXX"] {
        let (output, owner) = exchange(input);
        assert!(owner.connection.is_finished(), "{input:?}");
        assert!(output.is_empty() || output.starts_with("HTTP/1.1 505"), "{output}");
    }
}

#[test]
fn deadlines_and_stopping() {
    let limits = ConnectionLimits::new(route);
    let mut slow = owner();
    slow.turn(b"GET / HT");
    slow.connection.handle_timer(limits.preface_timeout);
    assert!(slow.connection.is_finished());

    let (_, mut idle) = exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.connection.deadline(), Some(limits.http1_idle_timeout));
    idle.connection.handle_timer(limits.http1_idle_timeout);
    assert!(idle.connection.is_finished());

    let mut busy = owner();
    busy.answers = false;
    busy.turn(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    busy.connection.start_drain(0);
    assert!(!busy.connection.is_finished());
    busy.connection.send_http(busy.streams[0], 200, &[], b"");
    assert!(String::from_utf8(busy.drain()).unwrap().contains("Connection: close"));
    assert!(busy.connection.is_finished());
}
