//! The filters `indent`, `truncate` and `wordwrap`.

use super::arguments::{Args, flag, int_or, text, width};
use super::fault::{Fault, Result};
use super::machine::Machine;
use super::strings::{byte_place, is_space, lines};
use super::text::{Text, TextBuilder};
use super::value::Value;

impl Machine {
    pub(crate) fn wrapping_filter(
        &mut self,
        name: &str,
        value: &Value,
        args: Args,
    ) -> Result<Value> {
        let object = match value {
            // In jinja2 these filters do not convert the value to a string.
            Value::Text(text) => text.clone(),
            other => {
                return Err(Fault::new(format!(
                    "{name} takes a string, not {}",
                    other.type_name()
                )));
            }
        };
        match name {
            "indent" => self.indent(&object, args),
            "truncate" => truncate(&object, args),
            _ => self.word_wrap(&object, args),
        }
        .map(Value::Text)
    }

    fn indent(&mut self, object: &Text, args: Args) -> Result<Text> {
        let [indent, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let indent = match &indent {
            Some(Value::Text(indent)) => indent.clone(),
            indent => {
                let spaces = width(indent.as_ref(), 4, "an indent")?;
                self.budget.check(spaces)?;
                Text::own(" ".repeat(spaces))
            }
        };
        let (first, blank) = (flag(first.as_ref(), false), flag(blank.as_ref(), false));
        // jinja2 appends a line end before it splits the text, so that the last line counts.
        let mut all = TextBuilder::default();
        all.push(object);
        all.push_own("\n");
        let all = all.finish();
        let mut out = TextBuilder::default();
        for (index, line) in lines(all.as_str(), false).into_iter().enumerate() {
            self.budget
                .check(out.len() + 1 + indent.len() + line.len())?;
            if index > 0 {
                out.push_own("\n");
            }
            if if index == 0 {
                first
            } else {
                blank || !line.is_empty()
            } {
                out.push(&indent);
            }
            out.push_slice(&all, line);
        }
        Ok(out.finish())
    }

    fn word_wrap(&mut self, object: &Text, args: Args) -> Result<Text> {
        let names = [
            "width",
            "break_long_words",
            "wrapstring",
            "break_on_hyphens",
        ];
        let [columns, break_long, between, on_hyphens] = args.bind("wordwrap", names)?;
        let columns = int_or(columns.as_ref(), 79, "a width")?;
        let columns = usize::try_from(columns).ok().filter(|columns| *columns > 0);
        let wrap = Wrap {
            columns: columns.ok_or_else(|| Fault::new("invalid width (must be > 0)"))?,
            breaks_long: flag(break_long.as_ref(), true),
            breaks_hyphens: flag(on_hyphens.as_ref(), true),
        };
        let between = match &between {
            None | Some(Value::None) => Text::own("\n"),
            Some(between) => text(between, "the wrapstring")?.clone(),
        };
        let mut out = TextBuilder::default();
        for (index, line) in lines(object.as_str(), false).into_iter().enumerate() {
            let line = object.slice(line);
            if index > 0 {
                out.push(&between);
            }
            for (index, part) in wrap.lines(line.as_str()).into_iter().enumerate() {
                self.budget.step(1)?;
                self.budget.check(out.len() + between.len() + part.len())?;
                if index > 0 {
                    out.push(&between);
                }
                out.push_slice(&line, part);
            }
        }
        Ok(out.finish())
    }
}

fn truncate(object: &Text, args: Args) -> Result<Text> {
    let [length, kill, end, leeway] =
        args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = width(length.as_ref(), 255, "a length")?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => width(Some(&leeway), 0, "a leeway")?,
    };
    let end = match &end {
        None => Text::own("..."),
        Some(end) => text(end, "the end of truncate")?.clone(),
    };
    let end_chars = end.num_chars();
    if length < end_chars {
        return Err(Fault::new(format!(
            "expected length >= {end_chars}, got {length}"
        )));
    }
    if object.num_chars() <= length.saturating_add(leeway) {
        return Ok(object.clone());
    }
    let mut cut = byte_place(object.as_str(), length - end_chars);
    if !flag(kill.as_ref(), false) {
        cut = object.as_str()[..cut].rfind(' ').unwrap_or(cut);
    }
    let mut out = TextBuilder::default();
    out.push_slice(object, 0..cut);
    out.push(&end);
    Ok(out.finish())
}

/// Options for wrapping lines.
struct Wrap {
    columns: usize,
    breaks_long: bool,
    breaks_hyphens: bool,
}

impl Wrap {
    /// The parts of `line` that become lines, as Python's `textwrap.wrap` cuts it.
    fn lines(&self, line: &str) -> Vec<std::ops::Range<usize>> {
        let chars = |range: &std::ops::Range<usize>| line[range.clone()].chars().count();
        let is_blank = |range: &std::ops::Range<usize>| line[range.clone()].chars().all(is_space);
        let mut chunks = self.chunks(line);
        chunks.reverse();
        let mut lines = Vec::new();
        while let Some(first) = chunks.last().cloned() {
            if is_blank(&first) && !lines.is_empty() {
                chunks.pop();
                if chunks.is_empty() {
                    break;
                }
            }
            let start = chunks.last().map_or(line.len(), |chunk| chunk.start);
            let (mut end, mut used) = (start, 0);
            while let Some(chunk) = chunks.last() {
                let size = chars(chunk);
                if used + size > self.columns {
                    break;
                }
                used += size;
                end = chunk.end;
                chunks.pop();
            }
            if let Some(chunk) = chunks
                .last_mut()
                .filter(|chunk| chars(chunk) > self.columns)
            {
                if self.breaks_long {
                    let room = if used < self.columns {
                        self.columns - used
                    } else {
                        1
                    };
                    let room = room.min(self.columns);
                    if used < self.columns {
                        end = chunk.start + byte_place(&line[chunk.clone()], room);
                        chunk.start = end;
                    }
                } else if used == 0 {
                    end = chunk.end;
                    chunks.pop();
                }
            }
            let kept = line[start..end].trim_end_matches(is_space).len();
            if kept > 0 {
                lines.push(start..start + kept);
            }
        }
        lines
    }

    /// Words, white space between them, and the parts of words with hyphens.
    fn chunks(&self, line: &str) -> Vec<std::ops::Range<usize>> {
        let mut chunks: Vec<std::ops::Range<usize>> = Vec::new();
        let mut start = 0;
        let places: Vec<(usize, char)> = line.char_indices().collect();
        for (index, (at, c)) in places.iter().enumerate() {
            let next = places.get(index + 1);
            let end = at + c.len_utf8();
            let changes = next.is_some_and(|(_, next)| is_space(*next) != is_space(*c));
            // A hyphen between letters ends a part.
            let letter = |c: Option<&(usize, char)>| c.is_some_and(|(_, c)| c.is_alphabetic());
            let two_before =
                index >= 2 && letter(places.get(index - 1)) && letter(places.get(index - 2));
            let hyphen = self.breaks_hyphens
                && *c == '-'
                && two_before
                && letter(next)
                && letter(places.get(index + 2));
            if changes || hyphen || next.is_none() {
                chunks.push(start..end);
                start = end;
            }
        }
        chunks
    }
}
