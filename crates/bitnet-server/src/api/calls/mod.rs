//! Calls of tools in the text of an answer: their grammar and their parser, for each form that
//! models are trained on.

mod finder;
mod grammar;

use bitnet_tokenizers::{CallForm, TokenId};

pub(crate) use finder::{CallFinder, Found};
pub(crate) use grammar::{TextParameters, is_list_of_parameters, rules, start, text_parameters};

/// The marks that delimit a call in one form. A call in JSON is `begin`, `name`, the name,
/// `arguments`, an object, `end`; one in XML is `begin`, `name`, the name, `arguments`, parameters,
/// `end`.
struct Marks {
    /// Nothing else in the text of an answer contains it.
    begin: &'static str,
    name: &'static str,
    arguments: &'static str,
    end: &'static str,
}

const PLAIN: Marks = Marks {
    begin: "<tool_call>",
    name: "{\"name\": \"",
    arguments: "\", \"arguments\": ",
    end: "}</tool_call>",
};
const HERMES: Marks = Marks {
    begin: "<tool_call>",
    name: "\n{\"name\": \"",
    arguments: "\", \"arguments\": ",
    end: "}\n</tool_call>",
};
const QWEN_XML: Marks = Marks {
    begin: "<tool_call>",
    name: "\n<function=",
    arguments: ">\n",
    end: "</function>\n</tool_call>",
};
const LLAMA_3: Marks = Marks {
    begin: "{\"name\": \"",
    name: "",
    arguments: "\", \"parameters\": ",
    end: "}",
};

const MISTRAL_LIST: Marks = Marks {
    begin: TOOL_CALLS,
    name: "{\"name\": \"",
    arguments: "\", \"arguments\": ",
    end: "}",
};
const MISTRAL_NAMED: Marks = Marks {
    begin: TOOL_CALLS,
    name: "",
    arguments: "[ARGS]",
    end: "",
};

/// The mark before Mistral's calls, in its vocabularies a control token.
const TOOL_CALLS: &str = "[TOOL_CALLS]";

/// Finds the control token with a text.
pub(crate) type ControlTokens<'a> = &'a dyn Fn(&str) -> Option<TokenId>;

/// Whether the calls of a form have marks that are control tokens of this vocabulary, so that the
/// finder needs their names in the text.
pub(crate) fn has_control_tokens(form: CallForm, control: ControlTokens<'_>) -> bool {
    marks(form).begin == TOOL_CALLS && control(TOOL_CALLS).is_some()
}

/// The marks of a parameter in XML.
const PARAMETER: &str = "<parameter=";
const VALUE: &str = ">\n";
const PARAMETER_END: &str = "\n</parameter>\n";

fn marks(form: CallForm) -> &'static Marks {
    match form {
        CallForm::Plain => &PLAIN,
        CallForm::Hermes => &HERMES,
        CallForm::QwenXml => &QWEN_XML,
        CallForm::Llama3 => &LLAMA_3,
        CallForm::MistralList => &MISTRAL_LIST,
        CallForm::MistralNamed => &MISTRAL_NAMED,
    }
}

/// A call in the plain form.
pub(crate) fn written_call(name: &str, arguments: &str) -> String {
    format!(
        "{}{}{name}{}{arguments}{}",
        PLAIN.begin, PLAIN.name, PLAIN.arguments, PLAIN.end
    )
}
