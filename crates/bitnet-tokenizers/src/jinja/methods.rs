//! Python's methods of strings, lists and maps that the sandbox allows.

use indexmap::IndexMap;

use super::arguments::{Args, flag, int, int_or, required, text, width};
use super::fault::{Fault, Result};
use super::format;
use super::machine::Machine;
use super::operators::slice;
use super::strings::{self, is_space};
use super::text::{Text, TextBuilder};
use super::value::{Key, SeqKind, Value};

const TEXT: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const DICT: &[&str] = &["copy", "get", "items", "keys", "values"];

/// Whether a value has a method with this name.
pub(crate) fn has(object: &Value, name: &str) -> bool {
    match object {
        Value::Text(_) => TEXT.contains(&name),
        Value::Dict(_) => DICT.contains(&name),
        Value::Seq(seq) => match seq.kind {
            SeqKind::List => matches!(name, "index" | "count" | "copy"),
            _ => seq.kind.has_indexes() && matches!(name, "index" | "count"),
        },
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        Value::Float(_) => name == "is_integer",
        Value::Function(super::value::Function::Dict) => name == "fromkeys",
        _ => false,
    }
}

impl Machine {
    /// Calls the method `name` of `object`, which [`has`] it.
    pub(crate) fn method(&mut self, object: &Value, name: &str, args: Args) -> Result<Value> {
        match object {
            Value::Text(text) => self.text_method(text, name, args),
            Value::Dict(_) => self.dict_method(object, name, args),
            Value::Seq(_) => self.list_method(object, name, args),
            Value::Loop(state) => self.loop_method(state, name, args),
            Value::Cycler(cycler) => Self::cycler_method(cycler, name, args),
            Value::Float(number) => {
                args.none(name)?;
                Ok(Value::Bool(number.fract() == 0.0))
            }
            _ => self.dict_from_keys(args),
        }
    }

    fn dict_from_keys(&mut self, args: Args) -> Result<Value> {
        let [keys, value] = args.bind("fromkeys", ["iterable", "value"])?;
        let keys = required(keys, "fromkeys", "iterable")?;
        let value = value.unwrap_or(Value::None);
        let mut entries = IndexMap::new();
        for key in keys.items(&self.budget)?.iter() {
            entries.insert(Key::new(key)?, value.clone());
        }
        Value::dict(entries)
    }

    fn dict_method(&mut self, object: &Value, name: &str, args: Args) -> Result<Value> {
        let Value::Dict(dict) = object else {
            return Err(Fault::new("not a map"));
        };
        if name == "get" {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let key = Key::new(&required(key, name, "key")?)?;
            let found = dict.entries.get(&key).cloned();
            return Ok(found.or(default).unwrap_or(Value::None));
        }
        args.none(name)?;
        self.budget.step(dict.entries.len())?;
        let keys = || dict.entries.keys().map(|Key(key)| key.clone());
        match name {
            "keys" => Value::seq(SeqKind::Keys, keys().collect()),
            "values" => Value::seq(SeqKind::Values, dict.entries.values().cloned().collect()),
            "items" => {
                let pairs = keys().zip(dict.entries.values());
                let pairs = pairs.map(|(key, value)| Value::tuple(vec![key, value.clone()]));
                Value::seq(SeqKind::Items, pairs.collect::<Result<_>>()?)
            }
            _ => Ok(object.clone()),
        }
    }

    fn list_method(&mut self, object: &Value, name: &str, args: Args) -> Result<Value> {
        let Value::Seq(list) = object else {
            return Err(Fault::new("not a list"));
        };
        if name == "copy" {
            args.none(name)?;
            return Ok(object.clone());
        }
        let [item, start, stop] = args.bind(name, ["value", "start", "stop"])?;
        let item = required(item, name, "value")?;
        let length = list.items.len();
        let bound = |bound: Option<Value>, default| match bound {
            None => Ok(default),
            Some(bound) => int(&bound, "a bound of index()").map(|bound| from_end(bound, length)),
        };
        let (start, stop) = (bound(start, 0)?, bound(stop, length)?);
        let mut count = 0;
        for (index, other) in list.items.iter().enumerate().take(stop).skip(start) {
            self.budget.step(1)?;
            if !other.equals(&item, &self.budget)? {
                continue;
            }
            if name == "index" {
                return Ok(Value::Int(index as i128));
            }
            count += 1;
        }
        match name {
            "count" => Ok(Value::Int(count)),
            _ => {
                let item = item.to_repr(&self.budget)?;
                Err(Fault::new(format!("{} is not in list", item.as_str())))
            }
        }
    }

    fn text_method(&mut self, object: &Text, name: &str, args: Args) -> Result<Value> {
        self.budget.read(object.len())?;
        match name {
            "strip" | "lstrip" | "rstrip" => strip(object, name, args),
            "split" | "rsplit" => self.split(object, name, args),
            "splitlines" => {
                let [keep_ends] = args.bind(name, ["keepends"])?;
                let lines = strings::lines(object.as_str(), flag(keep_ends.as_ref(), false));
                Value::list(
                    lines
                        .into_iter()
                        .map(|line| Value::Text(object.slice(line)))
                        .collect(),
                )
            }
            "partition" | "rpartition" => partition(object, name, args),
            "removeprefix" | "removesuffix" => remove_end(object, name, args),
            "startswith" | "endswith" => self.has_end(object, name, args),
            "replace" => {
                let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
                let (old, new) = (required(old, name, "old")?, required(new, name, "new")?);
                let count = int_or(count.as_ref(), -1, "the count of replace()")?;
                let (old, new) = (
                    text(&old, "what is replaced")?,
                    text(&new, "a replacement")?,
                );
                self.replaced(object, old, new, count).map(Value::Text)
            }
            "find" | "rfind" | "index" | "rindex" | "count" => self.find(object, name, args),
            "join" => {
                let [items] = args.bind(name, ["iterable"])?;
                let items = required(items, name, "iterable")?;
                let items = items.items(&self.budget)?.into_owned();
                let items = items
                    .iter()
                    .map(|item| text(item, "an item of join()").cloned());
                self.joined(object, items).map(Value::Text)
            }
            "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => self.pad(object, name, args),
            "format" => format::braces(self, object, &args).map(Value::Text),
            "format_map" => {
                let [map] = args.bind(name, ["mapping"])?;
                let map = required(map, name, "mapping")?;
                let named = self.make_dict(Args::positional(vec![map]))?.into_iter();
                let named = named.map(|(Key(key), value)| {
                    Ok((text(&key, "a key of format_map()")?.as_str().into(), value))
                });
                let named = named.collect::<Result<Vec<_>>>()?;
                let args = Args {
                    positional: Vec::new(),
                    named,
                };
                format::braces(self, object, &args).map(Value::Text)
            }
            _ => {
                args.none(name)?;
                Ok(plain_method(object, name))
            }
        }
    }

    /// `separator.join(items)`
    pub(crate) fn joined(
        &self,
        separator: &Text,
        items: impl Iterator<Item = Result<Text>>,
    ) -> Result<Text> {
        let mut out = TextBuilder::default();
        for (index, item) in items.enumerate() {
            let item = item?;
            self.budget.step(1)?;
            self.budget
                .check(out.len() + separator.len() + item.len())?;
            if index > 0 {
                out.push(separator);
            }
            out.push(&item);
        }
        self.budget.read(out.len())?;
        Ok(out.finish())
    }

    /// `text` with the first `count` of `old` replaced by `new`, or all if `count` is negative.
    pub(crate) fn replaced(&self, text: &Text, old: &Text, new: &Text, count: i64) -> Result<Text> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let all = text.as_str();
        let mut out = TextBuilder::default();
        let mut end = 0;
        for (at, found) in all.match_indices(old.as_str()).take(count) {
            self.budget.check(out.len() + at - end + new.len())?;
            out.push_slice(text, end..at);
            out.push(new);
            end = at + found.len();
        }
        out.push_slice(text, end..all.len());
        self.budget.read(out.len())?;
        Ok(out.finish())
    }

    fn split(&self, object: &Text, name: &str, args: Args) -> Result<Value> {
        let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
        let most = int_or(most.as_ref(), -1, "maxsplit")?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let all = object.as_str();
        let from_end = name == "rsplit";
        let ranges = match separator {
            None | Some(Value::None) => split_at_space(all, most, from_end),
            Some(separator) => {
                let separator = text(&separator, "a separator")?;
                if separator.is_empty() {
                    return Err(Fault::new("empty separator"));
                }
                split_at(all, separator.as_str(), most, from_end)
            }
        };
        self.budget.built(ranges.len() * size_of::<Value>())?;
        Value::list(
            ranges
                .into_iter()
                .map(|range| Value::Text(object.slice(range)))
                .collect(),
        )
    }

    fn has_end(&self, object: &Text, name: &str, args: Args) -> Result<Value> {
        let [ends, start, end] = args.bind(name, ["ends", "start", "end"])?;
        let ends = required(ends, name, "ends")?;
        let part = Self::part(object, start, end)?;
        let matches = |end: &Value| {
            let end = text(end, "what a string begins or ends with")?.as_str();
            Ok(match name {
                "startswith" => part.as_str().starts_with(end),
                _ => part.as_str().ends_with(end),
            })
        };
        let ends = match &ends {
            Value::Seq(seq) if seq.kind == SeqKind::Tuple => &seq.items[..],
            end => std::slice::from_ref(end),
        };
        let found = ends.iter().map(matches).collect::<Result<Vec<_>>>()?;
        Ok(Value::Bool(found.contains(&true)))
    }

    /// `object[start:end]`
    fn part(object: &Text, start: Option<Value>, end: Option<Value>) -> Result<Text> {
        let bounds = [
            start.unwrap_or(Value::None),
            end.unwrap_or(Value::None),
            Value::None,
        ];
        match slice(&Value::Text(object.clone()), &bounds)? {
            Value::Text(part) => Ok(part),
            _ => Err(Fault::new("slice indices must be integers or None")),
        }
    }

    fn find(&self, object: &Text, name: &str, args: Args) -> Result<Value> {
        let [sub, start, end] = args.bind(name, ["sub", "start", "end"])?;
        let sub = required(sub, name, "sub")?;
        let sub = text(&sub, "what is looked for")?.as_str();
        let length = object.num_chars();
        let first = int_or(start.as_ref(), 0, "start").map(|start| from_end(start, length))?;
        let part = Self::part(object, start, end)?;
        let all = part.as_str();
        if name == "count" {
            return Ok(Value::Int(all.matches(sub).count() as i128));
        }
        let place = if name.starts_with('r') {
            all.rfind(sub)
        } else {
            all.find(sub)
        };
        match place {
            Some(place) => Ok(Value::Int((first + all[..place].chars().count()) as i128)),
            None if name.ends_with("find") => Ok(Value::Int(-1)),
            None => Err(Fault::new("substring not found")),
        }
    }

    fn pad(&self, object: &Text, name: &str, args: Args) -> Result<Value> {
        if name == "expandtabs" {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = width(size.as_ref(), 8, "a tab's size")?;
            let tabs = object.as_str().matches('\t').count();
            self.budget
                .check(object.len().saturating_add(tabs.saturating_mul(size)))?;
            return Ok(Value::Text(
                object.derive(expand_tabs(object.as_str(), size)),
            ));
        }
        let [to, fill] = args.bind(name, ["width", "fillchar"])?;
        let to = required(to, name, "width")?;
        let to = width(Some(&to), 0, "a width")?;
        let fill = match &fill {
            None if name == "zfill" => Text::own("0"),
            None => Text::own(" "),
            Some(fill) => text(fill, "a fill character")?.clone(),
        };
        if fill.num_chars() != 1 {
            return Err(Fault::new(
                "The fill character must be exactly one character long",
            ));
        }
        let missing = to.saturating_sub(object.num_chars());
        self.budget.check(
            object
                .len()
                .saturating_add(missing.saturating_mul(fill.len())),
        )?;
        let left = match name {
            // CPython divides an odd remainder in this way.
            "center" => missing / 2 + (missing & to & 1),
            "ljust" => 0,
            _ => missing,
        };
        let mut out = TextBuilder::default();
        let mut rest = 0..object.len();
        if name == "zfill" && object.as_str().starts_with(['+', '-']) {
            out.push_slice(object, 0..1);
            rest.start = 1;
        }
        (0..left).for_each(|_| out.push(&fill));
        out.push_slice(object, rest);
        (left..missing).for_each(|_| out.push(&fill));
        Ok(Value::Text(out.finish()))
    }
}

/// A position in a list of `length` items; a negative one counts from the end.
fn from_end(index: i64, length: usize) -> usize {
    let index = if index < 0 {
        index.saturating_add(length as i64)
    } else {
        index
    };
    usize::try_from(index).unwrap_or(0).min(length)
}

fn strip(object: &Text, name: &str, args: Args) -> Result<Value> {
    let [chars] = args.bind(name, ["chars"])?;
    let chars = match &chars {
        None | Some(Value::None) => None,
        Some(chars) => Some(text(chars, "the characters to strip")?),
    };
    Ok(Value::Text(stripped(
        object,
        chars,
        name != "rstrip",
        name != "lstrip",
    )))
}

/// `object` without white space, or without `chars`, at its ends.
pub(crate) fn stripped(object: &Text, chars: Option<&Text>, left: bool, right: bool) -> Text {
    let is_taken = |c: char| match chars {
        None => is_space(c),
        Some(chars) => chars.as_str().contains(c),
    };
    let all = object.as_str();
    let end = if right {
        all.trim_end_matches(is_taken).len()
    } else {
        all.len()
    };
    let start = if left {
        end - all[..end].trim_start_matches(is_taken).len()
    } else {
        0
    };
    object.slice(start..end)
}

fn split_at(
    all: &str,
    separator: &str,
    most: usize,
    from_end: bool,
) -> Vec<std::ops::Range<usize>> {
    let mut places: Vec<usize> = match from_end {
        true => all
            .rmatch_indices(separator)
            .take(most)
            .map(|(at, _)| at)
            .collect(),
        false => all
            .match_indices(separator)
            .take(most)
            .map(|(at, _)| at)
            .collect(),
    };
    places.sort_unstable();
    let mut ranges = Vec::with_capacity(places.len() + 1);
    let mut start = 0;
    for place in places {
        ranges.push(start..place);
        start = place + separator.len();
    }
    ranges.push(start..all.len());
    ranges
}

fn split_at_space(all: &str, most: usize, from_end: bool) -> Vec<std::ops::Range<usize>> {
    let mut words: Vec<std::ops::Range<usize>> = Vec::new();
    let mut start = None;
    for (at, c) in all.char_indices().chain([(all.len(), ' ')]) {
        match (is_space(c), start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                words.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    if words.len() > most {
        // The rest stays in one piece, with the white space at its outer end.
        if from_end {
            let cut = words.len() - most;
            let first = 0..words[cut - 1].end;
            words.splice(..cut, [first]);
        } else {
            let last = words[most].start..all.len();
            words.splice(most.., [last]);
        }
    }
    words
}

fn partition(object: &Text, name: &str, args: Args) -> Result<Value> {
    let [separator] = args.bind(name, ["sep"])?;
    let separator = required(separator, name, "sep")?;
    let separator = text(&separator, "a separator")?;
    if separator.is_empty() {
        return Err(Fault::new("empty separator"));
    }
    let all = object.as_str();
    let from_end = name == "rpartition";
    let place = match from_end {
        true => all.rfind(separator.as_str()),
        false => all.find(separator.as_str()),
    };
    let empty = || Text::own("");
    let parts = match place {
        Some(at) => {
            let after = at + separator.len();
            [
                object.slice(0..at),
                separator.clone(),
                object.slice(after..all.len()),
            ]
        }
        None if from_end => [empty(), empty(), object.clone()],
        None => [object.clone(), empty(), empty()],
    };
    Value::tuple(parts.map(Value::Text).to_vec())
}

fn remove_end(object: &Text, name: &str, args: Args) -> Result<Value> {
    let [end] = args.bind(name, ["end"])?;
    let end = required(end, name, "end")?;
    let end = text(&end, "what is removed")?.as_str();
    let all = object.as_str();
    let range = match name {
        "removeprefix" => all
            .strip_prefix(end)
            .map(|rest| all.len() - rest.len()..all.len()),
        _ => all.strip_suffix(end).map(|rest| 0..rest.len()),
    };
    Ok(Value::Text(object.slice(range.unwrap_or(0..all.len()))))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

/// Methods without arguments.
fn plain_method(object: &Text, name: &str) -> Value {
    let all = object.as_str();
    let every = |holds: fn(char) -> bool| Value::Bool(!all.is_empty() && all.chars().all(holds));
    match name {
        "upper" => Value::Text(object.map(str::to_uppercase)),
        "lower" => Value::Text(object.map(str::to_lowercase)),
        "swapcase" => Value::Text(object.map(strings::swapcase)),
        "casefold" => Value::Text(object.map(strings::casefold)),
        "capitalize" => Value::Text(object.derive(strings::capitalize(all))),
        "title" => Value::Text(object.derive(strings::title(all))),
        "isalnum" => every(|c| strings::is_letter(c) || strings::is_numeric(c)),
        "isalpha" => every(strings::is_letter),
        "isascii" => Value::Bool(all.is_ascii()),
        "isdecimal" => every(strings::is_decimal),
        "isdigit" => every(strings::is_digit),
        "isnumeric" => every(strings::is_numeric),
        "isspace" => every(is_space),
        "isprintable" => Value::Bool(all.chars().all(strings::is_printable)),
        "isidentifier" => Value::Bool(strings::is_identifier(all)),
        "islower" => Value::Bool(strings::is_lower(all)),
        "isupper" => Value::Bool(strings::is_upper(all)),
        "istitle" => Value::Bool(strings::is_title(all)),
        _ => Value::undefined(format!("'str' has no method '{name}'")),
    }
}
