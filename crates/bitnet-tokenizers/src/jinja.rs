//! A chat template in Jinja, run as Hugging Face's transformers run it, within bounds.
//!
//! The instructions a template may execute and the text it may write are bounded. What one value
//! inside it may grow to is not: a hostile template that doubles a string in a loop is stopped only
//! when its fuel is spent or memory is.

use std::fmt::Write as _;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;

use crate::Tokenizer;
use crate::chat::{ChatMessage, RenderOptions, RenderedChat, token_text};
use crate::error::{Error, Result};
use crate::special::{SpecialToken, SpecialTokens};

/// Instructions a template may execute, and as many more a message.
const FUEL: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 10_000;
/// Bytes a template may write, beside a multiple of what it is given.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
const MAX_OUTPUT_RATIO: usize = 8;
/// Characters that Unicode keeps for internal use; the first that occurs nowhere marks places in
/// contents.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';
const NAME: &str = "chat_template";

/// A compiled template and what it needs of its tokenizer.
pub(crate) struct Jinja {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
    bos: String,
    eos: String,
    unknown: String,
    padding: String,
}

impl Jinja {
    /// Compiles a template.
    pub(crate) fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| template_error(&error))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| template_error(&error))?;
        let text = |id| token_text(tokenizer, id);
        Ok(Self {
            environment,
            source: source.to_owned(),
            special: tokenizer.special_tokens().retain(SpecialToken::is_guarded),
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
            unknown: text(tokenizer.unknown()),
            padding: text(tokenizer.padding()),
        })
    }

    /// The template as it was given.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation whose roles are plain words.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        options: RenderOptions<'_>,
    ) -> Result<RenderedChat> {
        let mark = self.unused_mark(messages, options.tools)?;
        let marked = |text: &str| marked(&self.special, mark, text);
        let messages: Vec<_> = messages
            .iter()
            .map(|message| ChatMessage::new(&*message.role, marked(&message.content)))
            .collect();
        let tools = options.tools.map(|tools| map_strings(tools, &marked));

        let mut environment = self.environment.clone();
        let given = messages
            .iter()
            .map(|message| message.content.len())
            .sum::<usize>();
        let given = given + tools.as_ref().map_or(0, |tools| tools.to_string().len());
        environment.set_fuel(Some(
            FUEL + FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64),
        ));
        environment.add_function("strftime_now", move |format: String| {
            strftime(options.now, &format)
        });
        let template = environment
            .get_template(NAME)
            .map_err(|error| template_error(&error))?;
        let context = context! {
            messages => Value::from(Serde(&messages)),
            tools => tools.as_ref().map(|tools| Value::from(Serde(tools))),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
            unk_token => &self.unknown,
            pad_token => &self.padding,
        };
        let mut output = Bounded {
            bytes: Vec::new(),
            max: MAX_OUTPUT_BYTES + MAX_OUTPUT_RATIO * given,
        };
        // minijinja 3.0.5 panics on some slices with a negative step, such as those of an empty
        // list; a template comes from a file, so that must be an error like any other. What the
        // panic leaves behind is dropped here.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            template.render_captured_to(context, &mut output)
        }))
        .map_err(|_| Error::Template("the template made its interpreter fail".to_owned()))?
        .map_err(|error| template_error(&error))?;
        let text =
            String::from_utf8(output.bytes).map_err(|error| Error::Template(error.to_string()))?;
        Ok(unmarked(&text, mark))
    }

    /// A character that neither the template nor what it is given contains.
    fn unused_mark(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
    ) -> Result<char> {
        let tools = tools.map(ToString::to_string).unwrap_or_default();
        let occurs = |mark: char| {
            let mut contents = messages.iter().map(|message| &message.content);
            contents.any(|content| content.contains(mark))
                || tools.contains(mark)
                || self.source.contains(mark)
        };
        MARKS.clone().find(|&mark| !occurs(mark)).ok_or_else(|| {
            Error::Template("the messages contain every one of U+FDD0 to U+FDEF".to_owned())
        })
    }
}

/// `text` with `mark` before each place where a control token begins.
fn marked(special: &SpecialTokens, mark: char, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = 0;
    for place in special.guarded_starts(text) {
        out.push_str(&text[start..place]);
        out.push(mark);
        start = place;
    }
    out.push_str(&text[start..]);
    out
}

/// Takes the marks away and guards the character after each.
fn unmarked(text: &str, mark: char) -> RenderedChat {
    let mut out = String::with_capacity(text.len());
    let mut guards = Vec::new();
    for (index, part) in text.split(mark).enumerate() {
        if let Some(c) = part.chars().next().filter(|_| index > 0) {
            guards.push(out.len()..out.len() + c.len_utf8());
        }
        out.push_str(part);
    }
    RenderedChat::new(out, guards)
}

/// The value with all strings in it, keys too, mapped.
fn map_strings(value: &serde_json::Value, map: &impl Fn(&str) -> String) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Json::String(text) => Json::String(map(text)),
        Json::Array(items) => items.iter().map(|item| map_strings(item, map)).collect(),
        Json::Object(entries) => entries
            .iter()
            .map(|(key, item)| (map(key), map_strings(item, map)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// A writer that refuses to grow beyond a bound.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max {
            return Err(io::Error::other(format!(
                "the template writes more than {} bytes",
                self.max
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn template_error(error: &minijinja::Error) -> Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    Error::Template(text)
}

/// `tojson` as transformers define it: JSON as Python writes it, with nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _ = (
        options.get::<Option<bool>>("ensure_ascii")?,
        options.get::<Option<bool>>("sort_keys")?,
    );
    options.assert_all_used()?;
    let bad = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(
                    &mut out, formatter,
                ))
                .map_err(bad)?;
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut out,
                PythonFormatter,
            ))
            .map_err(bad)?,
    }
    String::from_utf8(out)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// One line, with a space after each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// The time in UTC, as C's `strftime` writes it.
fn strftime(now: Option<i64>, format: &str) -> Result<String, minijinja::Error> {
    let fail = |message: String| minijinja::Error::new(ErrorKind::InvalidOperation, message);
    let now = now.ok_or_else(|| fail("strftime_now: the time was not given".to_owned()))?;
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days + 4).rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let _ = match chars.next() {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year.rem_euclid(100)),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('%') => write!(out, "%"),
            other => {
                return Err(fail(format!(
                    "strftime_now: %{} is not supported",
                    other.unwrap_or(' ')
                )));
            }
        };
    }
    Ok(out)
}

/// (year, month, day) of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that a leap day is a year's last.
    let days = days.clamp(-1 << 40, 1 << 40) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |now, format| strftime(Some(now), format).expect("a date");
        assert_eq!(
            at(0, "%A %d %B %Y %H:%M:%S"),
            "Thursday 01 January 1970 00:00:00"
        );
        assert_eq!(
            at(1_709_210_096, "%a %e %b %y %I%p %T"),
            "Thu 29 Feb 24 12PM 12:34:56"
        );
        assert_eq!(at(-1, "%F %T"), "1969-12-31 23:59:59");
        assert!(strftime(None, "%Y").is_err());
    }
}
