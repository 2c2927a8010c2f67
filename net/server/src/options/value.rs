//! The text forms of option values: Go's booleans and durations, bounded integers, URLs.
//!
//! Owns: parsing of single values, with messages that say what was expected. Does not know: flags.

use std::fmt;

use super::flags::Kind;

/// Checks that `text` has the form of `kind`; the error is the words after Go's `invalid value ... :`.
///
/// # Errors
/// `parse error` for the wrong form, `value out of range` beyond the bounds, for a URL what is wrong with it.
pub fn check(kind: Kind, text: &str) -> Result<(), String> {
    match kind {
        Kind::Text => Ok(()),
        Kind::Bool => boolean(text).map(drop).ok_or_else(|| "parse error".to_owned()),
        Kind::Integer { min, max } => {
            let value: i64 = text.parse().map_err(|_| "parse error".to_owned())?;
            if value < min || value > max {
                return Err(format!("value out of range ({min} to {max})"));
            }
            Ok(())
        }
        Kind::Urls => urls(text).map(drop),
        Kind::OptionalUrls => optional_urls(text).map(drop),
        Kind::Gates => super::gates::Gates::parse(text).map(drop),
        Kind::Duration => duration(text).map(drop).ok_or_else(|| "parse error".to_owned()),
        Kind::Choice(words) => {
            if words.contains(&text) {
                return Ok(());
            }
            Err(format!("invalid value {text:?}, expected one of {}", words.join(", ")))
        }
    }
}

/// Go's `strconv.ParseBool`.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A non-negative Go duration (`1h15m30.918s`, `300ms`, `0`) in nanoseconds.
#[must_use]
pub fn duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        total = total.checked_add(scaled(number, unit_nanos(unit)?)?)?;
        rest = tail;
    }
    Some(total)
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // As Go prints it: with the micro sign; the Greek letter looks the same.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `number` (digits with at most one point) times `nanos`, truncated.
fn scaled(number: &str, nanos: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut result = whole.checked_mul(nanos)?;
    let mut weight = nanos;
    for digit in fraction.bytes() {
        weight /= 10;
        let digit = digit.checked_sub(b'0').filter(|&d| d <= 9)?;
        result = result.checked_add(weight * u64::from(digit))?;
    }
    Some(result)
}

/// A parsed member or client URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `http` or another scheme as given.
    pub scheme: String,
    /// Host without port; IPv6 without brackets. Of a Unix socket the path.
    pub host: String,
    /// Port; a Unix socket has none. What no socket can have is a URL all the same.
    pub port: u32,
}

impl Url {
    /// Whether it names a socket in the file system.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.scheme.as_str(), "unix" | "unixs")
    }

    /// `host:port`, with the brackets that IPv6 needs, or the path of a Unix socket.
    #[must_use]
    pub fn address(&self) -> String {
        if self.is_unix() {
            return self.host.clone();
        }
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.address())
    }
}

/// Parses a comma-separated list of `scheme://host:port` and `unix://path`; the error has etcd's wording where etcd has
/// one.
///
/// # Errors
/// A message naming the offending URL.
pub fn urls(list: &str) -> Result<Vec<Url>, String> {
    list.split(',').map(|text| url(text.trim())).collect()
}

/// The same, where nothing at all is legal too.
///
/// # Errors
/// A message naming the offending URL.
pub fn optional_urls(list: &str) -> Result<Vec<Url>, String> {
    if list.is_empty() { Ok(Vec::new()) } else { urls(list) }
}

fn url(text: &str) -> Result<Url, String> {
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("URL scheme must be http, https, unix, or unixs: {text}"))?;
    if !matches!(scheme, "http" | "https" | "unix" | "unixs") {
        return Err(format!("URL scheme must be http, https, unix, or unixs: {text}"));
    }
    if matches!(scheme, "unix" | "unixs") {
        return Ok(Url { scheme: scheme.to_owned(), host: rest.to_owned(), port: 0 });
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err(format!("URL must not contain a path: {text}"));
    }
    let (host, port) =
        rest.rsplit_once(':').ok_or_else(|| format!("URL address does not have the form \"host:port\": {text}"))?;
    let port = port.parse().map_err(|_| format!("parse {text:?}: invalid port {:?} after host", format!(":{port}")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(Url { scheme: scheme.to_owned(), host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        assert_eq!(duration("1h15m30.5s"), Some(4_530_500_000_000));
        assert_eq!(duration("300ms"), Some(300_000_000));
        for microsecond in ["1us", "1\u{b5}s", "1\u{3bc}s"] {
            assert_eq!(duration(microsecond), Some(1_000));
        }
        assert_eq!(duration("0"), Some(0));
        for bad in ["", "5", "5x", "-1s", ".s", "1.2.3s", "99999999999h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn urls_with_their_errors() {
        let parsed = urls("http://127.0.0.1:2379,http://[::1]:80/").expect("legal");
        assert_eq!(parsed[1], Url { scheme: "http".to_owned(), host: "::1".to_owned(), port: 80 });
        assert!(urls("127.0.0.1:2379").expect_err("no scheme").starts_with("URL scheme must be"));
        assert!(urls("http://a:1/x").expect_err("path").contains("must not contain a path"));
        assert!(urls("http://a").expect_err("no port").contains("host:port"));
        assert_eq!(urls("http://a:99999").expect("a number")[0].port, 99_999);
        let bad_port = urls("http://a:x").expect_err("no number");
        assert_eq!(bad_port, "parse \"http://a:x\": invalid port \":x\" after host");
    }

    #[test]
    fn bounds_are_checked() {
        let kind = Kind::Integer { min: 1, max: 5 };
        assert!(check(kind, "5").is_ok());
        assert!(check(kind, "6").is_err());
        assert!(check(kind, "five").is_err());
        assert!(check(Kind::Choice(&["new"]), "old").is_err());
        assert_eq!(check(Kind::Choice(&["new"]), ""), Err("invalid value \"\", expected one of new".to_owned()));
    }
}
