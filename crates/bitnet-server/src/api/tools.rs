//! Tools: functions that the model may call, and their introduction in the prompt.
//!
//! A grammar ensures that text that begins like a call is a whole call of an existing tool, in the
//! form of the model's template (`calls`), with arguments that fit its schema.

use std::fmt;
use std::sync::Arc;

use bitnet_tokenizers::CallForm;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::ApiError;
use crate::api::calls::{self, CallFinder, ControlTokens, TextParameters};
use crate::grammar::{CallsGrammar, Grammar};
use crate::schema::{Schema, VISITS_MAX};

/// The most tools of a request, and the most characters of a tool's name.
const TOOLS_MAX: usize = 128;
const NAME_MAX: usize = 64;

/// A tool that the model may call.
#[derive(Clone, Debug, ToSchema)]
pub(crate) struct Tool {
    /// Only `function` is supported.
    r#type: String,
    function: Function,
    /// The known fields in the order in which they were sent, as templates get them.
    #[schema(ignore)]
    sent: Map<String, Value>,
}

/// A function.
#[derive(Clone, Debug, ToSchema)]
pub(crate) struct Function {
    /// Letters, digits, `_` and `-`, at most 64.
    name: String,
    /// The purpose of the function.
    #[expect(
        dead_code,
        reason = "templates get it with the fields as they were sent"
    )]
    description: Option<String>,
    /// A JSON schema of the arguments; if not given, there are no arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    /// Refuse a schema with keywords that cannot be enforced. Other keywords are always enforced.
    strict: Option<bool>,
    #[schema(ignore)]
    sent: Map<String, Value>,
}

impl Serialize for Tool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.sent.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Tool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ToolVisitor)
    }
}

impl<'de> Deserialize<'de> for Function {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FunctionVisitor)
    }
}

/// Reads a field, and keeps it among those that were `sent`.
fn field<'de, T, A>(
    map: &mut A,
    name: &str,
    slot: &mut Option<T>,
    sent: &mut Map<String, Value>,
    json: impl Fn(&T) -> Value,
) -> Result<(), A::Error>
where
    T: Deserialize<'de>,
    A: MapAccess<'de>,
{
    if slot.is_some() {
        return Err(A::Error::custom(format!("duplicate field `{name}`")));
    }
    let value = map.next_value()?;
    sent.insert(name.to_owned(), json(&value));
    *slot = Some(value);
    Ok(())
}

struct ToolVisitor;

impl<'de> Visitor<'de> for ToolVisitor {
    type Value = Tool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tool")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tool, A::Error> {
        let (mut kind, mut function, mut sent) = (None, None, Map::new());
        while let Some(key) = map.next_key::<String>()? {
            let sent = &mut sent;
            match &*key {
                "type" => field(&mut map, &key, &mut kind, sent, |kind: &String| json!(kind))?,
                "function" => field(
                    &mut map,
                    &key,
                    &mut function,
                    sent,
                    |function: &Function| Value::Object(function.sent.clone()),
                )?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Tool {
            r#type: kind.ok_or_else(|| A::Error::missing_field("type"))?,
            function: function.ok_or_else(|| A::Error::missing_field("function"))?,
            sent,
        })
    }
}

struct FunctionVisitor;

impl<'de> Visitor<'de> for FunctionVisitor {
    type Value = Function;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a function")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Function, A::Error> {
        let (mut name, mut description, mut parameters, mut strict) = (None, None, None, None);
        let mut sent = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let (map, sent) = (&mut map, &mut sent);
            match &*key {
                "name" => field(map, &key, &mut name, sent, |name: &String| json!(name))?,
                "description" => field(map, &key, &mut description, sent, |text| json!(text))?,
                "parameters" => {
                    field(
                        map,
                        &key,
                        &mut parameters,
                        sent,
                        |schema: &Option<Value>| json!(schema),
                    )?;
                }
                "strict" => field(map, &key, &mut strict, sent, |strict| json!(strict))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Function {
            name: name.ok_or_else(|| A::Error::missing_field("name"))?,
            description: description.flatten(),
            parameters: parameters.flatten(),
            strict: strict.flatten(),
            sent,
        })
    }
}

/// A call of a tool.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    /// The index of the call in the message, as in streams.
    #[serde(skip_serializing)]
    #[expect(dead_code, reason = "the order of the calls says the same")]
    pub(crate) index: Option<usize>,
    pub(crate) id: String,
    /// `function`
    pub(crate) r#type: String,
    pub(crate) function: FunctionCall,
}

/// The function and its arguments.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    pub(crate) name: String,
    /// JSON, as a string.
    // Messages of transformers have an object.
    #[serde(deserialize_with = "text_or_object")]
    pub(crate) arguments: String,
}

/// Reads a string, or an object as its JSON.
fn text_or_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        object @ Value::Object(_) => Ok(object.to_string()),
        _ => Err(D::Error::custom("expected a string or an object")),
    }
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
        if tools.len() > TOOLS_MAX {
            let message = format!(
                "'tools' has {} tools, but may have at most {TOOLS_MAX}.",
                tools.len()
            );
            return Err(ApiError::invalid("tools", message));
        }
        // The names are compared with each other, so the number of tools is checked first.
        for (index, tool) in tools.iter().enumerate() {
            check(tool, &tools[..index], index)?;
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
             {}.",
            lines.join("\n"),
            calls::written_call("NAME", "{…}"),
        )
    }

    /// Whether the answer must contain a call.
    pub(crate) fn must_call(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// The grammar of an answer (calls, or text that may end in calls), and the parser of the
    /// calls.
    ///
    /// The calls have the form of the model's template, unless that form is XML and the arguments
    /// of a tool are not a plain list of parameters: then the calls are JSON. `control` finds the
    /// control tokens that are marks of the form.
    pub(crate) fn calls(
        &self,
        form: CallForm,
        control: ControlTokens<'_>,
    ) -> Result<(Grammar, CallFinder), ApiError> {
        let mut num_visits = 0;
        let arguments = self.callable().map(|(index, tool)| {
            let (field, schema) = arguments_schema(index, &tool.function)?;
            num_visits += schema.num_visits();
            if num_visits > VISITS_MAX {
                let message = "'tools': the references of all schemas together lead to too many schemas and properties.";
                return Err(ApiError::invalid("tools", message));
            }
            Ok((index, field, schema))
        });
        let arguments = arguments.collect::<Result<Vec<_>, ApiError>>()?;
        let mut schemas = arguments.iter().map(|(_, _, schema)| schema.value());
        let form = match form {
            CallForm::QwenXml if !schemas.all(calls::is_list_of_parameters) => CallForm::Hermes,
            form => form,
        };
        let (mut names, mut rules) = (Vec::new(), String::new());
        let mut texts = TextParameters::new();
        for (index, _, schema) in &arguments {
            let (name, schema) = (&self.tools[*index].function.name, schema.value());
            names.push(format!("call_{index}"));
            rules += &calls::rules(form, *index, name, schema, control);
            texts.insert(name.clone(), calls::text_parameters(schema));
        }
        let may_say = self.choice == Choice::Auto;
        let may_repeat = self.is_parallel && !matches!(self.choice, Choice::Named(_));
        let start = calls::start(form, may_say, may_repeat, control);
        let grammar = Grammar::Calls(CallsGrammar {
            lark: format!("{start}call: {}\n{rules}", names.join(" | ")),
            arguments: arguments
                .into_iter()
                .map(|(_, field, schema)| (field, schema))
                .collect(),
        });
        Ok((grammar, CallFinder::new(form, Arc::new(texts))))
    }

    /// The tools that may be called, with their indices.
    fn callable(&self) -> impl Iterator<Item = (usize, &Tool)> {
        let is_callable = |index: usize| match self.choice {
            Choice::Named(named) => named == index,
            Choice::Auto | Choice::Required => true,
        };
        let tools = self.tools.iter().enumerate();
        tools.filter(move |(index, _)| is_callable(*index))
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

/// The schema of a function's arguments, and the name of the request's field that has it.
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

/// Calls of an earlier message in the plain form, for templates that do not read them.
pub(crate) fn written(calls: &[Value]) -> String {
    let call = |call: &Value| {
        let name = call["function"]["name"].as_str().unwrap_or_default();
        let arguments = match call["function"]["arguments"].as_str().map(str::trim) {
            None | Some("") => "{}",
            Some(arguments) => arguments,
        };
        calls::written_call(name, arguments)
    };
    calls.iter().map(call).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::calls::Found;
    use crate::grammar::Grammars;
    use crate::grammar::tests::{accepts, accepts_tokens, grammars, tokenizer};
    use bitnet_tokenizers::{EncodeOptions, Tokenizer};

    fn tool(name: &str) -> Tool {
        let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
        let tool =
            json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
        serde_json::from_value(tool).expect("a tool")
    }

    #[test]
    fn templates_get_a_tool_with_its_keys_in_the_order_in_which_they_were_sent() {
        let sent = r#"{"function":{"strict":true,"parameters":{"type":"object","properties":{"b":{},"a":{}}},"description":null,"name":"f"},"type":"function"}"#;
        let tool: Tool = serde_json::from_str(sent).expect("a tool");
        assert_eq!(serde_json::to_string(&tool).expect("JSON"), sent);
        for (wrong, error) in [
            (r#"{"type":"function"}"#, "missing field `function`"),
            (
                r#"{"type":"function","function":{}}"#,
                "missing field `name`",
            ),
            (r#"{"type":"a","type":"b"}"#, "duplicate field `type`"),
            (
                r#"{"type":"function","function":{"name":7}}"#,
                "invalid type: integer `7`",
            ),
        ] {
            let found = serde_json::from_str::<Tool>(wrong)
                .expect_err("an error")
                .to_string();
            assert!(found.starts_with(error), "{found}");
        }
    }

    fn weather() -> Tool {
        let parameters = json!({
            "type": "object",
            "properties": {
                "city": { "type": "string" },
                "days": { "type": "integer" },
                "unit": { "enum": ["C", "F"] },
                "places": { "type": "array", "items": { "$ref": "#/$defs/place" } },
            },
            "required": ["city", "days"],
            "$defs": { "place": { "type": "object", "properties": { "x": { "type": "number" } } } },
        });
        let function = json!({ "name": "weather", "parameters": parameters });
        serde_json::from_value(json!({ "type": "function", "function": function })).expect("a tool")
    }

    /// Finds calls in a text with tools that may or must be called: names and arguments of the
    /// calls if the grammar accepts the text, else `None`.
    fn calls_in(
        grammars: &Grammars,
        tokenizer: &Tokenizer,
        (tools, form): (&Tools, CallForm),
        text: &str,
    ) -> Option<Vec<(String, Value)>> {
        let (grammar, mut finder) = tools.calls(form, &|_| None).expect("a grammar");
        if !accepts(grammars, tokenizer, &grammar, text) {
            return None;
        }
        let (mut found, mut calls) = (Vec::new(), Vec::<(String, String)>::new());
        finder.push(text, &mut found);
        finder.finish(&mut found);
        for part in found {
            match part {
                Found::Text(_) | Found::Reasoning(_) => {}
                Found::Call { name, .. } => calls.push((name, String::new())),
                Found::Arguments { index, text } => calls[index].1 += &text,
            }
        }
        let read = |(name, text): (String, String)| {
            let arguments = serde_json::from_str(&text);
            (name, arguments.unwrap_or_else(|_| panic!("{text}")))
        };
        Some(calls.into_iter().map(read).collect())
    }

    const XML: &str = "<tool_call>\n<function=weather>\n<parameter=city>\nX \"1\" \\ <b>\n\n\
        </parameter>\n<parameter=days>\n7\n</parameter>\n</function>\n</tool_call>";
    const HERMES: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \
        \"X \\\"1\\\" \\\\ <b>\\n\", \"days\": 7}}\n</tool_call>";

    #[test]
    fn calls_of_each_form_are_accepted_and_found() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let settle = |choice: &str| {
            let tools = vec![weather(), tool("f")];
            let tools = Tools::settle(Some(tools), Some(&json!(choice)), None);
            tools.expect("tools").expect("a tool")
        };
        let (auto, required) = (settle("auto"), settle("required"));
        let plain = HERMES.replace(['\n'], "");
        let llama3 = plain.replace("<tool_call>", "").replace("</tool_call>", "");
        let llama3 = llama3.replace("arguments", "parameters");
        let object = plain.replace("<tool_call>", "").replace("</tool_call>", "");
        let mistral_list = format!("[TOOL_CALLS] [{object}]");
        let mistral_named = object
            .replace(
                "{\"name\": \"weather\", \"arguments\": ",
                "[TOOL_CALLS]weather[ARGS]",
            )
            .replace("7}}", "7}");
        let forms = [
            (CallForm::QwenXml, XML),
            (CallForm::Hermes, HERMES),
            (CallForm::Plain, &plain),
            (CallForm::Llama3, &llama3),
            (CallForm::MistralList, &mistral_list),
            (CallForm::MistralNamed, &mistral_named),
        ];
        let arguments = json!({ "city": "X \"1\" \\ <b>\n", "days": 7 });
        let call = ("weather".to_owned(), arguments);
        for (form, text) in forms {
            let is_whole = form == CallForm::Llama3;
            let of =
                |tools: &Tools, text: &str| calls_in(&grammars, &tokenizer, (tools, form), text);
            let (one, two) = (vec![call.clone()], vec![call.clone(), call.clone()]);
            assert_eq!(of(&required, text), Some(one.clone()), "{form:?}");
            assert_eq!(of(&auto, text), Some(one.clone()), "{form:?}");
            assert_eq!(of(&auto, "Once < 7 \"\n"), Some(Vec::new()), "{form:?}");
            assert_eq!(of(&required, "Once"), None, "{form:?}");
            let after = of(&auto, &format!("Once \"<t\n\n{text}"));
            let expected = if is_whole { Vec::new() } else { one };
            assert_eq!(after, Some(expected), "{form:?}");
            let both = match form {
                CallForm::MistralList => format!("[TOOL_CALLS][{object}, {object}]"),
                CallForm::MistralNamed => format!("{text}{text}"),
                _ => format!("{text}\n{text}"),
            };
            let both = of(&required, &both);
            assert_eq!(both, (!is_whole).then_some(two), "{form:?}");
            assert_eq!(of(&auto, &text.replace("weather", "whether")), None);
            assert_eq!(of(&auto, &text.replace('7', "x")), None, "{form:?}");
            assert_eq!(of(&auto, &text.replace('7', "1e5413")), None, "{form:?}");
        }
    }

    #[test]
    fn the_work_on_the_schemas_of_all_tools_is_bounded() {
        let calls = |num_tools: usize| {
            let mut tool = tool("f");
            tool.function.parameters = Some(crate::schema::tests::chain(300));
            let named = |index| {
                let mut tool = tool.clone();
                tool.function.name = format!("f{index}");
                tool
            };
            let tools = Tools::settle(Some((0..num_tools).map(named).collect()), None, None);
            let calls = tools
                .expect("tools")
                .expect("a tool")
                .calls(CallForm::Hermes, &|_| None);
            calls.map(drop).map_err(|error| error.message().to_owned())
        };
        assert_eq!(calls(1), Ok(()));
        let refused = calls(3).expect_err("too much work");
        assert!(refused.contains("all schemas together"), "{refused}");
    }

    #[test]
    fn arguments_of_earlier_calls_are_a_string_or_an_object() {
        let read = |arguments: Value| {
            let call = json!({ "name": "f", "arguments": arguments });
            let call: Result<FunctionCall, _> = serde_json::from_value(call);
            call.map(|call| call.arguments)
                .map_err(|error| error.to_string())
        };
        let text = r#"{"zone":1.0,"city":"x"}"#;
        assert_eq!(read(json!(text)).as_deref(), Ok(text));
        assert_eq!(
            read(json!({ "zone": 1.0, "city": "x" })).as_deref(),
            Ok(text)
        );
        for wrong in [json!(null), json!([1]), json!(1)] {
            let expected = "expected a string or an object".to_owned();
            assert_eq!(read(wrong), Err(expected));
        }
    }

    #[test]
    fn marks_of_mistral_are_control_tokens_where_the_vocabulary_has_them() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let reserved = |number: u32| {
            let token = tokenizer.special_token(&format!("<|reserved_special_token_{number}|>"));
            token.expect("a control token")
        };
        let control = |text: &str| match text {
            "[TOOL_CALLS]" => Some(reserved(0)),
            "[ARGS]" => Some(reserved(1)),
            _ => None,
        };
        let encode = |text: &str| {
            let options = EncodeOptions {
                add_special: false,
                parse_special: true,
            };
            tokenizer.encode(text, options).expect("tokens")
        };
        let [calls, args] = [
            "<|reserved_special_token_0|>",
            "<|reserved_special_token_1|>",
        ];
        let named = format!("{calls}f{args}{{\"city\": \"X\"}}");
        let item = "{\"name\": \"f\", \"arguments\": {\"city\": \"X\"}}";
        let list = format!("{calls}[{item}, {item}]");
        for (form, text) in [
            (CallForm::MistralNamed, named),
            (CallForm::MistralList, list),
        ] {
            for (choice, may_say) in [("auto", true), ("required", false)] {
                let tools = Tools::settle(Some(vec![tool("f")]), Some(&json!(choice)), None);
                let tools = tools.expect("tools").expect("a tool");
                let (grammar, _) = tools.calls(form, &control).expect("a grammar");
                let takes =
                    |text: &str| accepts_tokens(&grammars, &tokenizer, &grammar, encode(text));
                assert!(takes(&text), "{form:?} {choice}");
                assert_eq!(takes(&format!("Once.{text}")), may_say, "{form:?} {choice}");
                assert_eq!(takes("Once"), may_say, "{form:?} {choice}");
                assert!(!takes(&text.replace(calls, "[TOOL_CALLS]")) || may_say);
                assert!(!takes(&text.replace("city", "town")), "{form:?} {choice}");
            }
        }
    }

    #[test]
    fn parameters_in_xml_are_optional_as_the_schema_says() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let tools = Tools::settle(Some(vec![weather()]), Some(&json!("required")), None);
        let tools = tools.expect("tools").expect("a tool");
        let of = |text: &str| calls_in(&grammars, &tokenizer, (&tools, CallForm::QwenXml), text);
        let more = "<parameter=unit>\nC\n</parameter>\n<parameter=places>\n[{\"x\": 1.5}]\n\
            </parameter>\n</function>";
        let arguments = json!({ "city": "X \"1\" \\ <b>\n", "days": 7, "unit": "C",
            "places": [{ "x": 1.5 }] });
        let call = ("weather".to_owned(), arguments);
        assert_eq!(of(&XML.replace("</function>", more)), Some(vec![call]));
        let quoted = more.replace("\nC\n", "\n\"C\"\n");
        assert_eq!(of(&XML.replace("</function>", &quoted)), None);
        let days = "<parameter=days>\n7\n</parameter>\n";
        assert_eq!(of(&XML.replace(days, "")), None);
        let unknown = "<parameter=other>\n7\n</parameter>\n</function>";
        assert_eq!(of(&XML.replace("</function>", unknown)), None);
    }

    #[test]
    fn arguments_that_are_not_a_list_of_parameters_are_json() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let a = json!({ "type": "string" });
        for parameters in [
            json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            json!({ "properties": { "a": a }, "additionalProperties": true }),
            json!({ "properties": { "a": a }, "anyOf": [{ "required": ["a"] }, {}] }),
            json!({ "properties": { "a": a, "b>\n": a } }),
        ] {
            let function = json!({ "name": "f", "parameters": parameters });
            let tool = json!({ "type": "function", "function": function });
            let tool = serde_json::from_value(tool).expect("a tool");
            let tools = Tools::settle(Some(vec![tool]), Some(&json!("required")), None);
            let tools = tools.expect("tools").expect("a tool");
            let of = |text| calls_in(&grammars, &tokenizer, (&tools, CallForm::QwenXml), text);
            let text =
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b\"}}\n</tool_call>";
            let call = ("f".to_owned(), json!({ "a": "b" }));
            assert_eq!(of(text), Some(vec![call]), "{parameters}");
        }
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
        let error = settle(&["f"; TOOLS_MAX + 1], json!("auto")).expect_err("too many");
        assert!(
            serde_json::to_string(&error.body()).is_ok_and(|body| body.contains("at most 128"))
        );
    }
}
