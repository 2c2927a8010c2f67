//! `--log-rotation-config-json`.
//!
//! Owns: its fields and defaults. Does not know: how a file is rotated (the reactor does it).

use trilith_reactor::LogRotation;
use yaml_rust2::{Yaml, YamlLoader};

const MEBIBYTE: u64 = 1 << 20;
/// What 0, or nothing, stands for.
const BYTES_DEFAULT: u64 = 100 * MEBIBYTE;

/// Reads the JSON object; unknown fields are ignored, as in etcd.
///
/// # Errors
/// What is wrong, in etcd's words as far as it has some.
pub(super) fn parse(text: &str) -> Result<LogRotation, String> {
    let malformed = |what: &str| format!("improperly formatted log rotation config: {what}");
    // JSON is a part of YAML, but for what it would take beyond.
    if !text.trim_start().starts_with('{') {
        return Err(malformed("a JSON object is expected"));
    }
    let documents = YamlLoader::load_from_str(text).map_err(|error| malformed(&error.to_string()))?;
    let Some(Yaml::Hash(fields)) = documents.first() else {
        return Err(malformed("a JSON object is expected"));
    };
    let mut this =
        LogRotation { bytes_max: BYTES_DEFAULT, days_max: 0, files_max: 0, is_local_time: false, is_compressed: false };
    for (name, value) in fields {
        match name.as_str().unwrap_or_default() {
            "maxsize" => {
                let size = count("maxsize", value)?;
                this.bytes_max = if size == 0 { BYTES_DEFAULT } else { size.saturating_mul(MEBIBYTE) };
            }
            "maxage" => this.days_max = count("maxage", value)?,
            "maxbackups" => this.files_max = count("maxbackups", value)?,
            "localtime" => this.is_local_time = truth("localtime", value)?,
            "compress" => this.is_compressed = truth("compress", value)?,
            _ => {}
        }
    }
    Ok(this)
}

fn count(name: &str, value: &Yaml) -> Result<u64, String> {
    let number = value.as_i64().and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| format!("invalid log rotation config: {name} is not a count"))
}

fn truth(name: &str, value: &Yaml) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("invalid log rotation config: {name} is neither true nor false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_defaults() {
        let text =
            "{\"maxsize\": 2, \"maxage\": 3, \"maxbackups\": 4, \"localtime\": true, \"compress\": true, \"x\": 1}";
        let parsed = parse(text).expect("legal");
        let expected =
            LogRotation { bytes_max: 2 << 20, days_max: 3, files_max: 4, is_local_time: true, is_compressed: true };
        assert_eq!(parsed, expected);
        let default = parse(" {\"maxsize\": 0}").expect("legal");
        assert_eq!((default.bytes_max, default.files_max, default.is_compressed), (100 << 20, 0, false));
    }

    #[test]
    fn what_is_no_object_or_of_another_type_is_refused() {
        for text in ["{", "", "maxsize: 3", "[1]"] {
            let said = parse(text).expect_err(text);
            assert!(said.starts_with("improperly formatted log rotation config: "), "{said}");
        }
        for text in ["{\"maxsize\": \"x\"}", "{\"maxage\": -1}", "{\"compress\": 1}"] {
            let said = parse(text).expect_err(text);
            assert!(said.starts_with("invalid log rotation config: "), "{said}");
        }
    }
}
