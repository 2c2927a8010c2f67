//! A small gRPC client over an HTTP/2 implementation that is not ours, for tests that need more control than a client
//! program gives: exact bytes, exact errors, many connections, acknowledgements noted one by one.
//!
//! I1  Every wait has a limit; a server that never answers is an error, not a hang.
//! I2  A reply counts as success only with HTTP status 200, `grpc-status: 0` and a well-framed message.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::messages::{self, KeyValue};

/// Longest wait for one answer unless a test says otherwise.
pub const CALL_SECONDS_MAX: u64 = 60;

/// One HTTP/2 connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    authority: String,
}

/// Everything a server said to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub http_status: u16,
    /// The content-type header.
    pub content_type: String,
    /// The grpc-status header or trailer; empty if there was none.
    pub grpc_status: String,
    /// The grpc-message header or trailer.
    pub grpc_message: String,
    /// The body as received.
    pub body: Vec<u8>,
}

impl Reply {
    /// The single message of a successful unary call.
    pub fn message(&self) -> Result<&[u8]> {
        if self.http_status != 200 || self.grpc_status != "0" {
            bail!("HTTP {} grpc-status {} {}", self.http_status, self.grpc_status, self.grpc_message);
        }
        let Some((prefix, message)) = self.body.split_at_checked(5) else { bail!("the body is shorter than a prefix") };
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        if prefix[0] != 0 || length as usize != message.len() {
            bail!("the prefix says {length} bytes, flag {}; the body has {}", prefix[0], message.len());
        }
        Ok(message)
    }
}

impl Connection {
    /// Connects; the connection is driven by a task of the current runtime.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(16 << 20)
            .initial_connection_window_size(64 << 20)
            .handshake(socket)
            .await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, authority: address.to_string() })
    }

    /// A unary call with the usual headers.
    pub async fn call(&self, path: &str, message: &[u8]) -> Result<Reply> {
        self.send(path, &[("content-type", "application/grpc"), ("te", "trailers")], frame(message)).await
    }

    /// A POST with exactly these headers and this body.
    pub async fn send(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Reply> {
        let mut request = Request::post(format!("http://{}{path}", self.authority)).version(http::Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let limit = Duration::from_secs(CALL_SECONDS_MAX);
        tokio::time::timeout(limit, self.exchange(request.body(())?, body)).await.context("no answer in time")?
    }

    async fn exchange(&self, request: Request<()>, mut body: Bytes) -> Result<Reply> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_empty())?;
        let upload = async {
            while !body.is_empty() {
                stream.reserve_capacity(body.len());
                match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
                    Some(Ok(capacity)) => {
                        let piece = body.split_to(capacity.min(body.len()));
                        let end = body.is_empty();
                        stream.send_data(piece, end)?;
                    }
                    // The server answered before it read everything, which is its right.
                    Some(Err(_)) | None => return Ok::<(), anyhow::Error>(()),
                }
            }
            Ok(())
        };
        let mut upload = std::pin::pin!(upload);
        let mut response = std::pin::pin!(response);
        let mut uploaded = false;
        let response = std::future::poll_fn(|context| {
            if !uploaded && upload.as_mut().poll(context).is_ready() {
                uploaded = true;
            }
            response.as_mut().poll(context)
        })
        .await?;
        let (head, mut incoming) = response.into_parts();
        let mut received = BytesMut::new();
        while let Some(piece) = incoming.data().await {
            let piece = piece?;
            incoming.flow_control().release_capacity(piece.len())?;
            received.extend_from_slice(&piece);
        }
        let trailers = incoming.trailers().await?.unwrap_or_default();
        Ok(reply(head.status.as_u16(), &head.headers, &trailers, &received))
    }

    /// Puts and returns the revision of the answer.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<u64> {
        let reply = self.call("/etcdserverpb.KV/Put", &messages::put(key, value)).await?;
        messages::header_revision(reply.message()?)
    }

    /// Linearizable range over [key, end).
    pub async fn range(&self, key: &[u8], end: &[u8]) -> Result<Vec<KeyValue>> {
        let reply = self.call("/etcdserverpb.KV/Range", &messages::range(key, end)).await?;
        messages::range_response(reply.message()?)
    }
}

/// The gRPC framing of one uncompressed message.
pub fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("test messages are far below 4 GiB");
    let mut framed = Vec::with_capacity(message.len() + 5);
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

fn reply(http_status: u16, headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> Reply {
    let text = |name: &str| {
        let value = trailers.get(name).or_else(|| headers.get(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    Reply {
        http_status,
        content_type: text("content-type"),
        grpc_status: text("grpc-status"),
        grpc_message: percent_decoded(&text("grpc-message")),
        body: body.to_vec(),
    }
}

/// Undoes the percent-encoding of grpc-message.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) if byte == b'%' => {
                bytes.push(code);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A runtime on the calling thread.
pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_errors_are_decoded() {
        assert_eq!(percent_decoded("etcdserver: 100%25 %zz%"), "etcdserver: 100% %zz%");
    }

    #[test]
    fn only_a_complete_and_successful_reply_yields_a_message() {
        let good = Reply {
            http_status: 200,
            content_type: "application/grpc".to_owned(),
            grpc_status: "0".to_owned(),
            grpc_message: String::new(),
            body: frame(b"abc").to_vec(),
        };
        assert_eq!(good.message().unwrap(), b"abc");
        assert!(Reply { grpc_status: "3".to_owned(), ..good.clone() }.message().is_err());
        assert!(Reply { grpc_status: String::new(), ..good.clone() }.message().is_err());
        assert!(Reply { body: frame(b"abc")[..7].to_vec(), ..good.clone() }.message().is_err());
        assert!(Reply { body: Vec::new(), ..good }.message().is_err());
    }
}
