//! `value | filter`: jinja2's filters, and `tojson` as transformers defines it.

use super::arguments::{Args, flag, int, int_or, required, text, width};
use super::ast::Name;
use super::fault::{Fault, Result};
use super::machine::Machine;
use super::methods::stripped;
use super::text::Text;
use super::value::{Number, Value};
use super::{format, json, operators, strings};

/// The names of all filters.
const NAMES: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

pub(crate) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

impl Machine {
    pub(crate) fn filter(&mut self, name: &str, value: Value, args: Args) -> Result<Value> {
        self.budget.read(value.shallow_bytes())?;
        let value = match name {
            "default" | "d" => default(value, args)?,
            "tojson" => self.to_json(&value, args)?,
            "string" | "safe" => {
                args.none(name)?;
                Value::Text(value.to_text(&self.budget)?)
            }
            "length" | "count" => {
                args.none(name)?;
                Value::Int(value.length()? as i128)
            }
            "abs" => {
                args.none(name)?;
                absolute(&value)?
            }
            "int" => self.to_int(&value, args)?,
            "float" => to_float(&value, args)?,
            "round" => round(&value, args)?,
            "attr" => {
                let [attribute] = args.bind(name, ["name"])?;
                let attribute = required(attribute, name, "name")?;
                let attribute: Name = text(&attribute, "the name of an attribute")?
                    .as_str()
                    .into();
                match &value {
                    // An item of a map is not an attribute.
                    Value::Dict(_) if !super::methods::has(&value, &attribute) => {
                        Value::undefined(format!("'dict object' has no attribute '{attribute}'"))
                    }
                    value => self.attribute(value, &attribute)?,
                }
            }
            "filesizeformat" => file_size(&value, args)?,
            "pprint" => {
                args.none(name)?;
                Value::Text(value.to_repr(&self.budget)?)
            }
            "batch" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "list"
            | "map" | "max" | "min" | "random" | "reject" | "rejectattr" | "reverse" | "select"
            | "selectattr" | "slice" | "sort" | "sum" | "unique" => {
                self.sequence_filter(name, &value, args)?
            }
            _ if exists(name) => self.text_filter(name, &value, args)?,
            _ => return Err(Fault::new(format!("No filter named '{name}'."))),
        };
        self.budget.built(value.shallow_bytes())?;
        Ok(value)
    }

    fn text_filter(&mut self, name: &str, value: &Value, args: Args) -> Result<Value> {
        match name {
            "urlencode" => {
                args.none(name)?;
                return self.url_encode(value).map(Value::Text);
            }
            "xmlattr" => return self.xml_attributes(value, args),
            "indent" | "truncate" | "wordwrap" => return self.wrapping_filter(name, value, args),
            _ => {}
        }
        let object = value.to_text(&self.budget)?;
        match name {
            "upper" | "lower" | "capitalize" => {
                args.none(name)?;
                self.method(&Value::Text(object), name, Args::default())
            }
            "title" => {
                args.none(name)?;
                Ok(Value::Text(object.derive(title(object.as_str()))))
            }
            "trim" => {
                let [chars] = args.bind(name, ["chars"])?;
                let chars = match &chars {
                    None | Some(Value::None) => None,
                    Some(chars) => Some(text(chars, "the characters to trim")?),
                };
                Ok(Value::Text(stripped(&object, chars, true, true)))
            }
            "replace" => {
                let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
                let old = required(old, name, "old")?.to_text(&self.budget)?;
                let new = required(new, name, "new")?.to_text(&self.budget)?;
                let count = count.filter(|count| !matches!(count, Value::None));
                let count = int_or(count.as_ref(), -1, "the count of replace")?;
                self.replaced(&object, &old, &new, count).map(Value::Text)
            }
            "center" => {
                let [width] = args.bind(name, ["width"])?;
                let width = width.unwrap_or(Value::Int(80));
                self.method(
                    &Value::Text(object),
                    "center",
                    Args::positional(vec![width]),
                )
            }
            "format" => {
                let values = format::filter_values(args)?;
                format::percent(&object, &values, &self.budget).map(Value::Text)
            }
            "escape" | "e" | "forceescape" => {
                args.none(name)?;
                self.budget.check(object.len().saturating_mul(5))?;
                Ok(Value::Text(object.map(escaped)))
            }
            "striptags" => {
                args.none(name)?;
                Ok(Value::Text(object.derive(strip_tags(object.as_str()))))
            }
            _ => {
                args.none(name)?;
                let is_word = |c: char| strings::is_letter(c) || strings::is_numeric(c) || c == '_';
                let words = object.as_str().split(|c| !is_word(c));
                Ok(Value::Int(
                    words.filter(|word| !word.is_empty()).count() as i128
                ))
            }
        }
    }

    fn to_json(&self, value: &Value, args: Args) -> Result<Value> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort_keys] = args.bind("tojson", names)?;
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Text(indent)) => Some(indent),
            Some(other) => {
                let spaces = width(Some(&other), 0, "the indent of tojson")?;
                self.budget.check(spaces)?;
                Some(Text::own(" ".repeat(spaces)))
            }
        };
        let (item_separator, key_separator) = match separators {
            None | Some(Value::None) => {
                let comma = if indent.is_some() { "," } else { ", " };
                (Text::own(comma), Text::own(": "))
            }
            Some(pair) => {
                let pair = pair.items(&self.budget)?;
                let [item, key] = &pair[..] else {
                    return Err(Fault::new("the separators of tojson must be two strings"));
                };
                (
                    text(item, "a separator")?.clone(),
                    text(key, "a separator")?.clone(),
                )
            }
        };
        let layout = json::JsonStyle {
            is_ascii: flag(ascii.as_ref(), false),
            indent,
            item_separator,
            key_separator,
            sorts_keys: flag(sort_keys.as_ref(), false),
        };
        json::dumps(value, &layout, &self.budget).map(Value::Text)
    }

    fn to_int(&self, value: &Value, args: Args) -> Result<Value> {
        let [default, base] = args.bind("int", ["default", "base"])?;
        let default = default.unwrap_or(Value::Int(0));
        let base = int_or(base.as_ref(), 10, "a base")?;
        Ok(match value {
            Value::Undefined(problem) => return Err(Fault::new(&**problem)),
            Value::Text(text) => {
                let text = text.as_str();
                let whole = parse_int(text, base).map(Value::Int);
                let float = || parse_float(text).and_then(truncated);
                whole.or_else(float).unwrap_or(default)
            }
            other => match other.number() {
                Some(Number::Int(number)) => Value::Int(number),
                Some(Number::Float(number)) => truncated(number).unwrap_or(default),
                None => default,
            },
        })
    }

    fn url_encode(&self, value: &Value) -> Result<Text> {
        let pairs = match value {
            Value::Dict(dict) => dict
                .entries
                .iter()
                .map(|(key, value)| (key.0.clone(), value.clone()))
                .collect(),
            Value::Text(_) => Vec::new(),
            other if other.is_iterable() => {
                let mut pairs = Vec::new();
                for pair in other.items(&self.budget)?.iter() {
                    match &pair.items(&self.budget)?[..] {
                        [key, value] => pairs.push((key.clone(), value.clone())),
                        _ => return Err(Fault::new("urlencode takes pairs")),
                    }
                }
                pairs
            }
            _ => Vec::new(),
        };
        let quoted = |value: &Value, in_query| {
            let text = value.to_text(&self.budget)?;
            self.budget.check(text.len().saturating_mul(3))?;
            Ok(text.derive(url_quote(text.as_str(), in_query)))
        };
        if matches!(value, Value::Text(_)) || !value.is_iterable() {
            return quoted(value, false);
        }
        let parts = pairs.iter().map(|(key, value)| {
            let pair = [Ok(quoted(key, true)?), Ok(quoted(value, true)?)];
            self.joined(&Text::own("="), pair.into_iter())
        });
        self.joined(&Text::own("&"), parts)
    }

    fn xml_attributes(&self, value: &Value, args: Args) -> Result<Value> {
        let [autospace] = args.bind("xmlattr", ["autospace"])?;
        let Value::Dict(dict) = value else {
            return Err(Fault::new(format!(
                "xmlattr takes a map, not {}",
                value.type_name()
            )));
        };
        let mut out = super::text::TextBuilder::default();
        for (super::Key(key), value) in &dict.entries {
            if matches!(value, Value::None | Value::Undefined(_)) {
                continue;
            }
            let key = text(key, "the name of an attribute")?;
            let is_bad = |c: char| c.is_ascii_whitespace() || matches!(c, '\x0B' | '/' | '>' | '=');
            if key.as_str().contains(is_bad) {
                let name = strings::repr(key.as_str());
                return Err(Fault::new(format!(
                    "Invalid character in attribute name: {name}"
                )));
            }
            let value = value.to_text(&self.budget)?;
            self.budget
                .check(out.len() + 5 * (key.len() + value.len()))?;
            if out.len() > 0 || flag(autospace.as_ref(), true) {
                out.push_own(" ");
            }
            out.push(&key.map(escaped));
            out.push_own("=\"");
            out.push(&value.map(escaped));
            out.push_own("\"");
        }
        Ok(Value::Text(out.finish()))
    }
}

fn default(value: Value, args: Args) -> Result<Value> {
    let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
    let is_missing = match &value {
        Value::Undefined(_) => true,
        value => flag(boolean.as_ref(), false) && !value.is_true(),
    };
    Ok(if is_missing {
        default.unwrap_or_else(|| Value::text(""))
    } else {
        value
    })
}

fn absolute(value: &Value) -> Result<Value> {
    match value.number() {
        Some(Number::Int(number)) if number < 0 => operators::negative(value),
        Some(Number::Int(number)) => Ok(Value::Int(number)),
        Some(Number::Float(number)) => Ok(Value::Float(number.abs())),
        None => Err(match value {
            Value::Undefined(problem) => Fault::new(&**problem),
            other => Fault::new(format!(
                "bad operand type for abs(): '{}'",
                other.type_name()
            )),
        }),
    }
}

/// As Python's `int(text, base)`.
fn parse_int(text: &str, base: i64) -> Option<i128> {
    let text = text.trim_matches(strings::is_space);
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { -1 } else { 1 }, digits),
        None => (1, text),
    };
    let prefixed = |prefix: &str| {
        let start = digits
            .get(..2)
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        start.then(|| digits[2..].strip_prefix('_').unwrap_or(&digits[2..]))
    };
    let (radix, digits) = match base {
        2 => (2, prefixed("0b").unwrap_or(digits)),
        8 => (8, prefixed("0o").unwrap_or(digits)),
        16 => (16, prefixed("0x").unwrap_or(digits)),
        0 => [(2, "0b"), (8, "0o"), (16, "0x")]
            .into_iter()
            .find_map(|(radix, prefix)| Some((radix, prefixed(prefix)?)))
            .unwrap_or((10, digits)),
        _ => (
            u32::try_from(base)
                .ok()
                .filter(|base| (2..=36).contains(base))?,
            digits,
        ),
    };
    let is_bad = |digits: &str| {
        digits.starts_with(['_', '+', '-']) || digits.ends_with('_') || digits.contains("__")
    };
    if is_bad(digits) {
        return None;
    }
    let number = i128::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    number.checked_mul(sign)
}

/// As Python's `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(strings::is_space);
    let bare = text
        .strip_prefix(['+', '-'])
        .unwrap_or(text)
        .to_ascii_lowercase();
    let is_word = matches!(bare.as_str(), "nan" | "inf" | "infinity");
    let is_number = bare.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (is_word || is_number).then(|| text.replace('_', "").parse().ok())?
}

fn truncated(number: f64) -> Option<Value> {
    number.is_finite().then_some(Value::Int(number as i128))
}

fn to_float(value: &Value, args: Args) -> Result<Value> {
    let [default] = args.bind("float", ["default"])?;
    let default = default.unwrap_or(Value::Float(0.0));
    Ok(match value {
        Value::Undefined(problem) => return Err(Fault::new(&**problem)),
        Value::Text(text) => parse_float(text.as_str()).map_or(default, Value::Float),
        other => other
            .number()
            .map_or(default, |number| Value::Float(number.as_f64())),
    })
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = int_or(precision.as_ref(), 0, "a precision")?.clamp(-400, 400) as i32;
    let method = match &method {
        None => "common",
        Some(method) => text(method, "the method of round")?.as_str(),
    };
    let number = match (value.number(), value) {
        (Some(number), _) => number,
        (None, Value::Undefined(problem)) => return Err(Fault::new(&**problem)),
        (None, other) => {
            return Err(Fault::new(format!(
                "type {} doesn't define __round__",
                other.type_name()
            )));
        }
    };
    let scale = 10_f64.powi(precision);
    let float = number.as_f64();
    match (method, number) {
        ("common", Number::Int(number)) if precision >= 0 => Ok(Value::Int(number)),
        ("common", Number::Int(number)) => {
            Ok(Value::Int(round_integer(number, precision.unsigned_abs())))
        }
        // The result is exact in decimals; ties go to even.
        ("common", Number::Float(_)) if precision >= 0 && float.is_finite() => {
            let text = format!("{float:.*}", precision as usize);
            Ok(Value::Float(text.parse().unwrap_or(float)))
        }
        ("common", Number::Float(_)) => Ok(Value::Float((float * scale).round_ties_even() / scale)),
        ("ceil", _) => Ok(Value::Float((float * scale).ceil() / scale)),
        ("floor", _) => Ok(Value::Float((float * scale).floor() / scale)),
        _ => Err(Fault::new("method must be common, ceil or floor")),
    }
}

/// To a multiple of a power of ten, halves to even.
fn round_integer(number: i128, zeros: u32) -> i128 {
    let Some(unit) = 10_i128.checked_pow(zeros) else {
        return 0;
    };
    let (down, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
    let up = rest * 2 > unit || rest * 2 == unit && down % 2 != 0;
    (down + i128::from(up)).saturating_mul(unit)
}

fn file_size(value: &Value, args: Args) -> Result<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"])?;
    let is_binary = flag(binary.as_ref(), false);
    let bytes = match to_float(value, Args::positional(vec![Value::None]))? {
        Value::Float(bytes) => bytes,
        _ => return Err(Fault::new("filesizeformat takes a number")),
    };
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    let text = if bytes == 1.0 {
        "1 Byte".to_owned()
    } else if bytes < base {
        format!("{} Bytes", bytes as i128)
    } else {
        let units = if is_binary {
            ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
        } else {
            ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
        };
        let fits = |power: &usize| bytes < base.powi(*power as i32 + 2);
        let power = (0..units.len()).find(fits).unwrap_or(units.len() - 1);
        format!(
            "{:.1} {}",
            base * bytes / base.powi(power as i32 + 2),
            units[power]
        )
    };
    Ok(Value::text(text))
}

/// As jinja2's `title`: words begin after white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let ends_word = |c: char| strings::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let (mut out, mut begins) = (String::with_capacity(text.len()), true);
    for c in text.chars() {
        match begins {
            true => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        begins = ends_word(c);
    }
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Removes comments and tags, collapses white space, and decodes the common entities.
fn strip_tags(text: &str) -> String {
    let mut out = text.to_owned();
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let (mut kept, mut rest) = (String::with_capacity(out.len()), out.as_str());
        while let Some((before, after)) = rest.split_once(open) {
            let Some((_, after)) = after.split_once(close) else {
                break;
            };
            kept += before;
            rest = after;
        }
        kept += rest;
        out = kept;
    }
    let words: Vec<_> = out
        .split(strings::is_space)
        .filter(|word| !word.is_empty())
        .collect();
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&quot;", "\""),
    ];
    let out = words.join(" ");
    let out = entities
        .iter()
        .fold(out, |out, (entity, c)| out.replace(entity, c));
    out.replace("&amp;", "&")
}

fn url_quote(text: &str, in_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' if in_query => out.push('+'),
            b'/' if !in_query => out.push('/'),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte));
            }
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// A count that must be positive.
pub(crate) fn positive_count(value: &Value, what: &str) -> Result<usize> {
    match int(value, what)? {
        count @ 1.. => Ok(count as usize),
        other => Err(Fault::new(format!("{what} must be positive, not {other}"))),
    }
}
