//! Names and properties of types: what a field's type refers to and what Rust makes of it.
//!
//! Owns: name resolution over all files, Rust names, and the two derived properties of a message: whether it borrows
//! (and so has a lifetime) and whether it is `Copy`.
//!
//! Invariants:
//! - I1: a message reaches itself only through a repeated field, so that its Rust type is finite.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::parse;

/// All files, resolved.
#[derive(Debug)]
pub(super) struct Model {
    pub files: Vec<File>,
}

/// One module to print.
#[derive(Debug)]
pub(super) struct File {
    pub module: String,
    pub doc: Vec<String>,
    pub package: String,
    pub enums: Vec<Enum>,
    pub messages: Vec<Message>,
}

#[derive(Debug)]
pub(super) struct Enum {
    pub rust_name: String,
    pub full_name: String,
    pub doc: Vec<String>,
    pub values: Vec<parse::Value>,
}

#[derive(Debug)]
pub(super) struct Message {
    pub rust_name: String,
    pub full_name: String,
    pub doc: Vec<String>,
    /// Ascending numbers.
    pub fields: Vec<Field>,
    pub oneofs: Vec<Oneof>,
    pub borrows: bool,
    pub copy: bool,
}

#[derive(Debug)]
pub(super) struct Field {
    pub rust_name: String,
    pub proto_name: String,
    pub doc: Vec<String>,
    pub number: u32,
    pub repeated: bool,
    pub oneof: Option<usize>,
    /// Variant name, for members of a oneof.
    pub variant: String,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) struct Oneof {
    pub rust_name: String,
    pub enum_name: String,
    pub proto_name: String,
    pub borrows: bool,
    pub copy: bool,
}

/// The type of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int32,
    Int64,
    Uint32,
    Uint64,
    Bool,
    Bytes,
    String,
    /// Path of the Rust type as seen from the field's module.
    Enum(String),
    Message {
        path: String,
        borrows: bool,
    },
}

#[derive(Clone)]
struct Definition {
    module: String,
    rust_name: String,
    /// Field types that are held by value; `None` for an enum.
    message: Option<Held>,
}

#[derive(Clone, Default)]
struct Held {
    by_value: Vec<String>,
    all: Vec<String>,
    has_bytes: bool,
    has_repeated: bool,
}

impl Model {
    /// Resolves every name of `files`.
    pub(super) fn resolve(files: Vec<parse::File>) -> Result<Self> {
        let names = Names::collect(&files)?;
        let mut resolved = Vec::new();
        for file in files {
            for type_name in file.services.iter().flat_map(|service| &service.types) {
                names.find(&file.package, "", type_name)?;
            }
            resolved.push(names.file(file)?);
        }
        Ok(Self { files: resolved })
    }
}

/// Definitions by full protobuf name.
struct Names(BTreeMap<String, Definition>);

impl Names {
    fn collect(files: &[parse::File]) -> Result<Self> {
        let mut names = Self(BTreeMap::new());
        for file in files {
            for item in &file.enums {
                names.add(file, format!("{}.{}", file.package, item.name), item.name.clone(), false)?;
            }
            for message in &file.messages {
                let full_name = format!("{}.{}", file.package, message.name);
                for item in &message.enums {
                    let rust_name = nested_name(&message.name, &item.name);
                    names.add(file, format!("{full_name}.{}", item.name), rust_name, false)?;
                }
                names.add(file, full_name, message.name.clone(), true)?;
            }
        }
        for file in files {
            for message in &file.messages {
                let held = names.held(&file.package, message)?;
                let full_name = format!("{}.{}", file.package, message.name);
                names.0.get_mut(&full_name).context("collected above")?.message = Some(held);
            }
        }
        for (full_name, definition) in &names.0 {
            let by_value = |held: &Held| held.by_value.clone();
            let cyclic = definition.message.is_some() && names.reaches(full_name, &by_value, &|name| name == full_name);
            ensure!(!cyclic, "`{full_name}` contains itself; only a repeated field may recurse");
        }
        Ok(names)
    }

    fn add(&mut self, file: &parse::File, full_name: String, rust_name: String, is_message: bool) -> Result<()> {
        let taken = |other: &Definition| other.module == file.module && other.rust_name == rust_name;
        ensure!(!self.0.values().any(taken), "`{full_name}` is defined twice, or its Rust name `{rust_name}` is");
        let message = is_message.then(Held::default);
        self.0.insert(full_name, Definition { module: file.module.clone(), rust_name, message });
        Ok(())
    }

    fn held(&self, package: &str, message: &parse::Message) -> Result<Held> {
        let mut held = Held::default();
        for field in &message.fields {
            held.has_repeated |= field.repeated;
            match scalar(&field.type_name) {
                Some(kind) => held.has_bytes |= matches!(kind, Kind::Bytes | Kind::String),
                None => {
                    let (name, definition) = self.find(package, &message.name, &field.type_name)?;
                    if definition.message.is_some() {
                        held.all.push(name.clone());
                        if !field.repeated {
                            held.by_value.push(name);
                        }
                    }
                }
            }
        }
        Ok(held)
    }

    /// Resolves a type name from inside a message, as protobuf scopes names: innermost first.
    fn find(&self, package: &str, message: &str, type_name: &str) -> Result<(String, &Definition)> {
        for name in [format!("{package}.{message}.{type_name}"), format!("{package}.{type_name}"), type_name.to_owned()]
        {
            if let Some(definition) = self.0.get(&name) {
                return Ok((name, definition));
            }
        }
        bail!("unknown type `{type_name}` in {package}.{message}")
    }

    /// Whether a message other than by standing still leads, along `edges`, to one that satisfies `goal`.
    fn reaches(&self, from: &str, edges: &dyn Fn(&Held) -> Vec<String>, goal: &dyn Fn(&str) -> bool) -> bool {
        let mut seen = Vec::new();
        let mut open = vec![from.to_owned()];
        while let Some(name) = open.pop() {
            let Some(held) = self.0.get(&name).and_then(|definition| definition.message.as_ref()) else { continue };
            for next in edges(held) {
                if goal(&next) {
                    return true;
                }
                if !seen.contains(&next) {
                    seen.push(next.clone());
                    open.push(next);
                }
            }
        }
        false
    }

    fn borrows(&self, full_name: &str) -> bool {
        let has_bytes =
            |name: &str| self.0.get(name).and_then(|d| d.message.as_ref()).is_some_and(|held| held.has_bytes);
        has_bytes(full_name) || self.reaches(full_name, &|held| held.all.clone(), &has_bytes)
    }

    fn copy(&self, full_name: &str) -> bool {
        let grows =
            |name: &str| self.0.get(name).and_then(|d| d.message.as_ref()).is_some_and(|held| held.has_repeated);
        !grows(full_name) && !self.reaches(full_name, &|held| held.all.clone(), &grows)
    }

    fn file(&self, file: parse::File) -> Result<File> {
        let parse::File { module, doc, package, messages, enums, .. } = file;
        let mut resolved = File { module, doc, package, enums: vec![], messages: vec![] };
        for item in enums {
            let full_name = format!("{}.{}", resolved.package, item.name);
            resolved.enums.push(Enum { rust_name: item.name, full_name, doc: item.doc, values: item.values });
        }
        for mut message in messages {
            for item in std::mem::take(&mut message.enums) {
                let full_name = format!("{}.{}.{}", resolved.package, message.name, item.name);
                let rust_name = nested_name(&message.name, &item.name);
                resolved.enums.push(Enum { rust_name, full_name, doc: item.doc, values: item.values });
            }
            resolved.messages.push(self.message(&resolved.module, &resolved.package, message)?);
        }
        Ok(resolved)
    }

    fn message(&self, module: &str, package: &str, message: parse::Message) -> Result<Message> {
        let full_name = format!("{package}.{}", message.name);
        let mut fields = Vec::new();
        for field in &message.fields {
            fields.push(self.field(module, package, &message, field)?);
        }
        fields.sort_by_key(|field| field.number);
        let mut oneofs = Vec::new();
        for (index, name) in message.oneofs.iter().enumerate() {
            oneofs.push(self.oneof(package, &message, index, name)?);
        }
        let (borrows, copy) = (self.borrows(&full_name), self.copy(&full_name));
        Ok(Message { rust_name: message.name, full_name, doc: message.doc, fields, oneofs, borrows, copy })
    }

    fn field(&self, module: &str, package: &str, message: &parse::Message, field: &parse::Field) -> Result<Field> {
        let kind = match scalar(&field.type_name) {
            Some(kind) => kind,
            None => {
                let (name, definition) = self.find(package, &message.name, &field.type_name)?;
                let path = match definition.module == module {
                    true => definition.rust_name.clone(),
                    false => format!("super::{}::{}", definition.module, definition.rust_name),
                };
                match definition.message {
                    Some(_) => Kind::Message { path, borrows: self.borrows(&name) },
                    None => Kind::Enum(path),
                }
            }
        };
        let mut rust_name = snake_case(&field.name);
        // The one keyword among our field names is `type`; an enum's own name says more than an escape.
        if let ("type", Kind::Enum(path)) = (rust_name.as_str(), &kind) {
            rust_name = snake_case(path);
        }
        let variant = field.oneof.map(|oneof| variant_name(message, oneof, &field.name)).unwrap_or_default();
        let (proto_name, doc) = (field.name.clone(), field.doc.clone());
        let (number, repeated, oneof) = (field.number, field.repeated, field.oneof);
        Ok(Field { rust_name, proto_name, doc, number, repeated, oneof, variant, kind })
    }

    fn oneof(&self, package: &str, message: &parse::Message, index: usize, name: &str) -> Result<Oneof> {
        let (mut borrows, mut copy) = (false, true);
        for field in message.fields.iter().filter(|field| field.oneof == Some(index)) {
            match scalar(&field.type_name) {
                Some(kind) => borrows |= matches!(kind, Kind::Bytes | Kind::String),
                None => {
                    let (full_name, _) = self.find(package, &message.name, &field.type_name)?;
                    borrows |= self.borrows(&full_name);
                    copy &= self.copy(&full_name);
                }
            }
        }
        let enum_name = format!("{}{}", message.name, pascal_case(name));
        Ok(Oneof { rust_name: snake_case(name), enum_name, proto_name: name.to_owned(), borrows, copy })
    }
}

fn scalar(name: &str) -> Option<Kind> {
    Some(match name {
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "uint32" => Kind::Uint32,
        "uint64" => Kind::Uint64,
        "bool" => Kind::Bool,
        "bytes" => Kind::Bytes,
        "string" => Kind::String,
        _ => return None,
    })
}

/// Rust name of an enum nested in a message: its own, unless that is a single word that says nothing alone.
fn nested_name(message: &str, name: &str) -> String {
    match name.chars().filter(char::is_ascii_uppercase).count() {
        0 | 1 => format!("{message}{name}"),
        _ => name.to_owned(),
    }
}

/// Variant of a oneof member: its name without the words that all members share at the front or at the end.
fn variant_name(message: &parse::Message, oneof: usize, name: &str) -> String {
    let words: Vec<&str> = name.split('_').collect();
    let members: Vec<Vec<&str>> = message
        .fields
        .iter()
        .filter(|field| field.oneof == Some(oneof))
        .map(|field| field.name.split('_').collect())
        .collect();
    let shared_front = members.iter().all(|member| member.len() > 1 && member[0] == words[0]);
    let shared_end = members.iter().all(|member| member.len() > 1 && member.last() == words.last());
    let rest = &words[usize::from(shared_front)..words.len() - usize::from(shared_end && !shared_front)];
    pascal_case(&rest.join("_"))
}

/// `peerURLs` -> `peer_urls`, `remaining_TTL` -> `remaining_ttl`, `dbSizeInUse` -> `db_size_in_use`.
fn snake_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (index, c) in chars.iter().enumerate() {
        if c.is_ascii_uppercase() && index > 0 && chars[index - 1] != '_' {
            let after_lower = !chars[index - 1].is_ascii_uppercase();
            let next = chars.get(index + 1);
            // In `URLs` the last letter is a plural, not the start of a word.
            let plural = next == Some(&'s') && index + 2 == chars.len();
            if after_lower || (next.is_some_and(char::is_ascii_lowercase) && !plural) {
                out.push('_');
            }
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn pascal_case(name: &str) -> String {
    let word = |word: &str| word.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(word.chars().skip(1)).collect();
    name.split('_').map(word).collect::<Vec<String>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_names() {
        for (proto, rust) in [
            ("peerURLs", "peer_urls"),
            ("memberID", "member_id"),
            ("ID", "id"),
            ("TTL", "ttl"),
            ("grantedTTL", "granted_ttl"),
            ("remaining_TTL", "remaining_ttl"),
            ("dbSizeInUse", "db_size_in_use"),
            ("isLearner", "is_learner"),
            ("range_end", "range_end"),
            ("EventType", "event_type"),
            ("HTTPPort", "http_port"),
        ] {
            assert_eq!(snake_case(proto), rust);
        }
        assert_eq!(pascal_case("target_union"), "TargetUnion");
        assert_eq!(nested_name("Permission", "Type"), "PermissionType");
        assert_eq!(nested_name("RangeRequest", "SortOrder"), "SortOrder");
    }
}
