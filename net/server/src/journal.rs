//! Log records: one line each, JSON as etcd's zap logger writes it, or its console form.
//!
//! Owns: levels, the line formats and the escaping. Does not know: where lines go (the port writes them).
//!
//! Invariants
//! - I1: a JSON record is one line of valid JSON whatever the fields hold.
//! - I2: messages that tools wait for keep etcd's text ("ready to serve client requests", ...).

use std::fmt::Write as _;

use trilith_reactor::civil_date;

/// Severity, in zap's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For developers.
    Debug,
    /// Normal operation.
    Info,
    /// Something an operator should look at.
    Warn,
    /// Something failed.
    Error,
    /// The process ends.
    Fatal,
}

impl Level {
    /// zap's lower-case name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }

    /// The level that `--log-level` names; `panic` counts as fatal.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" => Some(Self::Warn),
            "error" => Some(Self::Error),
            "panic" | "fatal" => Some(Self::Fatal),
            _ => None,
        }
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Tab-separated, fields as JSON at the end.
    Console,
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// A string.
    Text(&'a str),
    /// A number.
    Number(i64),
    /// A truth value.
    Bool(bool),
    /// A list of strings.
    List(&'a [String]),
}

/// What a record is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct Journal {
    /// Records below this level are dropped.
    pub level_min: Level,
    /// The line format.
    pub format: Format,
}

impl Journal {
    /// Renders a record, or `None` if its level is below the threshold. `wall_now`: nanoseconds since the Unix epoch.
    #[must_use]
    pub fn render(&self, wall_now: u64, level: Level, message: &str, fields: &[(&str, Field<'_>)]) -> Option<String> {
        if level < self.level_min {
            return None;
        }
        let mut line = String::with_capacity(160);
        match self.format {
            Format::Json => {
                let _ = write!(line, "{{\"level\":\"{}\",\"ts\":\"", level.name());
                push_timestamp(&mut line, wall_now);
                line.push_str("\",\"msg\":");
                push_json_string(&mut line, message);
                push_fields(&mut line, fields, self.format);
                line.push('}');
            }
            Format::Console => {
                push_timestamp(&mut line, wall_now);
                let _ = write!(line, "\t{}\t{message}", level.name());
                if !fields.is_empty() {
                    line.push_str("\t{");
                    push_fields(&mut line, fields, self.format);
                    line.push('}');
                }
            }
        }
        Some(line)
    }
}

/// The fields: after others in JSON; alone, and with room between, on the console.
fn push_fields(line: &mut String, fields: &[(&str, Field<'_>)], format: Format) {
    let (comma, colon) = if format == Format::Json { (",", ":") } else { (", ", ": ") };
    for (position, (name, value)) in fields.iter().enumerate() {
        if format == Format::Json || position > 0 {
            line.push_str(comma);
        }
        push_json_string(line, name);
        line.push_str(colon);
        match value {
            Field::Text(text) => push_json_string(line, text),
            Field::Number(number) => {
                let _ = write!(line, "{number}");
            }
            Field::Bool(truth) => {
                let _ = write!(line, "{truth}");
            }
            Field::List(items) => {
                line.push('[');
                for (item_position, item) in items.iter().enumerate() {
                    if item_position > 0 {
                        line.push_str(comma);
                    }
                    push_json_string(line, item);
                }
                line.push(']');
            }
        }
    }
}

/// Appends `text` as a JSON string, quotes included.
pub fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if (control as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// A time as records show it.
#[must_use]
pub fn timestamp(wall_now: u64) -> String {
    let mut text = String::new();
    push_timestamp(&mut text, wall_now);
    text
}

/// Appends zap's ISO 8601 form with microseconds, in UTC: `2026-01-02T03:04:05.123456Z`.
fn push_timestamp(out: &mut String, wall_now: u64) {
    let seconds = wall_now / 1_000_000_000;
    let micros = wall_now % 1_000_000_000 / 1_000;
    let (year, month, day) = civil_date(seconds / 86_400);
    let second_of_day = seconds % 86_400;
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_record_is_one_valid_line() {
        let journal = Journal { level_min: Level::Info, format: Format::Json };
        let line = journal
            .render(
                1_700_000_000_123_456_789,
                Level::Warn,
                "odd \"name\"\n",
                &[
                    ("path", Field::Text("a\\b\u{1}")),
                    ("n", Field::Number(-3)),
                    ("urls", Field::List(&["x".to_owned(), "y".to_owned()])),
                ],
            )
            .expect("above the threshold");
        assert_eq!(
            line,
            "{\"level\":\"warn\",\"ts\":\"2023-11-14T22:13:20.123456Z\",\"msg\":\"odd \\\"name\\\"\\n\",\
             \"path\":\"a\\\\b\\u0001\",\"n\":-3,\"urls\":[\"x\",\"y\"]}"
        );
    }

    #[test]
    fn console_record_is_as_etcd_prints_it() {
        let journal = Journal { level_min: Level::Info, format: Format::Console };
        let urls = ["x".to_owned(), "y".to_owned()];
        let fields = [("name", Field::Text("n")), ("urls", Field::List(&urls))];
        assert_eq!(
            journal.render(1_700_000_000_123_456_789, Level::Info, "closed", &fields).as_deref(),
            Some("2023-11-14T22:13:20.123456Z\tinfo\tclosed\t{\"name\": \"n\", \"urls\": [\"x\", \"y\"]}")
        );
        assert_eq!(journal.render(0, Level::Warn, "w", &[]).as_deref(), Some("1970-01-01T00:00:00.000000Z\twarn\tw"));
    }

    #[test]
    fn threshold_drops_lower_levels() {
        let journal = Journal { level_min: Level::Warn, format: Format::Json };
        assert_eq!(journal.render(0, Level::Info, "quiet", &[]), None);
    }

    #[test]
    fn dates_of_leap_years() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(11_016), (2000, 2, 29));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(19_783), (2024, 3, 1));
    }
}
