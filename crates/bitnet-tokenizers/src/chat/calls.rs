//! How models write the calls of tools in their answers.

/// The form of calls that a template writes, and so the form that its model was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": NAME, "arguments": {…}}</tool_call>`: for models that were trained on
    /// no form, or on one that is not listed here.
    Plain,
    /// The same with line ends inside the tags: Hermes, Qwen 2.5, Qwen 3.
    Hermes,
    /// `<tool_call>`, `<function=NAME>`, `<parameter=KEY>`, VALUE, `</parameter>`, … each on a line
    /// of its own: Qwen 3 Coder, Qwen 3.5.
    QwenXml,
    /// `{"name": NAME, "parameters": {…}}`, the whole answer: Llama 3.1 to 3.3.
    Llama3,
}

impl CallForm {
    /// The form that a template shows.
    pub(crate) fn of_template(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        if has("<tool_call>") && has("<function=") && has("<parameter=") {
            Self::QwenXml
        } else if has("<tool_call>") {
            Self::Hermes
        } else if has("\"parameters\": ") && has("{\"name\": \"") {
            Self::Llama3
        } else {
            Self::Plain
        }
    }
}
