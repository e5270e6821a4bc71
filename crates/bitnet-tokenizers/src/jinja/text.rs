//! Text that remembers which of its bytes come from outside the template.
//!
//! Messages, tools and other inputs are *foreign*; the template's own text is not. Every operation
//! keeps the two apart, so that the rendered chat knows which text must not be parsed as control
//! tokens. An operation that cannot separate them makes its whole result foreign.

use std::ops::Range;
use std::sync::Arc;

/// An immutable string with its foreign byte ranges.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    text: Arc<str>,
    /// Ascending, not empty, not touching each other.
    foreign: Option<Arc<[Range<usize>]>>,
}

impl Text {
    /// Text of the template's own.
    pub(crate) fn own(text: impl Into<Arc<str>>) -> Self {
        Self {
            text: text.into(),
            foreign: None,
        }
    }

    /// Text that is all foreign.
    pub(crate) fn foreign(text: impl Into<Arc<str>>) -> Self {
        let text: Arc<str> = text.into();
        let whole = 0..text.len();
        Self {
            foreign: (!text.is_empty()).then(|| Arc::from([whole])),
            text,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(crate) fn num_chars(&self) -> usize {
        self.text.chars().count()
    }

    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// The foreign byte ranges, ascending.
    pub(crate) fn foreign_ranges(&self) -> &[Range<usize>] {
        self.foreign.as_deref().unwrap_or_default()
    }

    /// `text` derived from `self` without a mapping of bytes: all foreign if `self` has foreign
    /// bytes.
    pub(crate) fn derive(&self, text: impl Into<Arc<str>>) -> Self {
        if self.is_foreign() {
            Self::foreign(text)
        } else {
            Self::own(text)
        }
    }

    /// The bytes of `range`, which begins and ends between characters.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        if range == (0..self.len()) {
            return self.clone();
        }
        let mut out = TextBuilder::default();
        out.push_slice(self, range);
        out.finish()
    }

    /// Applies `map` to each run of own or foreign bytes.
    pub(crate) fn map(&self, map: impl Fn(&str) -> String) -> Self {
        let mut out = TextBuilder::default();
        for (range, is_foreign) in self.runs() {
            out.push_as(&map(&self.text[range]), is_foreign);
        }
        out.finish()
    }

    /// The text split at every change between own and foreign.
    fn runs(&self) -> Vec<(Range<usize>, bool)> {
        let (mut runs, mut end) = (Vec::new(), 0);
        for range in self.foreign_ranges() {
            runs.push((end..range.start, false));
            runs.push((range.clone(), true));
            end = range.end;
        }
        runs.push((end..self.len(), false));
        runs.retain(|(range, _)| !range.is_empty());
        runs
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::own(text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::own(text)
    }
}

/// Text under construction.
#[derive(Debug, Default)]
pub(crate) struct TextBuilder {
    text: String,
    foreign: Vec<Range<usize>>,
}

impl TextBuilder {
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Appends text of the template's own.
    pub(crate) fn push_own(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(crate) fn push(&mut self, text: &Text) {
        self.push_slice(text, 0..text.len());
    }

    /// Appends `text`, foreign or not.
    pub(crate) fn push_as(&mut self, text: &str, is_foreign: bool) {
        let start = self.text.len();
        self.text.push_str(text);
        if is_foreign {
            self.mark(start..self.text.len());
        }
    }

    /// Appends some bytes of `text`.
    pub(crate) fn push_slice(&mut self, text: &Text, range: Range<usize>) {
        let base = self.text.len();
        self.text.push_str(&text.text[range.clone()]);
        let ranges = text.foreign_ranges();
        let first = ranges.partition_point(|foreign| foreign.end <= range.start);
        for foreign in &ranges[first..] {
            let start = foreign.start.max(range.start);
            let end = foreign.end.min(range.end);
            if start >= end {
                break;
            }
            self.mark(base + start - range.start..base + end - range.start);
        }
    }

    fn mark(&mut self, range: Range<usize>) {
        match self.foreign.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.foreign.push(range),
        }
    }

    pub(crate) fn finish(self) -> Text {
        Text {
            text: self.text.into(),
            foreign: (!self.foreign.is_empty()).then(|| self.foreign.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of one range.
    fn one(range: Range<usize>) -> [Range<usize>; 1] {
        [range]
    }

    #[test]
    fn slices_and_joins_keep_own_and_foreign_text_apart() {
        let mut built = TextBuilder::default();
        built.push_own("ab");
        built.push(&Text::foreign("cd"));
        built.push(&Text::foreign("e"));
        built.push_own("f");
        let text = built.finish();
        assert_eq!(text.as_str(), "abcdef");
        assert_eq!(text.foreign_ranges(), one(2..5));
        assert_eq!(text.slice(3..6).foreign_ranges(), one(0..2));
        assert_eq!(text.slice(0..2).foreign_ranges(), []);
        let upper = text.map(str::to_uppercase);
        assert_eq!(
            (upper.as_str(), upper.foreign_ranges()),
            ("ABCDEF", &one(2..5)[..])
        );
        assert_eq!(text.derive("x").foreign_ranges(), one(0..1));
    }
}
