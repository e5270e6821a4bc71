//! How models write the calls of tools in their answers.

/// The form of calls that a template writes, and so the form that its model was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": NAME, "arguments": {…}}</tool_call>`: for models that were trained on
    /// no form, or on one that is not listed here.
    Plain,
    /// The same with line ends inside the tags: Hermes, Qwen 2.5, Qwen 3.
    Hermes,
    /// `<tool_call>`, `<function=NAME>`, `<parameter=KEY>`, VALUE, `</parameter>`, … each on its
    /// own line: Qwen 3 Coder, Qwen 3.5.
    QwenXml,
    /// `{"name": NAME, "parameters": {…}}`, the whole answer: Llama 3.1 to 3.3.
    Llama3,
    /// `[TOOL_CALLS] [{"name": NAME, "arguments": {…}}, …]`, with or without the space: Mistral 7B
    /// v0.3, Mistral Small 3.
    MistralList,
    /// `[TOOL_CALLS]NAME[ARGS]{…}`, again for each call: Mistral Small 3.2, Devstral.
    MistralNamed,
}

impl CallForm {
    /// The form that a template shows.
    pub(crate) fn of_template(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        if has("<tool_call>") && has("<function=") && has("<parameter=") {
            Self::QwenXml
        } else if has("<tool_call>") && has("\"arguments\"") {
            Self::Hermes
        } else if has("{\"name\": function name, \"parameters\": ") {
            Self::Llama3
        } else if has("[TOOL_CALLS]") && has("[ARGS]") {
            Self::MistralNamed
        } else if has("[TOOL_CALLS]") {
            Self::MistralList
        } else {
            Self::Plain
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_calls_is_the_one_that_the_template_shows() {
        // The parts of public templates that identify the form: Qwen 3 Coder, Qwen 3, Llama 3.1,
        // GLM 4.6, Command R7B.
        let xml = "{{- '<tool_call>\\n<function=' + tool_call.name + '>\\n' }}\
            {{- '<parameter=' + args_name + '>\\n' }}";
        let hermes = "{{- '<tool_call>\\n{\"name\": \"' }}{{- '\", \"arguments\": ' }}";
        let llama3 = "{{- 'Respond in the format {\"name\": function name, \"parameters\": \
            dictionary of argument name and its value}.' }}{{- '{\"name\": \"' + tool_call.name }}";
        let glm = "{{ '\\n<tool_call>' + tc.name }}<arg_key>{{ k }}</arg_key>";
        let command =
            "{\"tool_call_id\": \"0\", \"tool_name\": \"x\", \"parameters\": {\"name\": \"";
        for (source, form) in [
            (xml, CallForm::QwenXml),
            (hermes, CallForm::Hermes),
            (llama3, CallForm::Llama3),
            (glm, CallForm::Plain),
            (command, CallForm::Plain),
            ("{{ \"[TOOL_CALLS] [\" }}", CallForm::MistralList),
            (
                "{{- '[TOOL_CALLS]' + name + '[ARGS]' }}",
                CallForm::MistralNamed,
            ),
            ("", CallForm::Plain),
        ] {
            assert_eq!(CallForm::of_template(source), form, "{source}");
        }
    }
}
