//! `tojson` as transformers define it: Python's `json.dumps`, with nothing escaped for HTML.

use super::fault::{Fault, Result};
use super::limits::Budget;
use super::strings;
use super::text::{Text, TextBuilder};
use super::value::{Key, SeqKind, Value};

/// The arguments of `json.dumps` that templates use.
pub(crate) struct JsonStyle {
    pub(crate) is_ascii: bool,
    /// The indentation of one level; `None` writes one line.
    pub(crate) indent: Option<Text>,
    pub(crate) item_separator: Text,
    pub(crate) key_separator: Text,
    pub(crate) sorts_keys: bool,
}

/// `value` as JSON.
pub(crate) fn dumps(value: &Value, layout: &JsonStyle, budget: &Budget) -> Result<Text> {
    let mut writer = Writer {
        out: TextBuilder::default(),
        layout,
        budget,
    };
    writer.value(value, 0)?;
    budget.built(writer.out.len())?;
    Ok(writer.out.finish())
}

struct Writer<'a> {
    out: TextBuilder,
    layout: &'a JsonStyle,
    budget: &'a Budget,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.budget.step(1)?;
        self.budget.check(self.out.len())?;
        match value {
            Value::None => self.out.push_own("null"),
            Value::Bool(flag) => self.out.push_own(if *flag { "true" } else { "false" }),
            Value::Int(number) => self.out.push_own(&number.to_string()),
            Value::Float(number) => self.out.push_own(&float(*number)),
            Value::Text(text) => self.text(text)?,
            Value::Seq(seq)
                if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group) =>
            {
                self.out.push_own("[");
                for (index, item) in seq.items.iter().enumerate() {
                    self.separate(index, depth + 1)?;
                    self.value(item, depth + 1)?;
                }
                self.close("]", seq.items.is_empty(), depth)?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<_> = dict.entries.iter().collect();
                if self.layout.sorts_keys {
                    sort_by_key(&mut entries, self.budget)?;
                }
                self.out.push_own("{");
                for (index, (Key(key), item)) in entries.iter().enumerate() {
                    self.separate(index, depth + 1)?;
                    self.key(key)?;
                    self.out.push(&self.layout.key_separator);
                    self.value(item, depth + 1)?;
                }
                self.close("}", entries.is_empty(), depth)?;
            }
            other => {
                let name = other.type_name();
                return Err(Fault::new(format!(
                    "Object of type {name} is not JSON serializable"
                )));
            }
        }
        Ok(())
    }

    /// The separator before item `index`.
    fn separate(&mut self, index: usize, depth: usize) -> Result<()> {
        if index > 0 {
            self.out.push(&self.layout.item_separator);
        }
        self.break_line(depth)
    }

    fn close(&mut self, bracket: &str, is_empty: bool, depth: usize) -> Result<()> {
        if !is_empty {
            self.break_line(depth)?;
        }
        self.out.push_own(bracket);
        Ok(())
    }

    fn break_line(&mut self, depth: usize) -> Result<()> {
        if let Some(indent) = &self.layout.indent {
            self.budget.check(self.out.len() + depth * indent.len())?;
            self.out.push_own("\n");
            for _ in 0..depth {
                self.out.push(indent);
            }
        }
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<()> {
        match key {
            Value::Text(text) => self.text(text)?,
            Value::None => self.out.push_own("\"null\""),
            Value::Bool(flag) => self
                .out
                .push_own(if *flag { "\"true\"" } else { "\"false\"" }),
            Value::Int(number) => self.out.push_own(&format!("\"{number}\"")),
            Value::Float(number) => self.out.push_own(&format!("\"{}\"", float(*number))),
            other => {
                return Err(Fault::new(format!(
                    "keys must be str, int, float, bool or None, not {}",
                    other.type_name()
                )));
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &Text) -> Result<()> {
        self.budget.read(text.len())?;
        let is_ascii = self.layout.is_ascii;
        self.out.push_own("\"");
        self.out.push(&text.map(|run| escape(run, is_ascii)));
        self.out.push_own("\"");
        Ok(())
    }
}

fn escape(text: &str, is_ascii: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0C' => out.push_str("\\f"),
            c if c < ' ' || is_ascii && !matches!(c, ' '..='~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out += &format!("\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out
}

fn float(number: f64) -> String {
    match strings::float(number).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        plain => plain.to_owned(),
    }
}

fn sort_by_key(entries: &mut [(&Key, &Value)], budget: &Budget) -> Result<()> {
    budget.step(entries.len() * 16)?;
    let mut failed = Ok(());
    entries.sort_by(|(Key(a), _), (Key(b), _)| match a.compare(b, budget) {
        Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
        Err(fault) => {
            failed = Err(fault);
            std::cmp::Ordering::Equal
        }
    });
    failed
}
