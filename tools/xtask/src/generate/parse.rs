//! Parser of the proto3 subset that our definitions use.
//!
//! Owns: tokens and grammar: `syntax`, `package`, `import`, `message` with fields, oneofs and nested enums, `enum`,
//! `service`. Comment lines directly above a declaration become its documentation.
//!
//! Does not know: what a type name refers to.

use anyhow::{Context, Result, bail, ensure};

/// One definition file.
#[derive(Debug)]
pub(super) struct File {
    pub module: String,
    pub doc: Vec<String>,
    pub package: String,
    pub messages: Vec<Message>,
    pub enums: Vec<Enum>,
    pub services: Vec<Service>,
}

#[derive(Debug)]
pub(super) struct Message {
    pub name: String,
    pub doc: Vec<String>,
    pub fields: Vec<Field>,
    pub oneofs: Vec<String>,
    pub enums: Vec<Enum>,
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: String,
    pub doc: Vec<String>,
    pub type_name: String,
    pub number: u32,
    pub repeated: bool,
    /// Index into `Message::oneofs`.
    pub oneof: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Enum {
    pub name: String,
    pub doc: Vec<String>,
    pub values: Vec<Value>,
}

#[derive(Debug)]
pub(super) struct Value {
    pub name: String,
    pub doc: Vec<String>,
    pub number: i32,
}

#[derive(Debug)]
pub(super) struct Service {
    /// Request and response type names of every method.
    pub types: Vec<String>,
}

/// Parses the text of `<module>.proto`.
pub(super) fn parse(module: &str, text: &str) -> Result<File> {
    let mut parser = Parser { tokens: tokenize(text)?, next: 0 };
    parser.file(module).with_context(|| format!("line {}", parser.line()))
}

#[derive(Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
    /// Comment lines directly above.
    doc: Vec<String>,
}

fn tokenize(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut doc: Vec<String> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let mut rest = line.trim();
        if rest.is_empty() {
            doc.clear();
        } else if let Some(comment) = rest.strip_prefix("//") {
            doc.push(comment.trim().to_owned());
            continue;
        }
        while let Some(first) = rest.chars().next() {
            ensure!(first.is_ascii(), "line {line_number}: not ASCII");
            let len = match first {
                'a'..='z' | 'A'..='Z' | '_' | '0'..='9' => {
                    rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(rest.len())
                }
                '"' => rest[1..].find('"').with_context(|| format!("line {line_number}: open string"))? + 2,
                _ => 1,
            };
            tokens.push(Token { text: rest[..len].to_owned(), line: line_number, doc: std::mem::take(&mut doc) });
            rest = rest[len..].trim_start();
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.next).or_else(|| self.tokens.last()).map_or(1, |token| token.line)
    }

    fn peek(&self) -> Option<&str> {
        self.tokens.get(self.next).map(|token| token.text.as_str())
    }

    fn take(&mut self) -> Result<&Token> {
        let token = self.tokens.get(self.next).context("end of file")?;
        self.next += 1;
        Ok(token)
    }

    fn expect(&mut self, text: &str) -> Result<()> {
        let found = self.take()?.text.clone();
        ensure!(found == text, "expected `{text}`, found `{found}`");
        Ok(())
    }

    fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == Some(text);
        self.next += usize::from(found);
        found
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let token = self.take()?;
        ensure!(token.text.starts_with(|c: char| c.is_ascii_alphabetic()), "expected {what}, found `{}`", token.text);
        Ok(token.text.clone())
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let text = self.take()?.text.clone();
        text.parse().ok().with_context(|| format!("expected a number, found `{text}`"))
    }

    fn file(&mut self, module: &str) -> Result<File> {
        let doc = self.tokens.first().map(|token| token.doc.clone()).unwrap_or_default();
        for text in ["syntax", "=", "\"proto3\"", ";", "package"] {
            self.expect(text)?;
        }
        let package = self.name("a package name")?;
        self.expect(";")?;
        let module = module.to_owned();
        let mut file = File { module, doc, package, messages: vec![], enums: vec![], services: vec![] };
        while self.peek().is_some() {
            let Token { text, doc, .. } = self.take()?;
            let doc = doc.clone();
            match text.as_str() {
                // Names are resolved over all files, so an import needs no reading.
                "import" => {
                    self.take()?;
                    self.expect(";")?;
                }
                "message" => file.messages.push(self.message(doc)?),
                "enum" => file.enums.push(self.enumeration(doc)?),
                "service" => file.services.push(self.service()?),
                other => bail!("unexpected `{other}`"),
            }
        }
        Ok(file)
    }

    fn message(&mut self, doc: Vec<String>) -> Result<Message> {
        let name = self.name("a message name")?;
        self.expect("{")?;
        let mut message = Message { name, doc, fields: vec![], oneofs: vec![], enums: vec![] };
        while !self.accept("}") {
            let doc = self.tokens.get(self.next).map(|token| token.doc.clone()).unwrap_or_default();
            if self.accept("enum") {
                message.enums.push(self.enumeration(doc)?);
            } else if self.accept("oneof") {
                let oneof = message.oneofs.len();
                message.oneofs.push(self.name("a oneof name")?);
                self.expect("{")?;
                while !self.accept("}") {
                    let doc = self.tokens.get(self.next).map(|token| token.doc.clone()).unwrap_or_default();
                    message.fields.push(self.field(doc, false, Some(oneof))?);
                }
            } else {
                let repeated = self.accept("repeated");
                message.fields.push(self.field(doc, repeated, None)?);
            }
        }
        check_fields(&message)?;
        Ok(message)
    }

    fn field(&mut self, doc: Vec<String>, repeated: bool, oneof: Option<usize>) -> Result<Field> {
        let type_name = self.name("a type")?;
        let name = self.name("a field name")?;
        self.expect("=")?;
        let number = self.number()?;
        self.expect(";")?;
        Ok(Field { name, doc, type_name, number, repeated, oneof })
    }

    fn enumeration(&mut self, doc: Vec<String>) -> Result<Enum> {
        let name = self.name("an enum name")?;
        self.expect("{")?;
        let mut values = Vec::new();
        while !self.accept("}") {
            let doc = self.tokens.get(self.next).map(|token| token.doc.clone()).unwrap_or_default();
            let name = self.name("a value name")?;
            self.expect("=")?;
            let number = self.number()?;
            self.expect(";")?;
            values.push(Value { name, doc, number });
        }
        let first = values.first().map(|value| value.number);
        ensure!(first == Some(0), "{name}: the first value of an enum must be 0");
        Ok(Enum { name, doc, values })
    }

    fn service(&mut self) -> Result<Service> {
        self.name("a service name")?;
        self.expect("{")?;
        let mut types = Vec::new();
        while !self.accept("}") {
            self.expect("rpc")?;
            self.name("a method name")?;
            types.push(self.method_type()?);
            self.expect("returns")?;
            types.push(self.method_type()?);
            self.expect(";")?;
        }
        Ok(Service { types })
    }

    fn method_type(&mut self) -> Result<String> {
        self.expect("(")?;
        self.accept("stream");
        let name = self.name("a type")?;
        self.expect(")")?;
        Ok(name)
    }
}

fn check_fields(message: &Message) -> Result<()> {
    for (index, field) in message.fields.iter().enumerate() {
        let number = field.number;
        // 19,000 to 19,999 are reserved by protobuf itself.
        let valid = (1..=(1 << 29) - 1).contains(&number) && !(19_000..20_000).contains(&number);
        ensure!(valid, "{}: number {number} is out of range", message.name);
        for other in &message.fields[..index] {
            ensure!(other.number != number, "{}: number {number} is used twice", message.name);
            ensure!(other.name != field.name, "{}: name `{}` is used twice", message.name, field.name);
        }
    }
    Ok(())
}
