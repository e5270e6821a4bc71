//! `'%s' % values` and `'{}'.format(values)`.

use super::arguments::{Args, int};
use super::fault::{Fault, Result};
use super::limits::Budget;
use super::machine::Machine;
use super::strings;
use super::text::{Text, TextBuilder};
use super::value::{Key, Number, SeqKind, Value};

/// Maximum width of a field; [`Budget`] also limits the result.
const MAX_WIDTH: usize = 1 << 20;

/// A conversion specification for one value.
#[derive(Clone, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    is_alternate: bool,
    fills_zeros: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// As Python's `format % values`.
pub(crate) fn percent(format: &Text, values: &Value, budget: &Budget) -> Result<Text> {
    let mut values = Values::new(values);
    let all = format.as_str();
    let mut out = TextBuilder::default();
    let mut place = 0;
    while let Some(at) = all[place..].find('%') {
        out.push_slice(format, place..place + at);
        budget.step(1)?;
        place += at + 1;
        let mut parser = SpecParser {
            rest: &all[place..],
        };
        let name = parser.name()?;
        let spec = parser.percent_spec(&mut values)?;
        place = all.len() - parser.rest.len();
        budget.check(out.len() + spec.width + spec.precision.unwrap_or(0))?;
        if spec.kind == Some('%') {
            out.push_own("%");
            continue;
        }
        let value = match name {
            Some(name) => values.named(name)?,
            None => values.next()?,
        };
        let written = percent_value(&value, &spec, budget)?;
        budget.check(out.len() + written.len())?;
        out.push(&written);
    }
    out.push_slice(format, place..all.len());
    values.check_all_used()?;
    Ok(out.finish())
}

/// The right side of `%`.
struct Values {
    positional: Vec<Value>,
    next: usize,
    whole: Value,
}

impl Values {
    fn new(values: &Value) -> Self {
        let positional = match values {
            Value::Seq(seq) if matches!(seq.kind, SeqKind::Tuple | SeqKind::Group) => {
                seq.items.clone()
            }
            other => vec![other.clone()],
        };
        Self {
            positional,
            next: 0,
            whole: values.clone(),
        }
    }

    fn next(&mut self) -> Result<Value> {
        let value = self.positional.get(self.next).cloned();
        self.next += 1;
        value.ok_or_else(|| Fault::new("not enough arguments for format string"))
    }

    fn named(&mut self, name: &str) -> Result<Value> {
        self.next = self.positional.len();
        match &self.whole {
            Value::Dict(dict) => match dict.entries.get(name) {
                Some(value) => Ok(value.clone()),
                None => Err(Fault::new(format!("KeyError: '{name}'"))),
            },
            _ => Err(Fault::new("format requires a mapping")),
        }
    }

    fn check_all_used(&self) -> Result<()> {
        let may_be_unused = matches!(self.whole, Value::Dict(_))
            || matches!(&self.whole, Value::Seq(seq) if seq.kind == SeqKind::List);
        match self.next < self.positional.len() && !may_be_unused {
            true => Err(Fault::new(
                "not all arguments converted during string formatting",
            )),
            false => Ok(()),
        }
    }
}

struct SpecParser<'t> {
    rest: &'t str,
}

impl<'t> SpecParser<'t> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_here = self.peek() == Some(wanted);
        if is_here {
            self.next();
        }
        is_here
    }

    fn number(&mut self) -> Result<Option<usize>> {
        let len = self
            .rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(len);
        self.rest = rest;
        if digits.is_empty() {
            return Ok(None);
        }
        let number = digits.parse().ok().filter(|number| *number <= MAX_WIDTH);
        number
            .map(Some)
            .ok_or_else(|| Fault::new(format!("a width of {digits} is too large")))
    }

    /// `(name)`
    fn name(&mut self) -> Result<Option<&'t str>> {
        let Some(rest) = self.rest.strip_prefix('(') else {
            return Ok(None);
        };
        let Some((name, rest)) = rest.split_once(')') else {
            return Err(Fault::new("incomplete format key"));
        };
        self.rest = rest;
        Ok(Some(name))
    }

    /// Flags, width, precision and kind after `%`.
    fn percent_spec(&mut self, values: &mut Values) -> Result<Spec> {
        let mut spec = Spec::default();
        while let Some(flag) = self.peek().filter(|c| "-+ #0".contains(*c)) {
            self.next();
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.is_alternate = true,
                _ => spec.fills_zeros = true,
            }
        }
        spec.width = self.number_or_value(values)?.unwrap_or(0);
        if self.take('.') {
            spec.precision = Some(self.number_or_value(values)?.unwrap_or(0));
        }
        while self.peek().is_some_and(|c| matches!(c, 'h' | 'l' | 'L')) {
            self.next();
        }
        spec.kind = Some(self.next().ok_or_else(|| Fault::new("incomplete format"))?);
        Ok(spec)
    }

    fn number_or_value(&mut self, values: &mut Values) -> Result<Option<usize>> {
        if !self.take('*') {
            return self.number();
        }
        let number = int(&values.next()?, "a width")?;
        let number = usize::try_from(number)
            .ok()
            .filter(|number| *number <= MAX_WIDTH);
        number
            .map(Some)
            .ok_or_else(|| Fault::new("a width is negative or too large"))
    }

    /// The specification after the colon in braces.
    fn brace_spec(&mut self) -> Result<Spec> {
        let mut spec = Spec::default();
        let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
        let mut chars = self.rest.chars();
        let (first, second) = (chars.next(), chars.next());
        if second.is_some_and(is_align) {
            spec.fill = first;
            spec.align = second;
            self.rest = chars.as_str();
        } else if first.is_some_and(is_align) {
            spec.align = self.next();
        }
        spec.sign = self.peek().filter(|c| matches!(c, '+' | '-' | ' '));
        if spec.sign.is_some() {
            self.next();
        }
        spec.is_alternate = self.take('#');
        spec.fills_zeros = self.take('0');
        spec.width = self.number()?.unwrap_or(0);
        spec.grouping = self.peek().filter(|c| matches!(c, ',' | '_'));
        if spec.grouping.is_some() {
            self.next();
        }
        if self.take('.') {
            let precision = self.number()?;
            spec.precision =
                Some(precision.ok_or_else(|| Fault::new("Format specifier missing precision"))?);
        }
        spec.kind = self.next();
        match self.rest {
            "" => Ok(spec),
            _ => Err(Fault::new("Invalid format specifier")),
        }
    }
}

fn percent_value(value: &Value, spec: &Spec, budget: &Budget) -> Result<Text> {
    let kind = spec.kind.unwrap_or('s');
    let text = match kind {
        's' => value.to_text(budget)?,
        'r' | 'a' => value.to_repr(budget)?,
        'c' => match value {
            Value::Text(text) if text.num_chars() == 1 => text.clone(),
            other => {
                let code = u32::try_from(int(other, "%c")?)
                    .ok()
                    .and_then(char::from_u32);
                let c = code.ok_or_else(|| Fault::new("%c arg not in range(0x110000)"))?;
                // A character made from a number may come from foreign text.
                Text::foreign(c.to_string())
            }
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = percent_number(value, kind)?;
            let spec = Spec {
                align: spec.align.or((!spec.fills_zeros).then_some('>')),
                kind: Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind }),
                ..spec.clone()
            };
            return Ok(Text::own(written_number(number, &spec)?));
        }
        other => {
            return Err(Fault::new(format!(
                "unsupported format character '{other}'"
            )));
        }
    };
    let text = cut(&text, spec.precision.filter(|_| kind != 'c'));
    Ok(padded(&text, spec, spec.align.unwrap_or('>')))
}

fn percent_number(value: &Value, kind: char) -> Result<Number> {
    let name = value.type_name();
    let number = match value {
        Value::Undefined(problem) => return Err(Fault::new(&**problem)),
        other => other.number(),
    };
    match (number, kind) {
        (Some(Number::Float(number)), 'd' | 'i' | 'u') => Ok(Number::Int(number as i128)),
        (Some(Number::Float(_)), 'x' | 'X' | 'o') | (None, 'x' | 'X' | 'o') => Err(Fault::new(
            format!("%{kind} format: an integer is required, not {name}"),
        )),
        (Some(number), _) => Ok(number),
        (None, _) => Err(Fault::new(format!(
            "%{kind} format: a real number is required, not {name}"
        ))),
    }
}

/// As Python's `format.format(*positional, **named)`.
pub(crate) fn braces(machine: &mut Machine, format: &Text, args: &Args) -> Result<Text> {
    let all = format.as_str();
    let mut out = TextBuilder::default();
    let (mut place, mut next) = (0, 0);
    while let Some(at) = all[place..].find(['{', '}']) {
        out.push_slice(format, place..place + at);
        place += at;
        machine.budget.step(1)?;
        let rest = &all[place..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            out.push_slice(format, place..place + 1);
            place += 2;
            continue;
        }
        if rest.starts_with('}') {
            return Err(Fault::new("Single '}' encountered in format string"));
        }
        let end = field_end(rest).ok_or_else(|| Fault::new("expected '}' before end of string"))?;
        let written = field(machine, &rest[1..end], args, &mut next)?;
        machine.budget.check(out.len() + written.len())?;
        out.push(&written);
        place += end + 1;
    }
    out.push_slice(format, place..all.len());
    Ok(out.finish())
}

/// The position of the brace that closes the first brace of `text`.
fn field_end(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })
}

/// One replacement field, without its braces.
fn field(machine: &mut Machine, field: &str, args: &Args, next: &mut usize) -> Result<Text> {
    let (target, spec) = field.split_once(':').unwrap_or((field, ""));
    let (target, conversion) = match target.split_once('!') {
        Some((target, conversion)) => (target, Some(conversion)),
        None => (target, None),
    };
    let value = field_value(machine, target, args, next)?;
    let value = match conversion {
        None => value,
        Some("s") => Value::Text(value.to_text(&machine.budget)?),
        Some("r" | "a") => Value::Text(value.to_repr(&machine.budget)?),
        Some(other) => {
            return Err(Fault::new(format!(
                "Unknown conversion specifier '{other}'"
            )));
        }
    };
    // A width may be a field itself.
    let spec = match spec.contains('{') {
        true => braces_once(machine, spec, args, next)?,
        false => spec.to_owned(),
    };
    let spec = SpecParser { rest: &spec }.brace_spec()?;
    machine
        .budget
        .check(spec.width + spec.precision.unwrap_or(0))?;
    formatted(&value, &spec, &machine.budget)
}

fn braces_once(machine: &mut Machine, spec: &str, args: &Args, next: &mut usize) -> Result<String> {
    let (mut out, mut rest) = (String::new(), spec);
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| Fault::new("expected '}'"))?;
        out += before;
        out += field_value(machine, name, args, next)?
            .to_text(&machine.budget)?
            .as_str();
        rest = after;
    }
    Ok(out + rest)
}

/// The value of `name.attribute[item]`; without a name, the next argument.
fn field_value(
    machine: &mut Machine,
    target: &str,
    args: &Args,
    next: &mut usize,
) -> Result<Value> {
    let end = target.find(['.', '[']).unwrap_or(target.len());
    let (name, mut path) = target.split_at(end);
    let index = match name {
        "" => {
            *next += 1;
            Some(*next - 1)
        }
        name => name.parse::<usize>().ok(),
    };
    let found = match index {
        Some(index) => args.positional.get(index),
        None => args
            .named
            .iter()
            .find(|(key, _)| **key == *name)
            .map(|(_, value)| value),
    };
    let mut value = found.cloned().ok_or_else(|| {
        Fault::new(format!(
            "format() has no argument '{}'",
            index.map_or(name.to_owned(), |i| i.to_string())
        ))
    })?;
    while !path.is_empty() {
        machine.budget.step(1)?;
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = machine.attribute(&value, &rest[..end].into())?;
            path = &rest[end..];
        } else {
            let rest = path.strip_prefix('[').unwrap_or(path);
            let (key, rest) = rest
                .split_once(']')
                .ok_or_else(|| Fault::new("Missing ']' in format string"))?;
            let key = match key.parse::<i128>() {
                Ok(index) => Value::Int(index),
                Err(_) => Value::text(key),
            };
            value = machine.item(&value, &key)?;
            path = rest;
        }
    }
    Ok(value)
}

/// As Python's `format(value, spec)`.
fn formatted(value: &Value, spec: &Spec, budget: &Budget) -> Result<Text> {
    let is_number_kind = spec.kind.is_some_and(|kind| kind != 's');
    match value {
        Value::Bool(_) if !is_number_kind && spec.kind.is_none() && spec.width == 0 => {
            value.to_text(budget)
        }
        Value::Bool(_) | Value::Int(_) | Value::Float(_) if spec.kind != Some('s') => {
            let number = value.number().unwrap_or(Number::Int(0));
            if let (Number::Int(code), Some('c')) = (number, spec.kind) {
                let c = u32::try_from(code).ok().and_then(char::from_u32);
                let c = c.ok_or_else(|| Fault::new("%c arg not in range(0x110000)"))?;
                return Ok(padded(&Text::foreign(c.to_string()), spec, '<'));
            }
            let spec = Spec {
                align: spec.align.or((!spec.fills_zeros).then_some('>')),
                ..spec.clone()
            };
            written_number(number, &spec).map(Text::own)
        }
        value if is_number_kind => Err(Fault::new(format!(
            "Unknown format code '{}' for object of type '{}'",
            spec.kind.unwrap_or_default(),
            value.type_name()
        ))),
        value => {
            let text = value.to_text(budget)?;
            Ok(padded(
                &cut(&text, spec.precision),
                spec,
                spec.align.unwrap_or('<'),
            ))
        }
    }
}

/// At most `precision` characters.
fn cut(text: &Text, precision: Option<usize>) -> Text {
    match precision {
        Some(precision) => text.slice(0..strings::byte_place(text.as_str(), precision)),
        None => text.clone(),
    }
}

fn padded(text: &Text, spec: &Spec, align: char) -> Text {
    let missing = spec.width.saturating_sub(text.num_chars());
    let fill = spec.fill.unwrap_or(' ').to_string();
    let left = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    let mut out = TextBuilder::default();
    out.push_own(&fill.repeat(left));
    out.push(text);
    out.push_own(&fill.repeat(missing - left));
    out.finish()
}

/// A number with its sign, grouped digits, and padding.
fn written_number(number: Number, spec: &Spec) -> Result<String> {
    let (is_negative, prefix, digits) = match number {
        Number::Int(number) => match spec.kind {
            None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b') => {
                let (prefix, digits) = integer_digits(number.unsigned_abs(), spec);
                (number < 0, prefix, digits)
            }
            _ => float_parts(number as f64, spec)?,
        },
        Number::Float(number) => float_parts(number, spec)?,
    };
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let digits = match spec.grouping {
        Some(separator) => grouped(&digits, separator),
        None => digits,
    };
    let head = format!("{sign}{prefix}");
    let missing = spec
        .width
        .saturating_sub(head.len() + digits.chars().count());
    let align = spec.align.unwrap_or('=');
    let fill = spec.fill.unwrap_or(if align == '=' && spec.fills_zeros {
        '0'
    } else {
        ' '
    });
    let pad = |count: usize| fill.to_string().repeat(count);
    Ok(match align {
        '<' => format!("{head}{digits}{}", pad(missing)),
        '^' => format!(
            "{}{head}{digits}{}",
            pad(missing / 2),
            pad(missing - missing / 2)
        ),
        '=' => format!("{head}{}{digits}", pad(missing)),
        _ => format!("{}{head}{digits}", pad(missing)),
    })
}

fn integer_digits(number: u128, spec: &Spec) -> (&'static str, String) {
    let (prefix, digits) = match spec.kind {
        Some('x') => ("0x", format!("{number:x}")),
        Some('X') => ("0X", format!("{number:X}")),
        Some('o') => ("0o", format!("{number:o}")),
        Some('b') => ("0b", format!("{number:b}")),
        _ => ("", number.to_string()),
    };
    let digits = match spec.precision {
        Some(precision) => format!("{digits:0>precision$}"),
        None => digits,
    };
    (if spec.is_alternate { prefix } else { "" }, digits)
}

/// The sign, an empty prefix and the digits of a float.
fn float_parts(number: f64, spec: &Spec) -> Result<(bool, &'static str, String)> {
    let is_negative = number.is_sign_negative() && !number.is_nan();
    let size = number.abs();
    let precision = spec.precision.unwrap_or(6);
    let digits = match spec.kind {
        _ if !size.is_finite() => strings::float(size),
        Some('f' | 'F') if precision == 0 && spec.is_alternate => format!("{size:.0}."),
        Some('f' | 'F') => format!("{size:.precision$}"),
        Some('%') => format!("{:.precision$}%", size * 100.0),
        Some('e') => scientific(size, precision),
        Some('E') => scientific(size, precision).to_uppercase(),
        Some('g' | 'n') => general(size, precision, 0, spec.is_alternate),
        Some('G') => general(size, precision, 0, spec.is_alternate).to_uppercase(),
        None => match spec.precision {
            Some(precision) => general(size, precision, 1, spec.is_alternate),
            None => strings::float(size),
        },
        Some(other) => {
            return Err(Fault::new(format!(
                "Unknown format code '{other}' for object of type 'float'"
            )));
        }
    };
    Ok((is_negative, "", digits))
}

fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The shorter of fixed and scientific, with `precision` digits; `places` at least after the point.
/// Zeros at the end stay if `keeps_zeros`.
fn general(number: f64, precision: usize, places: usize, keeps_zeros: bool) -> String {
    let precision = precision.max(1);
    let text = format!("{number:.*e}", precision - 1);
    let exponent: i32 = text
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or(0);
    let trimmed = |text: &str| {
        if keeps_zeros {
            return if text.contains('.') {
                text.to_owned()
            } else {
                format!("{text}.")
            };
        }
        let short = text.trim_end_matches('0').trim_end_matches('.');
        if text.contains('.') {
            short.to_owned()
        } else {
            text.to_owned()
        }
    };
    let limit = precision as i32 - places.min(1) as i32;
    if (-4..limit.max(1)).contains(&exponent) || number == 0.0 {
        let decimals = usize::try_from(precision as i32 - 1 - exponent).unwrap_or(0);
        let fixed = trimmed(&format!("{number:.decimals$}"));
        return if places > 0 && !fixed.contains('.') {
            fixed + ".0"
        } else {
            fixed
        };
    }
    let text = scientific(number, precision - 1);
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
    format!("{}e{exponent}", trimmed(digits))
}

/// The digits before the point in groups of three.
fn grouped(digits: &str, separator: char) -> String {
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, c) in digits[..end].chars().enumerate() {
        if index > 0 && (end - index).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(c);
    }
    out + &digits[end..]
}

/// The keyword arguments of `format` as a map, if there are any.
pub(crate) fn filter_values(args: Args) -> Result<Value> {
    match (args.positional.is_empty(), args.named.is_empty()) {
        (false, false) => Err(Fault::new(
            "can't handle positional and keyword arguments at the same time",
        )),
        (true, false) => {
            let entries = args.named.into_iter();
            Value::dict(
                entries
                    .map(|(name, value)| (Key::text(Text::own(name)), value))
                    .collect(),
            )
        }
        _ => Value::tuple(args.positional),
    }
}
