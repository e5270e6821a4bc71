//! Finds the modules that a list of names keeps in floats, as transformers reads such lists.

use regex::Regex;

/// An entry of `modules_to_not_convert`.
pub(super) struct ModulePattern<'a> {
    pub(super) text: &'a str,
    /// Matches from the start up to the end of a module's name, or up to just before a dot.
    before_dot: Regex,
    /// Matches a whole name.
    whole: Regex,
}

impl<'a> ModulePattern<'a> {
    /// # Errors
    /// If the text is not a supported regular expression. transformers uses Python's, which also
    /// have look-around and back-references.
    pub(super) fn new(text: &'a str) -> Result<Self, String> {
        let regex = |pattern: String| {
            Regex::new(&pattern).map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => format!("takes more than {limit} bytes"),
                _ => "is not a regular expression without look-around".to_owned(),
            })
        };
        Ok(Self {
            text,
            before_dot: regex(format!(r"\A(?:{text})(?:\.|\z)"))?,
            whole: regex(format!(r"\A(?:{text})\z"))?,
        })
    }

    /// Whether a module stays in floats: the text ends its name, or matches it as an expression
    /// from its start up to a border between the parts of the name.
    pub(super) fn keeps(&self, module: &str) -> bool {
        // A match may also end just after a dot.
        let mut up_to_dots = module
            .match_indices('.')
            .map(|(at, dot)| &module[..at + dot.len()]);
        module.ends_with(self.text)
            || self.before_dot.is_match(module)
            || up_to_dots.any(|part| self.whole.is_match(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `should_convert_module` of transformers 5.24.
    #[test]
    fn lists_of_modules_are_read_as_transformers_reads_them() {
        let projection = "model.layers.1.mlp.down_proj";
        for (pattern, module, keeps) in [
            ("lm_head", "lm_head", true),
            ("lm_head.weight", "lm_head", false),
            ("lm_.*", "lm_head", true),
            ("lm", "lm_head", false),
            ("_proj", projection, true),
            ("proj", projection, true),
            ("down", projection, false),
            (".*down_proj", projection, true),
            (r"model\.layers\.1\..*", projection, true),
            (r"model\.layers\.1\.", projection, true),
            ("model.layers.1", projection, true),
            ("model.layers.1", "model.layers.11.mlp.down_proj", false),
            ("model.layers.1", "modelxlayers.1.mlp", true),
            ("mlp", projection, false),
            ("self_attn|.*mlp", projection, true),
            ("layers.1.mlp.down_proj", projection, true),
            ("", "lm_head", true),
        ] {
            let found = ModulePattern::new(pattern).unwrap().keeps(module);
            assert_eq!(found, keeps, "{pattern:?} {module}");
        }
        assert!(ModulePattern::new("(").is_err());
        assert!(ModulePattern::new("(?=a)").is_err());
    }
}
