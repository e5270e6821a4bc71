//! [`Forms`]: compiles the forms that clients demand of answers (schemas, expressions, grammars),
//! without danger to the process.
//!
//! The library that compiles them recurses, allocates and computes without bounds, depending on its
//! input. So a form is first compiled by a helper process with limits on stack, memory and time;
//! see [`bitnet_guard::Contained`]. Only a form that passes there is compiled here, on a thread
//! with four times the stack. Results of recent forms are cached and need no helper.

use bitnet_guard::{Breach, Contained, HelperLimits, HelperProgram};
use bitnet_tokenizers::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::ApiError;
use crate::grammar::{Grammar, GrammarError, Grammars, TokenConstraint};
use crate::text;
use crate::vocabulary::FormVocabulary;

/// Maximum size of a form in bytes, as JSON.
const BYTES_MAX: usize = 256 << 10;
/// Maximum depth of brackets in an expression or a grammar, and of values in a schema.
const DEPTH_MAX: usize = 120;
/// Maximum number of entries of one list or object in a schema.
const WIDTH_MAX: usize = 4096;
/// Maximum number of alternatives (`|`) in an expression or a grammar.
const ALTERNATIVES_MAX: usize = 4096;

/// How forms are compiled in helper processes.
#[derive(Clone, Debug)]
pub struct FormHelper {
    /// A program that calls [`answer_forms`] with these limits.
    pub program: HelperProgram,
    /// The limits of each helper.
    pub limits: HelperLimits,
}

impl FormHelper {
    /// Stack of a helper in bytes: a quarter of that of the threads that compile forms here.
    pub const STACK_BYTES: usize = text::FORM_STACK_BYTES;
}

/// The forms of one model.
pub(crate) struct Forms {
    grammars: Grammars,
    helpers: Option<Contained>,
}

/// A helper's result for a form.
#[derive(Serialize, Deserialize)]
enum Verdict {
    Compiles,
    Refused(GrammarError),
}

impl Forms {
    /// Takes some hundred milliseconds for a vocabulary of 128,000 tokens.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        num_rows: usize,
        helper: Option<&FormHelper>,
    ) -> Result<Self, String> {
        let vocabulary = FormVocabulary::new(tokenizer, num_rows)?;
        let helpers = helper.map(|helper| {
            let FormHelper { program, limits } = helper.clone();
            Contained::new(program, limits, vocabulary.to_bytes())
        });
        Ok(Self {
            grammars: Grammars::new(&vocabulary)?,
            helpers,
        })
    }

    /// The initial state of an answer with a form from the request's `field`.
    pub(crate) fn compile(
        &self,
        grammar: &Grammar,
        field: &str,
    ) -> Result<TokenConstraint, ApiError> {
        let refused = |GrammarError { param, problem }| {
            let field = param.as_deref().unwrap_or(field);
            ApiError::invalid(field, format!("'{field}': {problem}."))
        };
        if let Some(known) = self.grammars.known(grammar) {
            return known.map_err(refused);
        }
        measure(grammar).map_err(|problem| refused(problem.into()))?;
        text::as_form(|cancel| {
            let verdict = match &self.helpers {
                None => Verdict::Compiles,
                Some(helpers) => ask(helpers, grammar, cancel).map_err(|breach| match breach {
                    Breach::Start(_) => {
                        tracing::error!(%breach, "a form cannot be compiled");
                        ApiError::internal("the helper process for forms cannot be started")
                    }
                    breach => refused(breach.to_string().into()),
                })?,
            };
            match verdict {
                Verdict::Compiles => self.grammars.compile(grammar).map_err(refused),
                Verdict::Refused(error) => {
                    self.grammars.keep(grammar, Err(error.clone()));
                    Err(refused(error))
                }
            }
        })
    }
}

fn ask(
    helpers: &Contained,
    grammar: &Grammar,
    cancel: &bitnet_guard::Cancel,
) -> Result<Verdict, Breach> {
    let unreadable = |error: serde_json::Error| Breach::Start(error.to_string());
    let job = serde_json::to_vec(grammar).map_err(unreadable)?;
    let answer = helpers.run(&job, cancel)?;
    serde_json::from_slice(&answer).map_err(unreadable)
}

/// Compiles forms in a helper process until its parent ends, and never returns.
pub fn answer_forms(limits: HelperLimits) -> ! {
    bitnet_guard::answer_jobs(limits, |vocabulary| {
        let grammars = Grammars::new(&FormVocabulary::from_bytes(vocabulary)?)?;
        Ok(move |job: &[u8]| {
            let verdict = match serde_json::from_slice(job) {
                Ok(grammar) => grammars.compile(&grammar).map(|_| ()),
                Err(error) => Err(error.to_string().into()),
            };
            let verdict = match verdict {
                Ok(()) => Verdict::Compiles,
                Err(error) => Verdict::Refused(error),
            };
            serde_json::to_vec(&verdict).unwrap_or_default()
        })
    })
}

/// Refuses forms that are too much work by their size alone.
fn measure(grammar: &Grammar) -> Result<(), String> {
    let (bytes, depth) = match grammar {
        Grammar::Regex(text) | Grammar::Lark(text) => {
            let alternatives = text.matches('|').count();
            if alternatives > ALTERNATIVES_MAX {
                return Err(format!(
                    "it has {alternatives} alternatives, but may have {ALTERNATIVES_MAX}"
                ));
            }
            (text.len(), bracket_depth(text))
        }
        Grammar::Calls(calls) => (calls.lark.len(), 0),
        Grammar::Schema(schema) => {
            let schema = schema.value();
            let (depth, width) = extent(schema);
            if width > WIDTH_MAX {
                return Err(format!(
                    "a list or an object in it has {width} entries, but may have {WIDTH_MAX}"
                ));
            }
            (schema.to_string().len(), depth)
        }
    };
    if bytes > BYTES_MAX {
        return Err(format!("it has {bytes} bytes, but may have {BYTES_MAX}"));
    }
    if depth > DEPTH_MAX {
        return Err(format!(
            "it is nested {depth} deep, but may be at most {DEPTH_MAX}"
        ));
    }
    Ok(())
}

/// The maximum number of brackets open at once; escaped and quoted brackets count.
fn bracket_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// How deep a value is nested, and the entries of its widest list or object.
fn extent(value: &Value) -> (usize, usize) {
    let (mut deepest, mut widest) = (0, 0);
    let mut open = vec![(value, 1)];
    while let Some((value, depth)) = open.pop() {
        let width = match value {
            Value::Array(items) => {
                open.extend(items.iter().map(|item| (item, depth + 1)));
                items.len()
            }
            Value::Object(fields) => {
                open.extend(fields.values().map(|field| (field, depth + 1)));
                fields.len()
            }
            _ => 0,
        };
        (deepest, widest) = (deepest.max(depth), widest.max(width));
    }
    (deepest, widest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(grammar: &Grammar) -> Option<String> {
        measure(grammar).err()
    }

    #[test]
    fn forms_are_measured_before_they_are_compiled() {
        let text = |text: String| refusal(&Grammar::Regex(text));
        assert_eq!(text("(a|b)*".repeat(1000)), None);
        let refused = |text: Option<String>, words: &str| {
            assert!(
                text.as_deref().is_some_and(|text| text.contains(words)),
                "{text:?}"
            );
        };
        refused(
            text("a".repeat(BYTES_MAX + 1)),
            "262145 bytes, but may have 262144",
        );
        let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(text(nested(DEPTH_MAX)), None);
        refused(text(nested(DEPTH_MAX + 1)), "nested 121 deep");
        refused(text("a|".repeat(4097)), "4097 alternatives");
    }

    #[test]
    fn the_extent_of_a_value_is_its_depth_and_its_width() {
        assert_eq!(extent(&serde_json::json!(7)), (1, 0));
        assert_eq!(
            extent(&serde_json::json!({ "a": [1, 2, 3], "b": { "c": [] } })),
            (3, 3)
        );
    }
}
