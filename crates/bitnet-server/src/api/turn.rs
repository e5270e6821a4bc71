//! [`Turn`]: the next message of a conversation, as a request for it. Every endpoint that answers
//! conversations translates its requests to this one, so that all of them check, generate and
//! count alike.

use std::sync::Arc;

use bitnet_inference::ThinkingMarks;
use bitnet_tokenizers::{ReasoningSplitter, ReasoningStart, TokenId};
use serde_json::{Map, Value};

use crate::api::ApiError;
use crate::api::calls::{self, CallFinder, ControlTokens};
use crate::api::chat::Message;
use crate::api::conversation::{self, Rendering, chat_messages, render_messages};
use crate::api::generate::{self, Answers, Asked, Common, Plan, ThinkingPlan};
use crate::api::reader::AnswerReader;
use crate::api::tools::{Tool, Tools};
use crate::grammar::{Grammar, TokenConstraint};
use crate::record::Record;
use crate::registry::ModelLease;
use crate::served::ServedModel;
use crate::state::App;

/// A request for the next message of a conversation, before it is checked. Errors name the fields
/// of chat completions; [`ApiError::renamed`] translates them.
pub(crate) struct Turn {
    pub(crate) messages: Vec<Message>,
    /// Sampling, stops, forms, and how the answer is sent.
    pub(crate) common: Common,
    /// Maximum number of tokens to generate; without it the context is the limit.
    pub(crate) max_tokens: Option<u32>,
    /// Log-probabilities of each token, and of this many of the most probable ones.
    pub(crate) num_logprobs: Option<usize>,
    pub(crate) tools: Option<Vec<Tool>>,
    /// As in chat completions.
    pub(crate) tool_choice: Option<Value>,
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Variables for the model's template.
    pub(crate) variables: Map<String, Value>,
    /// How much the model should reason, for templates that read it; `none` also sets the variable
    /// `enable_thinking` to false.
    pub(crate) reasoning_effort: Option<String>,
    /// Maximum number of tokens of thinking.
    pub(crate) thinking_budget: Option<usize>,
    /// Whether the client gets the thinking.
    pub(crate) shows_reasoning: bool,
    pub(crate) documents: Option<Value>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
}

impl Turn {
    /// A request for the answer to these messages, with the server's defaults.
    pub(crate) fn new(messages: Vec<Message>, common: Common) -> Self {
        Self {
            messages,
            common,
            max_tokens: None,
            num_logprobs: None,
            tools: None,
            tool_choice: None,
            parallel_tool_calls: None,
            variables: Map::new(),
            reasoning_effort: None,
            thinking_budget: None,
            shows_reasoning: true,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }

    /// Checks the request, and makes its prompt.
    pub(crate) fn prepare(mut self, app: &App, model: &ServedModel) -> Result<Prepared, ApiError> {
        let control = |text: &str| conversation::control_token(model, text);
        let (tools, grammar, finder) = self.take_tools(model, &control)?;
        if tools.as_ref().is_some_and(Tools::must_call) {
            // The answer is a tool call; stop strings would cut it.
            (self.common.stop, self.common.stop_token_ids) = (None, None);
        }
        let common = std::mem::take(&mut self.common);
        let mut plan = common.settle(app, model, self.max_tokens, self.num_logprobs, grammar)?;
        let (text, prompt) = self.render(model, tools.as_ref())?;
        plan.thinking = self.thinking(model, &text, plan.has_form())?;
        Ok(Prepared {
            plan,
            reader: self.reader(model, &text, finder),
            text,
            prompt,
        })
    }

    /// Checks the request of a program that runs the engine itself, and makes its prompt.
    pub(crate) fn local(mut self, model: &ServedModel) -> Result<LocalParts, ApiError> {
        // The program reads answers without the names of control tokens, so marks of calls are
        // text.
        let (tools, grammar, finder) = self.take_tools(model, &|_| None)?;
        let form = self.common.constraint(model, grammar)?;
        let (text, prompt) = self.render(model, tools.as_ref())?;
        Ok(LocalParts {
            prompt,
            thinking: self.thinking(model, &text, form.is_some())?,
            form,
            reader: self.reader(model, &text, finder),
            text,
            must_call: tools.as_ref().is_some_and(Tools::must_call),
        })
    }

    /// `control` finds the control tokens that are marks of calls.
    fn take_tools(
        &mut self,
        model: &ServedModel,
        control: ControlTokens<'_>,
    ) -> Result<TakenTools, ApiError> {
        let tools = Tools::settle(
            self.tools.take(),
            self.tool_choice.as_ref(),
            self.parallel_tool_calls,
        )?;
        let form = conversation::call_form(model);
        if tools.is_some() && calls::has_control_tokens(form, control) {
            // The parser needs their names. The grammar allows no others.
            self.common.skip_special_tokens = Some(false);
        }
        let calls = tools.as_ref().map(|tools| tools.calls(form, control));
        let (grammar, finder) = calls.transpose()?.unzip();
        Ok((tools, grammar, finder))
    }

    /// The prompt as a text and as tokens.
    fn render(
        &mut self,
        model: &ServedModel,
        tools: Option<&Tools>,
    ) -> Result<(String, Vec<TokenId>), ApiError> {
        self.set_reasoning_effort();
        let rendering = Rendering {
            tools,
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            documents: self.documents.as_ref(),
            variables: Some(&self.variables),
        };
        render_messages(model, &chat_messages(&self.messages)?, &rendering)
    }

    /// The thinking before the form of an answer to the prompt `text`, limited to the budget;
    /// `None` if nothing depends on it.
    fn thinking(
        &self,
        model: &ServedModel,
        text: &str,
        has_form: bool,
    ) -> Result<Option<ThinkingPlan>, ApiError> {
        let budget = self.thinking_budget;
        let Some(tags) = conversation::reasoning_tags(model) else {
            return Ok(None);
        };
        let is_free = budget.is_none() && !has_form;
        let Some(tokenizer) = model.tokenizer.as_ref().filter(|_| !is_free) else {
            return Ok(None);
        };
        let start = tags.start_after(text);
        if start == ReasoningStart::Closed {
            return Ok(None);
        }
        let marks = ThinkingMarks::new(tags, Arc::clone(tokenizer));
        let marks = marks.map_err(|error| ApiError::invalid("messages", format!("{error}.")))?;
        Ok(Some(ThinkingPlan {
            marks: Arc::new(marks),
            start,
            budget,
        }))
    }

    /// The reader of answers to the prompt `text`.
    fn reader(&self, model: &ServedModel, text: &str, finder: Option<CallFinder>) -> AnswerReader {
        let tags = conversation::reasoning_tags(model);
        let splitter = tags.map(|tags| ReasoningSplitter::new(tags, text));
        AnswerReader::new(splitter, finder, self.shows_reasoning)
    }

    fn set_reasoning_effort(&mut self) {
        let Some(effort) = self.reasoning_effort.take() else {
            return;
        };
        if effort == "none" {
            let thinks = self.variables.entry("enable_thinking");
            thinks.or_insert(Value::Bool(false));
        }
        let known = self.variables.entry("reasoning_effort");
        known.or_insert(Value::String(effort));
    }
}

/// A checked request with its prompt.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    /// The prompt as text.
    pub(crate) text: String,
    pub(crate) prompt: Vec<TokenId>,
    /// Reads each answer.
    pub(crate) reader: AnswerReader,
}

impl Prepared {
    /// Puts the request into the queue. `param`: the field that has the messages.
    pub(crate) fn submit(
        &self,
        app: &App,
        model: &ModelLease,
        param: &'static str,
        response_id: &str,
        record: &Arc<Record>,
    ) -> Result<Answers, ApiError> {
        let asked = Asked {
            plan: &self.plan,
            prompts: std::slice::from_ref(&self.prompt),
            param,
            operation: "chat",
            response_id,
        };
        generate::submit(app, model, &asked, record)
    }
}

/// The tools of a request, the grammar of answers that may call them, and the parser of the calls.
type TakenTools = (Option<Tools>, Option<Grammar>, Option<CallFinder>);

/// A request of a program that runs the engine itself: it settles all but the prompt, the form and
/// how to read the answer.
pub(crate) struct LocalParts {
    pub(crate) text: String,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) form: Option<TokenConstraint>,
    pub(crate) thinking: Option<ThinkingPlan>,
    pub(crate) reader: AnswerReader,
    /// Whether the answer must be a tool call.
    pub(crate) must_call: bool,
}
