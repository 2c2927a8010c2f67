//! Rust text of a resolved file.
//!
//! Owns: the shape of generated code. It is printed as rustfmt would leave most of it, with lines of at most 120
//! columns, but is not formatted afterwards: its text depends on this file alone.

use std::fmt::Write as _;

use super::GENERATED_MARK;
use super::model::{Enum, Field, File, Kind, Message, Oneof};

/// The whole module.
pub(super) fn emit(file: &File) -> String {
    let mut out = Text::default();
    out.line(0, &format!("{GENERATED_MARK} from `net/wire/proto/{}.proto`; edit that and run it again.", file.module));
    out.line(0, "//!");
    out.line(0, &format!("//! Protobuf package `{}`.", file.package));
    for line in &file.doc {
        out.line(0, &format!("//! {line}"));
    }
    out.line(0, "");
    if !file.messages.is_empty() {
        out.line(0, "use super::codec::{self, DecodeError, Message, Reader};");
    }
    for item in &file.enums {
        enumeration(&mut out, item);
    }
    for message in &file.messages {
        for (index, oneof) in message.oneofs.iter().enumerate() {
            oneof_enum(&mut out, message, index, oneof);
        }
        structure(&mut out, message);
        if streams(message) {
            field_writers(&mut out, message);
        }
        message_impl(&mut out, message);
    }
    message_list(&mut out, &file.messages);
    out.0
}

/// Lines with an indentation in steps of four blanks.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, depth: usize, text: &str) {
        if !text.is_empty() {
            let _ = write!(self.0, "{:1$}{text}", "", depth * 4);
        }
        self.0.push('\n');
    }

    /// Documentation: what the generator knows, then what the definition says.
    fn doc(&mut self, depth: usize, first: &str, rest: &[String]) {
        self.line(depth, &format!("/// {first}"));
        if !rest.is_empty() {
            self.line(depth, "///");
        }
        for line in rest {
            self.line(depth, &format!("/// {line}"));
        }
    }
}

fn enumeration(out: &mut Text, item: &Enum) {
    let name = &item.rust_name;
    out.line(0, "");
    out.doc(0, &format!("`{}`: open, an unknown number is kept.", item.full_name), &item.doc);
    out.line(0, "#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]");
    out.line(0, &format!("pub struct {name}(pub i32);"));
    out.line(0, "");
    out.line(0, &format!("impl {name} {{"));
    for value in &item.values {
        out.doc(1, &format!("Number {}.", value.number), &value.doc);
        out.line(1, &format!("pub const {}: Self = Self({});", value.name, value.number));
    }
    out.line(0, "");
    out.line(1, "/// The protobuf name, or `None` for a number without one.");
    out.line(1, "pub const fn name(self) -> Option<&'static str> {");
    out.line(2, "Some(match self {");
    for value in &item.values {
        out.line(3, &format!("Self::{0} => \"{0}\",", value.name));
    }
    out.line(3, "_ => return None,");
    out.line(2, "})");
    out.line(1, "}");
    out.line(0, "}");
}

fn oneof_enum(out: &mut Text, message: &Message, index: usize, oneof: &Oneof) {
    out.line(0, "");
    out.doc(0, &format!("The oneof `{}` of `{}`.", oneof.proto_name, message.full_name), &[]);
    let copy = if oneof.copy { "Copy, " } else { "" };
    out.line(0, &format!("#[derive(Clone, {copy}Debug, PartialEq, Eq)]"));
    let lifetime = if oneof.borrows { "<'a>" } else { "" };
    out.line(0, &format!("pub enum {}{lifetime} {{", oneof.enum_name));
    for field in message.fields.iter().filter(|field| field.oneof == Some(index)) {
        out.doc(1, &format!("{}: `{}`.", field.number, field.proto_name), &field.doc);
        out.line(1, &format!("{}({}),", field.variant, rust_type(&field.kind)));
    }
    out.line(0, "}");
}

fn structure(out: &mut Text, message: &Message) {
    out.line(0, "");
    out.doc(0, &format!("`{}`.", message.full_name), &message.doc);
    let copy = if message.copy { "Copy, " } else { "" };
    out.line(0, &format!("#[derive(Clone, {copy}Debug, Default, PartialEq, Eq)]"));
    if message.fields.is_empty() {
        out.line(0, &format!("pub struct {} {{}}", message.rust_name));
        return;
    }
    out.line(0, &format!("pub struct {} {{", self_type(message)));
    let mut printed = vec![false; message.oneofs.len()];
    for field in &message.fields {
        let Some(index) = field.oneof else {
            out.doc(1, &format!("{}: `{}`.", field.number, field.proto_name), &field.doc);
            out.line(1, &format!("pub {}: {},", field.rust_name, field_type(field)));
            continue;
        };
        if !std::mem::replace(&mut printed[index], true) {
            let oneof = &message.oneofs[index];
            let lifetime = if oneof.borrows { "<'a>" } else { "" };
            out.doc(1, &format!("The oneof `{}`.", oneof.proto_name), &[]);
            out.line(1, &format!("pub {}: Option<{}{lifetime}>,", oneof.rust_name, oneof.enum_name));
        }
    }
    out.line(0, "}");
}

/// Whether the message may be written field by field: those with repeated sub-messages, which grow.
fn streams(message: &Message) -> bool {
    message.fields.iter().any(|field| field.repeated && matches!(field.kind, Kind::Message { .. }))
}

fn field_writers(out: &mut Text, message: &Message) {
    let lifetime = if message.borrows { "<'_>" } else { "" };
    out.line(0, "");
    out.line(0, &format!("impl {}{lifetime} {{", message.rust_name));
    let mut first = true;
    for field in message.fields.iter().filter(|field| field.oneof.is_none()) {
        if !std::mem::take(&mut first) {
            out.line(0, "");
        }
        let what = match field.repeated {
            true => "one element of",
            false => "field",
        };
        out.line(1, &format!("/// Appends {what} `{}`.", field.proto_name));
        let argument = match &field.kind {
            Kind::Bytes => "&[u8]".to_owned(),
            Kind::String => "&str".to_owned(),
            Kind::Message { path, borrows } => format!("&{path}{}", if *borrows { "<'_>" } else { "" }),
            kind => rust_type(kind),
        };
        out.line(1, &format!("pub fn write_{0}(out: &mut Vec<u8>, {0}: {argument}) {{", field.rust_name));
        let put = put_call(field, &field.rust_name);
        match (field.repeated, condition(&field.kind, &field.rust_name)) {
            (false, Some(condition)) => {
                out.line(2, &format!("if {condition} {{"));
                out.line(3, &format!("{put};"));
                out.line(2, "}");
            }
            _ => out.line(2, &format!("{put};")),
        }
        out.line(1, "}");
    }
    out.line(0, "}");
}

fn message_impl(out: &mut Text, message: &Message) {
    out.line(0, "");
    out.line(0, &format!("impl<'a> Message<'a> for {} {{", self_type(message)));
    out.line(1, &format!("const NAME: &'static str = \"{}\";", message.full_name));
    out.line(0, "");
    out.line(1, "fn merge(&mut self, reader: &mut Reader<'a>) -> Result<(), DecodeError> {");
    out.line(2, "while let Some(tag) = reader.tag()? {");
    if message.fields.is_empty() {
        out.line(3, "reader.skip(tag)?;");
    } else {
        out.line(3, "match tag {");
        for field in &message.fields {
            match field.oneof {
                Some(index) => merge_member(out, field, &message.oneofs[index]),
                None => merge_field(out, field),
            }
        }
        out.line(4, "_ => reader.skip(tag)?,");
        out.line(3, "}");
    }
    out.line(2, "}");
    out.line(2, "Ok(())");
    out.line(1, "}");
    out.line(0, "");
    out.line(1, "fn encoded_len(&self) -> usize {");
    if message.fields.is_empty() {
        out.line(2, "0");
    } else {
        out.line(2, "let mut len = 0;");
        visit_present(out, message, &|field, value| format!("len += {}", len_call(field, value)));
        out.line(2, "len");
    }
    out.line(1, "}");
    out.line(0, "");
    let out_name = if message.fields.is_empty() { "_out" } else { "out" };
    out.line(1, &format!("fn encode_into(&self, {out_name}: &mut Vec<u8>) {{"));
    visit_present(out, message, &put_call);
    out.line(1, "}");
    out.line(0, "}");
}

/// The list by which tests and fuzzers reach every message.
fn message_list(out: &mut Text, messages: &[Message]) {
    out.line(0, "");
    out.doc(0, "Every message of this package by its full name, for checks that concern them all.", &[]);
    out.line(0, "pub const MESSAGES: &[(&str, codec::Reencode)] = &[");
    for message in messages {
        let lifetime = if message.borrows { "<'_>" } else { "" };
        out.line(
            1,
            &format!("(\"{}\", |b| codec::reencode::<{}{lifetime}>(b)),", message.full_name, message.rust_name),
        );
    }
    out.line(0, "];");
}

/// The tag and the wire type it is read with: number << 3 | wire type.
fn tag(field: &Field) -> u32 {
    field.number << 3 | if is_varint(&field.kind) { 0 } else { 2 }
}

/// The tag written: repeated varints are packed.
fn written_tag(field: &Field) -> u32 {
    match is_packed(field) {
        true => field.number << 3 | 2,
        false => tag(field),
    }
}

fn merge_field(out: &mut Text, field: &Field) {
    let name = &field.rust_name;
    let tag = tag(field);
    match (&field.kind, field.repeated) {
        (Kind::Message { .. }, true) => {
            out.line(4, &format!("{tag:#04x} => reader.message_element(&mut self.{name})?,"));
        }
        (Kind::Message { .. }, false) => {
            out.line(4, &format!("{tag:#04x} => reader.message(self.{name}.get_or_insert_default())?,"));
        }
        (kind, true) => {
            out.line(4, &format!("{tag:#04x} => {{"));
            out.line(5, "reader.count_element()?;");
            out.line(5, &format!("self.{name}.push({});", read_call(kind)));
            out.line(4, "}");
            if is_packed(field) {
                let value = packed_value(kind);
                let tag = written_tag(field);
                out.line(4, &format!("{tag:#04x} => reader.packed(|value| self.{name}.push({value}))?,"));
            }
        }
        (kind, false) => out.line(4, &format!("{tag:#04x} => self.{name} = {},", read_call(kind))),
    }
}

fn merge_member(out: &mut Text, field: &Field, oneof: &Oneof) {
    let (tag, name, variant) = (tag(field), &oneof.rust_name, format!("{}::{}", oneof.enum_name, field.variant));
    match &field.kind {
        Kind::Message { path, .. } => {
            out.line(4, &format!("{tag:#04x} => {{"));
            out.line(5, &format!("let mut value = match self.{name}.take() {{"));
            out.line(6, &format!("Some({variant}(value)) => value,"));
            out.line(6, &format!("_ => {path}::default(),"));
            out.line(5, "};");
            out.line(5, "reader.message(&mut value)?;");
            out.line(5, &format!("self.{name} = Some({variant}(value));"));
            out.line(4, "}");
        }
        kind => out.line(4, &format!("{tag:#04x} => self.{name} = Some({variant}({})),", read_call(kind))),
    }
}

/// Prints `action` for every field that is present, under the condition that makes it so. The action's second
/// argument is an expression for the value, a reference where the type is a message.
fn visit_present(out: &mut Text, message: &Message, action: &dyn Fn(&Field, &str) -> String) {
    for field in &message.fields {
        let name = &field.rust_name;
        if let Some(index) = field.oneof {
            let oneof = &message.oneofs[index];
            let value = if matches!(field.kind, Kind::Message { .. }) { "value" } else { "*value" };
            let variant = format!("{}::{}", oneof.enum_name, field.variant);
            out.line(2, &format!("if let Some({variant}(value)) = &self.{} {{", oneof.rust_name));
            out.line(3, &format!("{};", action(field, value)));
        } else if is_packed(field) {
            out.line(2, &format!("if !self.{name}.is_empty() {{"));
            out.line(3, &format!("{};", action(field, &format!("self.{name}"))));
        } else if field.repeated {
            out.line(2, &format!("for value in &self.{name} {{"));
            out.line(3, &format!("{};", action(field, "value")));
        } else if let Some(condition) = condition(&field.kind, &format!("self.{name}")) {
            out.line(2, &format!("if {condition} {{"));
            out.line(3, &format!("{};", action(field, &format!("self.{name}"))));
        } else {
            out.line(2, &format!("if let Some(value) = &self.{name} {{"));
            out.line(3, &format!("{};", action(field, "value")));
        }
        out.line(2, "}");
    }
}

/// An expression that is true when a scalar differs from its default; `None` for messages.
fn condition(kind: &Kind, value: &str) -> Option<String> {
    Some(match kind {
        Kind::Bytes | Kind::String => format!("!{value}.is_empty()"),
        Kind::Bool => value.to_owned(),
        Kind::Enum(_) => format!("{value}.0 != 0"),
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => format!("{value} != 0"),
        Kind::Message { .. } => return None,
    })
}

fn put_call(field: &Field, value: &str) -> String {
    let tag = written_tag(field);
    match &field.kind {
        Kind::Message { .. } => format!("codec::put_message_field(out, {tag:#04x}, {value})"),
        Kind::Bytes => format!("codec::put_bytes_field(out, {tag:#04x}, {})", paren(value)),
        Kind::String => format!("codec::put_bytes_field(out, {tag:#04x}, {}.as_bytes())", paren(value)),
        kind if field.repeated => format!("codec::put_packed_field(out, {tag:#04x}, {})", packed_iter(kind, value)),
        kind => format!("codec::put_varint_field(out, {tag:#04x}, {})", as_varint(kind, value)),
    }
}

fn len_call(field: &Field, value: &str) -> String {
    let tag = written_tag(field);
    match &field.kind {
        Kind::Message { .. } => format!("codec::message_field_len({tag:#04x}, {value})"),
        Kind::Bytes | Kind::String => format!("codec::delimited_field_len({tag:#04x}, {}.len())", paren(value)),
        kind if field.repeated => format!("codec::packed_field_len({tag:#04x}, {})", packed_iter(kind, value)),
        kind => format!("codec::varint_field_len({tag:#04x}, {})", as_varint(kind, value)),
    }
}

/// `*value` where auto-dereference makes the star superfluous.
fn paren(value: &str) -> &str {
    value.trim_start_matches('*')
}

fn packed_iter(kind: &Kind, value: &str) -> String {
    format!("{value}.iter().map(|value| {})", as_varint(kind, "*value"))
}

/// The 64 bits that go on the wire; negative 32-bit numbers are sign-extended.
fn as_varint(kind: &Kind, value: &str) -> String {
    match kind {
        Kind::Int64 => format!("{value} as u64"),
        Kind::Uint64 => value.to_owned(),
        Kind::Uint32 | Kind::Bool => format!("u64::from({value})"),
        Kind::Int32 => format!("i64::from({value}) as u64"),
        Kind::Enum(_) => format!("i64::from({}.0) as u64", paren(value)),
        Kind::Bytes | Kind::String | Kind::Message { .. } => unreachable!("length-delimited"),
    }
}

/// The element made of the raw varint `value`.
fn packed_value(kind: &Kind) -> String {
    match kind {
        Kind::Int32 => "value as i32".to_owned(),
        Kind::Int64 => "value as i64".to_owned(),
        Kind::Uint32 => "value as u32".to_owned(),
        Kind::Uint64 => "value".to_owned(),
        Kind::Bool => "value != 0".to_owned(),
        Kind::Enum(path) => format!("{path}(value as i32)"),
        Kind::Bytes | Kind::String | Kind::Message { .. } => unreachable!("length-delimited"),
    }
}

fn read_call(kind: &Kind) -> String {
    match kind {
        Kind::Int32 => "reader.int32()?".to_owned(),
        Kind::Int64 => "reader.int64()?".to_owned(),
        Kind::Uint32 => "reader.uint32()?".to_owned(),
        Kind::Uint64 => "reader.uint64()?".to_owned(),
        Kind::Bool => "reader.bool()?".to_owned(),
        Kind::Bytes => "reader.bytes()?".to_owned(),
        Kind::String => "reader.string()?".to_owned(),
        Kind::Enum(path) => format!("{path}(reader.int32()?)"),
        Kind::Message { .. } => unreachable!("messages are merged in place"),
    }
}

fn is_varint(kind: &Kind) -> bool {
    !matches!(kind, Kind::Bytes | Kind::String | Kind::Message { .. })
}

fn is_packed(field: &Field) -> bool {
    field.repeated && is_varint(&field.kind)
}

fn self_type(message: &Message) -> String {
    format!("{}{}", message.rust_name, if message.borrows { "<'a>" } else { "" })
}

fn rust_type(kind: &Kind) -> String {
    match kind {
        Kind::Int32 => "i32".to_owned(),
        Kind::Int64 => "i64".to_owned(),
        Kind::Uint32 => "u32".to_owned(),
        Kind::Uint64 => "u64".to_owned(),
        Kind::Bool => "bool".to_owned(),
        Kind::Bytes => "&'a [u8]".to_owned(),
        Kind::String => "&'a str".to_owned(),
        Kind::Enum(path) => path.clone(),
        Kind::Message { path, borrows } => format!("{path}{}", if *borrows { "<'a>" } else { "" }),
    }
}

fn field_type(field: &Field) -> String {
    let element = rust_type(&field.kind);
    match (&field.kind, field.repeated) {
        (_, true) => format!("Vec<{element}>"),
        (Kind::Message { .. }, false) => format!("Option<{element}>"),
        _ => element,
    }
}
