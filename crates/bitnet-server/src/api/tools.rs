//! Tools: functions that the model may call, their introduction in the prompt, and the parser of
//! calls in its output.
//!
//! A call is written `<tool_call>{"name": "NAME", "arguments": {…}}</tool_call>`. A grammar ensures
//! that text that begins like a call is a whole call of an existing tool, with arguments that fit
//! its schema.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::grammar::{CallsGrammar, Grammar};
use crate::schema::Schema;

const BEGIN: &str = "<tool_call>";
const NAME: &str = "{\"name\": \"";
const ARGUMENTS: &str = "\", \"arguments\": ";
const END: &str = "}</tool_call>";

/// The most tools of a request, and the most characters of a tool's name.
const TOOLS_MAX: usize = 128;
const NAME_MAX: usize = 64;

/// A tool that the model may call.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Tool {
    /// Only `function` is supported.
    r#type: String,
    function: Function,
}

/// A function.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Function {
    /// Letters, digits, `_` and `-`, at most 64.
    name: String,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// A JSON schema of the arguments; none if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Refuse keywords of the schema that cannot be enforced. Arguments always fit those that can.
    #[serde(skip_serializing)]
    strict: Option<bool>,
}

/// A call of a tool.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    /// Which call of the message, as streams number them.
    #[serde(skip_serializing)]
    #[expect(dead_code, reason = "the order of the calls says the same")]
    pub(crate) index: Option<usize>,
    pub(crate) id: String,
    /// `function`
    pub(crate) r#type: String,
    pub(crate) function: FunctionCall,
}

/// What is called, with what.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    pub(crate) name: String,
    /// JSON, as a string.
    pub(crate) arguments: String,
}

/// Whether the model calls tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// The model may call tools.
    Auto,
    /// The model must call at least one tool.
    Required,
    /// This one.
    Named(usize),
}

/// The resolved tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    tools: Vec<Tool>,
    choice: Choice,
    is_parallel: bool,
}

impl Tools {
    /// `None` where no tool can be called.
    pub(crate) fn settle(
        tools: Option<Vec<Tool>>,
        choice: Option<&Value>,
        is_parallel: Option<bool>,
    ) -> Result<Option<Self>, ApiError> {
        let tools = tools.unwrap_or_default();
        for (index, tool) in tools.iter().enumerate() {
            check(tool, &tools[..index], index)?;
        }
        if tools.len() > TOOLS_MAX {
            let message = format!(
                "'tools' has {} tools, but may have at most {TOOLS_MAX}.",
                tools.len()
            );
            return Err(ApiError::invalid("tools", message));
        }
        let choice = match choice {
            None | Some(Value::Null) if tools.is_empty() => return Ok(None),
            None | Some(Value::Null) => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" if tools.is_empty() => return Ok(None),
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                _ => {
                    return Err(ApiError::invalid(
                        "tool_choice",
                        "'tool_choice' is none, auto, required or a function.",
                    ));
                }
            },
            Some(choice) => {
                let name = choice["function"]["name"].as_str();
                let has = |value: &Value, count| {
                    value
                        .as_object()
                        .is_some_and(|fields| fields.len() == count)
                };
                let is_exact =
                    has(choice, 2) && choice["type"] == "function" && has(&choice["function"], 1);
                let named = name.filter(|_| is_exact).ok_or_else(|| {
                    let message = "'tool_choice' must be {\"type\": \"function\", \"function\": {\"name\": NAME}}.";
                    ApiError::invalid("tool_choice", message)
                })?;
                let index = tools.iter().position(|tool| tool.function.name == named);
                Choice::Named(index.ok_or_else(|| {
                    let named: String = named.chars().take(NAME_MAX).collect();
                    ApiError::invalid(
                        "tool_choice",
                        format!("'tool_choice' names '{named}', which is not in 'tools'."),
                    )
                })?)
            }
        };
        if tools.is_empty() {
            return Err(ApiError::invalid(
                "tool_choice",
                "'tool_choice' requires a tool, but 'tools' is empty.",
            ));
        }
        Ok(Some(Self {
            tools,
            choice,
            is_parallel: is_parallel.unwrap_or(true),
        }))
    }

    /// The tools as a template takes them.
    pub(crate) fn json(&self) -> Value {
        serde_json::to_value(&self.tools).unwrap_or_default()
    }

    /// The introduction of the tools for a model whose template does not have one.
    pub(crate) fn introduction(&self) -> String {
        let lines: Vec<_> = self
            .tools
            .iter()
            .filter_map(|tool| serde_json::to_string(tool).ok())
            .collect();
        format!(
            "You may call these functions:\n<tools>\n{}\n</tools>\nTo call one, answer with \
             {BEGIN}{NAME}NAME{ARGUMENTS}{{…}}{END}.",
            lines.join("\n")
        )
    }

    /// Whether the answer must contain a call.
    pub(crate) fn must_call(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// The grammar of an answer: calls, or text that may end in calls.
    pub(crate) fn grammar(&self) -> Result<Grammar, ApiError> {
        let calls = if self.is_parallel {
            "call (\"\\n\" call)*"
        } else {
            "call"
        };
        let mut lark = match self.choice {
            Choice::Auto => {
                format!(
                    "start: TEXT | TEXT calls\ncalls: {calls}\nTEXT: /(.|\\n)*/ & ~/(.|\\n)*{BEGIN}(.|\\n)*/\n"
                )
            }
            Choice::Required => format!("start: calls\ncalls: {calls}\n"),
            Choice::Named(_) => "start: call\n".to_owned(),
        };
        let callable = self
            .tools
            .iter()
            .enumerate()
            .filter(|(index, _)| match self.choice {
                Choice::Named(named) => named == *index,
                Choice::Auto | Choice::Required => true,
            });
        let (mut names, mut rules, mut arguments) = (Vec::new(), String::new(), Vec::new());
        for (index, tool) in callable {
            let beginning = json!(format!("{BEGIN}{NAME}{}{ARGUMENTS}", tool.function.name));
            let (field, schema) = arguments_schema(index, &tool.function)?;
            names.push(format!("call_{index}"));
            rules += &format!(
                "call_{index}: {beginning} arguments_{index} {}\n",
                json!(END)
            );
            rules += &format!("arguments_{index}: %json {}\n", schema.value());
            arguments.push((field, schema));
        }
        lark += &format!("call: {}\n{rules}", names.join(" | "));
        Ok(Grammar::Calls(CallsGrammar { lark, arguments }))
    }
}

fn check(tool: &Tool, earlier: &[Tool], index: usize) -> Result<(), ApiError> {
    if tool.r#type != "function" {
        let kind: String = tool.r#type.chars().take(NAME_MAX).collect();
        let field = format!("tools[{index}].type");
        return Err(ApiError::unsupported(
            Some(&field),
            format!("Tools of type '{kind}' are not supported."),
        ));
    }
    let name = &tool.function.name;
    let field = format!("tools[{index}].function.name");
    let is_plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !(1..=NAME_MAX).contains(&name.len()) || !is_plain {
        let message = format!("'{field}' must be 1 to {NAME_MAX} letters, digits, '_' or '-'.");
        return Err(ApiError::invalid(&field, message));
    }
    if earlier.iter().any(|other| other.function.name == *name) {
        return Err(ApiError::invalid(
            &field,
            format!("There are two tools called '{name}'."),
        ));
    }
    Ok(())
}

/// The schema of a function's arguments, and the field of the request that has it.
fn arguments_schema(index: usize, function: &Function) -> Result<(String, Schema), ApiError> {
    let field = format!("tools[{index}].function.parameters");
    let is_strict = function.strict.unwrap_or(false);
    match Schema::of_arguments(function.parameters.as_ref(), is_strict) {
        Ok(schema) => Ok((field, schema)),
        Err(error) => {
            let message = format!("'{field}': {error}.");
            Err(ApiError::invalid(&field, message))
        }
    }
}

/// Refuses calls of an earlier message whose arguments are not JSON.
pub(crate) fn check_arguments(calls: &[ToolCall], message: usize) -> Result<(), ApiError> {
    for (index, call) in calls.iter().enumerate() {
        let field = format!("messages[{message}].tool_calls[{index}].function.arguments");
        let arguments = call.function.arguments.trim();
        // Some servers omit the arguments of a function without parameters.
        if !arguments.is_empty() && serde_json::from_str::<Value>(arguments).is_err() {
            return Err(ApiError::invalid(&field, format!("'{field}' is not JSON.")));
        }
    }
    Ok(())
}

/// Calls of an earlier message as the model wrote them, for templates that do not read them.
pub(crate) fn written(calls: &[Value]) -> String {
    let call = |call: &Value| {
        let name = call["function"]["name"].as_str().unwrap_or_default();
        let arguments = match call["function"]["arguments"].as_str().map(str::trim) {
            None | Some("") => "{}",
            Some(arguments) => arguments,
        };
        format!("{BEGIN}{NAME}{name}{ARGUMENTS}{arguments}{END}")
    };
    calls.iter().map(call).collect::<Vec<_>>().join("\n")
}

/// A parsed part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Text(String),
    /// A call begins, the first being number 0.
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments of a call.
    Arguments {
        index: usize,
        text: String,
    },
}

/// Finds calls in a text that arrives in pieces.
#[derive(Debug, Default)]
pub(crate) struct CallFinder {
    /// Text that cannot be classified yet.
    pending: String,
    place: Place,
    num_calls: usize,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Text,
    /// Between the beginning of a call and its arguments.
    Name,
    Arguments(Nesting),
    /// After the arguments.
    End,
}

/// How deep a place in JSON is.
#[derive(Debug, Default)]
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
    /// Number of calls so far.
    pub(crate) fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Whether the text ends within the arguments of the last call, which then are invalid JSON.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self.place, Place::Arguments(_))
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
            Place::Text => {
                if self.num_calls > 0 {
                    // Calls stand one below the other.
                    self.pending = self.pending.trim_start_matches('\n').to_owned();
                }
                let begin = self.pending.find(BEGIN);
                let end =
                    begin.unwrap_or_else(|| self.pending.len() - held_back(&self.pending, BEGIN));
                let text: String = self.pending.drain(..end).collect();
                if !text.is_empty() {
                    found.push(Found::Text(text));
                }
                if begin.is_some() {
                    self.pending.drain(..BEGIN.len());
                    self.place = Place::Name;
                }
                begin.is_some()
            }
            Place::Name => {
                let Some(end) = self.pending.find(ARGUMENTS) else {
                    return false;
                };
                let name = self.pending[..end]
                    .strip_prefix(NAME)
                    .unwrap_or_default()
                    .to_owned();
                self.pending.drain(..end + ARGUMENTS.len());
                found.push(Found::Call {
                    index: self.num_calls,
                    name,
                });
                self.num_calls += 1;
                self.place = Place::Arguments(Nesting::default());
                true
            }
            Place::Arguments(nesting) => {
                let end = self.pending.bytes().position(|byte| nesting.step(byte));
                let text: String = self
                    .pending
                    .drain(..end.map_or(self.pending.len(), |end| end + 1))
                    .collect();
                if !text.is_empty() {
                    found.push(Found::Arguments {
                        index: self.num_calls - 1,
                        text,
                    });
                }
                if end.is_some() {
                    self.place = Place::End;
                }
                end.is_some()
            }
            Place::End => {
                let is_here = self.pending.starts_with(END);
                if is_here {
                    self.pending.drain(..END.len());
                    self.place = Place::Text;
                }
                is_here
            }
        }
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

    /// Parses a text in pieces of `size` characters; joins texts and arguments.
    fn find(text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let (mut finder, mut found) = (CallFinder::default(), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            finder.push(&piece.iter().collect::<String>(), &mut found);
        }
        finder.finish(&mut found);
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in found {
            match part {
                Found::Text(more) => text += &more,
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

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let one = r#"<tool_call>{"name": "f", "arguments": {"a": "}</tool_call>\"é", "b": [1, {"c": {}}]}}</tool_call>"#;
        let two = r#"<tool_call>{"name": "g-2", "arguments": {}}</tool_call>"#;
        let text = format!("Let me see < <tool. {one}\n{two}");
        for size in 1..text.len() {
            let (said, calls) = find(&text, size);
            assert_eq!(said, "Let me see < <tool. ");
            let arguments = r#"{"a": "}</tool_call>\"é", "b": [1, {"c": {}}]}"#;
            assert_eq!(
                calls,
                [
                    ("f".to_owned(), arguments.to_owned()),
                    ("g-2".to_owned(), "{}".to_owned())
                ]
            );
        }
    }

    #[test]
    fn text_that_is_not_a_call_stays_text() {
        for text in ["", "a < b", "<tool", "<tool_cal", "é<"] {
            assert_eq!(find(text, 1), (text.to_owned(), Vec::new()));
        }
        // Cut off by the limit of tokens.
        assert_eq!(
            find(r#"x<tool_call>{"name": "f"#, 3),
            ("x".to_owned(), Vec::new())
        );
        let (_, calls) = find(r#"<tool_call>{"name": "f", "arguments": {"a": "b"#, 3);
        assert_eq!(calls, [("f".to_owned(), r#"{"a": "b"#.to_owned())]);
    }

    fn tool(name: &str) -> Tool {
        let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
        let tool =
            json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
        serde_json::from_value(tool).expect("a tool")
    }

    #[test]
    fn tool_choices_are_resolved_or_refused() {
        let settle = |names: &[&str], choice: Value| {
            let tools = names.iter().map(|name| tool(name)).collect();
            Tools::settle(Some(tools), Some(&choice), None)
                .map(|tools| tools.map(|tools| tools.choice))
        };
        let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
        assert_eq!(settle(&[], json!(null)).ok(), Some(None));
        assert_eq!(settle(&["f"], json!("none")).ok(), Some(None));
        assert_eq!(settle(&["f"], json!(null)).ok(), Some(Some(Choice::Auto)));
        assert_eq!(
            settle(&["f"], json!("required")).ok(),
            Some(Some(Choice::Required))
        );
        assert_eq!(
            settle(&["f", "g"], named("g")).ok(),
            Some(Some(Choice::Named(1)))
        );
        for (names, choice) in [
            (&["f", "f"][..], json!("auto")),
            (&["f g"], json!("auto")),
            (&[""], json!("auto")),
            (&[], json!("required")),
            (&["f"], named("g")),
            (&["f"], json!("perhaps")),
            (&["f"], json!({ "type": "function" })),
            (
                &["f"],
                json!({ "type": "function", "function": { "name": "f", "strict": true } }),
            ),
            (&["f"], json!(7)),
        ] {
            assert!(settle(names, choice.clone()).is_err(), "{names:?} {choice}");
        }
    }
}
