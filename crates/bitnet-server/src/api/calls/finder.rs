//! [`CallFinder`]: finds calls in the text of an answer.

use std::sync::Arc;

use bitnet_tokenizers::CallForm;
use serde_json::{Value, json};

use super::grammar::TextParameters;
use super::{PARAMETER, PARAMETER_END, VALUE, marks};

/// A parsed part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Thinking, which stands before all else.
    Reasoning(String),
    Text(String),
    /// A call begins; the first has index 0.
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments of a call, as JSON.
    Arguments {
        index: usize,
        text: String,
    },
}

/// Finds calls in a text that arrives in pieces.
#[derive(Clone, Debug)]
pub(crate) struct CallFinder {
    form: CallForm,
    texts: Arc<TextParameters>,
    /// Text that cannot be classified yet.
    pending: String,
    place: Place,
    num_calls: usize,
    /// Whether there was any text before the first call.
    has_text: bool,
    /// The function of the call that was found last.
    function: String,
}

/// The position of the parsed text within an answer.
#[derive(Clone, Debug)]
enum Place {
    Text,
    /// Between the beginning of a call and its arguments.
    Name,
    /// In the arguments, in JSON.
    Arguments(Nesting),
    /// Between parameters in XML, after this number of parameters.
    Parameters(usize),
    /// In a parameter that is plain text, after this many others.
    PlainText {
        count: usize,
        may_be_null: bool,
        /// Whether the string in JSON has begun.
        is_open: bool,
    },
    /// After the arguments.
    End,
    /// After a call in a list.
    Next,
}

/// The nesting at a place in JSON.
#[derive(Clone, Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Takes a byte; true if the value ends with it.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

impl CallFinder {
    /// For answers in `form`; `texts` has the parameters that are plain text in XML.
    pub(crate) fn new(form: CallForm, texts: Arc<TextParameters>) -> Self {
        Self {
            form,
            texts,
            pending: String::new(),
            place: Place::Text,
            num_calls: 0,
            has_text: false,
            function: String::new(),
        }
    }

    /// Number of calls so far.
    pub(crate) fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Whether the text ends within the arguments of the last call, so that these are invalid JSON.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(
            self.place,
            Place::Arguments(_) | Place::Parameters(_) | Place::PlainText { .. }
        )
    }

    /// Parses more text, and appends its parts to `found`.
    pub(crate) fn push(&mut self, text: &str, found: &mut Vec<Found>) {
        self.pending.push_str(text);
        while self.step(found) {}
    }

    /// Parses the end of the text.
    pub(crate) fn finish(&mut self, found: &mut Vec<Found>) {
        if matches!(self.place, Place::Text) && !self.pending.is_empty() {
            found.push(Found::Text(std::mem::take(&mut self.pending)));
        }
    }

    /// Parses one step; false if it needs more text.
    fn step(&mut self, found: &mut Vec<Found>) -> bool {
        match &mut self.place {
            Place::Text => self.text(found),
            Place::Name => self.name(found),
            Place::Arguments(nesting) => {
                let end = self.pending.bytes().position(|byte| nesting.step(byte));
                let text: String = self
                    .pending
                    .drain(..end.map_or(self.pending.len(), |end| end + 1))
                    .collect();
                if !text.is_empty() {
                    let index = self.num_calls - 1;
                    found.push(Found::Arguments { index, text });
                }
                if end.is_some() {
                    self.place = Place::End;
                }
                end.is_some()
            }
            Place::Parameters(count) => {
                let count = *count;
                self.parameter(count, found)
            }
            Place::PlainText { .. } => self.plain_text(found),
            Place::End => {
                let end = marks(self.form).end;
                let is_here = self.pending.starts_with(end);
                if is_here {
                    self.pending.drain(..end.len());
                    self.place = match self.form {
                        CallForm::MistralList => Place::Next,
                        _ => Place::Text,
                    };
                }
                is_here
            }
            Place::Next => self.next_in_list(),
        }
    }

    fn text(&mut self, found: &mut Vec<Found>) -> bool {
        let mark = marks(self.form).begin;
        if self.num_calls > 0 {
            // Each call is on its own line.
            self.pending = self.pending.trim_start_matches('\n').to_owned();
        }
        let is_over = self.form == CallForm::Llama3 && (self.has_text || self.num_calls > 0);
        let begin = match self.form {
            CallForm::Llama3 => self
                .pending
                .starts_with(mark)
                .then_some(0)
                .filter(|_| !is_over),
            _ => self.pending.find(mark),
        };
        let held = match self.form {
            _ if is_over => 0,
            CallForm::Llama3 if mark.starts_with(&self.pending) => self.pending.len(),
            CallForm::Llama3 => 0,
            _ => held_back(&self.pending, mark),
        };
        let end = begin.unwrap_or(self.pending.len() - held);
        let text: String = self.pending.drain(..end).collect();
        if !text.is_empty() {
            self.has_text = true;
            found.push(Found::Text(text));
        }
        if begin.is_some() {
            self.pending.drain(..mark.len());
            self.place = Place::Name;
        }
        begin.is_some()
    }

    /// Goes on to the next call of a list, or to the text after it.
    fn next_in_list(&mut self) -> bool {
        let separator = ", ";
        if separator.starts_with(&self.pending) && self.pending.len() < separator.len() {
            return false;
        }
        let (len, place) = match self.pending.strip_prefix(separator) {
            Some(_) => (separator.len(), Place::Name),
            None => (usize::from(self.pending.starts_with(']')), Place::Text),
        };
        self.pending.drain(..len);
        self.place = place;
        true
    }

    fn name(&mut self, found: &mut Vec<Found>) -> bool {
        let marks = marks(self.form);
        let Some(end) = self.pending.find(marks.arguments) else {
            return false;
        };
        let head = match self.form {
            CallForm::MistralList => self.pending[..end].trim_start_matches([' ', '[']),
            _ => &self.pending[..end],
        };
        let name = head.strip_prefix(marks.name).unwrap_or_default();
        self.function = name.to_owned();
        self.pending.drain(..end + marks.arguments.len());
        let index = self.num_calls;
        found.push(Found::Call {
            index,
            name: self.function.clone(),
        });
        self.num_calls += 1;
        self.place = match self.form {
            CallForm::QwenXml => {
                let text = "{".to_owned();
                found.push(Found::Arguments { index, text });
                Place::Parameters(0)
            }
            _ => Place::Arguments(Nesting::default()),
        };
        true
    }

    /// A parameter in XML as a member of a JSON object, or the end of the parameters.
    fn parameter(&mut self, count: usize, found: &mut Vec<Found>) -> bool {
        let index = self.num_calls - 1;
        if self.pending.starts_with(marks(self.form).end) {
            let text = "}".to_owned();
            found.push(Found::Arguments { index, text });
            self.place = Place::End;
            return true;
        }
        let Some(rest) = self.pending.strip_prefix(PARAMETER) else {
            return false;
        };
        let Some((key, rest)) = rest.split_once(VALUE) else {
            return false;
        };
        let separator = if count > 0 { ", " } else { "" };
        let name = format!("{separator}{}: ", json!(key));
        let texts = self.texts.get(&self.function);
        let (text, place, rest) = match texts.and_then(|texts| texts.get(key)) {
            Some(&may_be_null) => {
                let place = Place::PlainText {
                    count,
                    may_be_null,
                    is_open: false,
                };
                (name, place, rest)
            }
            None => {
                let Some((value, rest)) = rest.split_once(PARAMETER_END) else {
                    return false;
                };
                (
                    name + &json_value(value),
                    Place::Parameters(count + 1),
                    rest,
                )
            }
        };
        let rest = rest.to_owned();
        self.pending = rest;
        found.push(Found::Arguments { index, text });
        self.place = place;
        true
    }

    /// More of a parameter that is plain text, as a string in JSON; or null.
    fn plain_text(&mut self, found: &mut Vec<Found>) -> bool {
        let Place::PlainText {
            count,
            may_be_null,
            is_open,
        } = &mut self.place
        else {
            return false;
        };
        let index = self.num_calls - 1;
        let null = format!("null{PARAMETER_END}");
        let may_be_null = *may_be_null && !*is_open;
        if may_be_null && self.pending.starts_with(&null) {
            self.pending.drain(..null.len());
            self.place = Place::Parameters(*count + 1);
            let text = "null".to_owned();
            found.push(Found::Arguments { index, text });
            return true;
        }
        if may_be_null && null.starts_with(&self.pending) {
            return false;
        }
        let end = self.pending.find(PARAMETER_END);
        let held = held_back(&self.pending, PARAMETER_END);
        let known = end.unwrap_or(self.pending.len() - held);
        let text: String = self.pending.drain(..known).collect();
        let quoted = json!(text).to_string();
        let mut text = quoted[1..quoted.len() - 1].to_owned();
        if !std::mem::replace(is_open, true) {
            text.insert(0, '"');
        }
        if end.is_some() {
            text.push('"');
            self.pending.drain(..PARAMETER_END.len());
            self.place = Place::Parameters(*count + 1);
        }
        if !text.is_empty() {
            found.push(Found::Arguments { index, text });
        }
        end.is_some()
    }
}

/// A value that is not plain text as JSON: as it is, unless it is none.
fn json_value(value: &str) -> String {
    match serde_json::from_str::<Value>(value) {
        Ok(_) => value.to_owned(),
        Err(_) => json!(value).to_string(),
    }
}

/// The length of the longest end of `text` that begins `mark`.
fn held_back(text: &str, mark: &str) -> usize {
    (1..mark.len().min(text.len() + 1))
        .rev()
        .find(|&len| text.ends_with(&mark[..len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::calls::written_call;

    fn texts() -> Arc<TextParameters> {
        let texts = [
            ("a".to_owned(), false),
            ("d".to_owned(), true),
            ("e".to_owned(), true),
        ];
        let texts = [("f".to_owned(), texts.into_iter().collect())];
        Arc::new(texts.into_iter().collect())
    }

    /// Parses a text in pieces of `size` characters; joins texts and arguments.
    fn find(form: CallForm, text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let (mut finder, mut found) = (CallFinder::new(form, texts()), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            finder.push(&piece.iter().collect::<String>(), &mut found);
        }
        finder.finish(&mut found);
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in found {
            match part {
                Found::Text(more) => text += &more,
                Found::Reasoning(more) => unreachable!("a finder of calls found {more}"),
                Found::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Found::Arguments { index, text } => calls[index].1 += &text,
            }
        }
        assert_eq!(calls.len(), finder.num_calls());
        (text, calls)
    }

    const OBJECT: &str = r#"{"a": "}</tool_call>\"é", "b": [1, {"c": {}}]}"#;

    #[test]
    fn calls_are_found_in_pieces_of_any_size() {
        let xml = "<tool_call>\n<function=f>\n<parameter=a>\n7\n</parameter>\n<parameter=b>\n[1, \
            \"x\"]\n</parameter>\n<parameter=c>\n</function> é\n</parameter>\n<parameter=d>\nnull\n</parameter>\n\
            <parameter=e>\nnul\n\"é\n</param\n</parameter>\n</function>\n</tool_call>";
        let from_xml = "{\"a\": \"7\", \"b\": [1, \"x\"], \"c\": \"</function> é\", \"d\": null, \
            \"e\": \"nul\\n\\\"é\\n</param\"}";
        let hermes =
            format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {OBJECT}}}\n</tool_call>");
        let no_parameters = "<tool_call>\n<function=g-2>\n</function>\n</tool_call>";
        let hermes_empty = "<tool_call>\n{\"name\": \"g-2\", \"arguments\": {}}\n</tool_call>";
        for (form, one, arguments, two) in [
            (
                CallForm::Plain,
                written_call("f", OBJECT),
                OBJECT,
                written_call("g-2", "{}"),
            ),
            (CallForm::Hermes, hermes, OBJECT, hermes_empty.to_owned()),
            (
                CallForm::QwenXml,
                xml.to_owned(),
                from_xml,
                no_parameters.to_owned(),
            ),
        ] {
            let text = format!("Let me see < <tool. {one}\n{two}");
            for size in 1..text.len() {
                let (said, calls) = find(form, &text, size);
                assert_eq!(said, "Let me see < <tool. ", "{form:?}");
                let expected = [("f", arguments), ("g-2", "{}")];
                let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
                assert_eq!(calls, expected, "{form:?}");
            }
        }
    }

    #[test]
    fn plain_text_streams_as_it_arrives() {
        let (mut finder, mut found) = (CallFinder::new(CallForm::QwenXml, texts()), Vec::new());
        let begin = "<tool_call>\n<function=f>\n<parameter=a>\none\n";
        finder.push(begin, &mut found);
        finder.push("two\n</parameter>\n</function>\n</tool_call>", &mut found);
        let arguments = found.iter().filter_map(|part| match part {
            Found::Arguments { text, .. } => Some(text.as_str()),
            _ => None,
        });
        let arguments: Vec<_> = arguments.collect();
        assert_eq!(arguments, ["{", "\"a\": ", "\"one", "\\ntwo\"", "}"]);
    }

    #[test]
    fn calls_of_mistral_are_found_however_the_text_is_cut() {
        let list = |open: &str| {
            format!(
                "Hm [TOOL. [TOOL_CALLS]{open}{{\"name\": \"f\", \"arguments\": {OBJECT}}}, \
                 {{\"name\": \"g-2\", \"arguments\": {{}}}}]"
            )
        };
        let named = format!("Hm [TOOL. [TOOL_CALLS]f[ARGS]{OBJECT}[TOOL_CALLS]g-2[ARGS]{{}}");
        for (form, text) in [
            (CallForm::MistralList, list("[")),
            (CallForm::MistralList, list(" [")),
            (CallForm::MistralNamed, named),
        ] {
            for size in 1..text.len() {
                let (said, calls) = find(form, &text, size);
                assert_eq!(said, "Hm [TOOL. ", "{form:?}");
                let expected = [("f", OBJECT), ("g-2", "{}")];
                let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
                assert_eq!(calls, expected, "{form:?}");
            }
        }
    }

    #[test]
    fn a_call_of_llama_3_is_the_whole_answer() {
        let call = format!("{{\"name\": \"f\", \"parameters\": {OBJECT}}}");
        for size in 1..call.len() {
            let found = find(CallForm::Llama3, &call, size);
            assert_eq!(
                found,
                (String::new(), vec![("f".to_owned(), OBJECT.to_owned())])
            );
            let text = format!("No: {call}");
            assert_eq!(find(CallForm::Llama3, &text, size), (text, Vec::new()));
        }
    }

    #[test]
    fn text_that_is_not_a_call_stays_text() {
        for text in ["", "a < b", "<tool", "<tool_cal", "é<"] {
            assert_eq!(
                find(CallForm::Plain, text, 1),
                (text.to_owned(), Vec::new())
            );
        }
        // The answer was cut off by the token limit.
        let cut = find(CallForm::Plain, r#"x<tool_call>{"name": "f"#, 3);
        assert_eq!(cut, ("x".to_owned(), Vec::new()));
        let (_, calls) = find(
            CallForm::Plain,
            r#"<tool_call>{"name": "f", "arguments": {"a": "b"#,
            3,
        );
        assert_eq!(calls, [("f".to_owned(), r#"{"a": "b"#.to_owned())]);
    }
}
