//! The built-in chat formats, for files without a template.

use super::message::ChatMessage;
use super::rendered::RenderedChat;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    BitNet,
    Llama3,
    ChatMl,
    Falcon3,
    FalconE,
}

impl Format {
    pub(crate) const ALL: [Self; 5] = [
        Self::BitNet,
        Self::Llama3,
        Self::ChatMl,
        Self::Falcon3,
        Self::FalconE,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BitNet => "bitnet-2b4t",
            Self::Llama3 => "llama3",
            Self::ChatMl => "chatml",
            Self::Falcon3 => "falcon3",
            Self::FalconE => "falcon-e",
        }
    }

    /// Renders messages whose roles are plain words.
    pub(crate) fn render(
        self,
        bos: &str,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> RenderedChat {
        let trims = matches!(self, Self::BitNet | Self::Llama3);
        let mut out = RenderedChat::default();
        if trims {
            out.push(bos);
        }
        for message in messages {
            self.open_turn(message.role(), &mut out);
            let content = message.text();
            out.push_content(if trims { content.trim() } else { &content });
            out.push(match self {
                Self::BitNet | Self::Llama3 => "<|eot_id|>",
                Self::ChatMl => "<|im_end|>\n",
                Self::Falcon3 | Self::FalconE => "\n",
            });
        }
        if add_generation_prompt {
            self.open_turn("assistant", &mut out);
        }
        out
    }

    /// Renders messages up to the end of the last one's content.
    pub(crate) fn render_open(self, bos: &str, messages: &[ChatMessage]) -> RenderedChat {
        let rendered = self.render(bos, messages, false);
        let end = rendered
            .guards()
            .last()
            .map_or(rendered.text().len(), |guard| guard.end);
        match messages.last() {
            Some(last) if !last.text().trim().is_empty() => rendered.cut(end),
            _ => rendered,
        }
    }

    fn open_turn(self, role: &str, out: &mut RenderedChat) {
        match self {
            Self::BitNet => out.push(&format!("{}: ", capitalized(role))),
            Self::Llama3 => out.push(&format!("<|start_header_id|>{role}<|end_header_id|>\n\n")),
            Self::ChatMl => out.push(&format!("<|im_start|>{role}\n")),
            Self::Falcon3 => out.push(&format!("<|{role}|>\n")),
            Self::FalconE => out.push(&format!("{role}\n")),
        }
    }
}

/// Like Python's `str.capitalize`, for a plain word.
fn capitalized(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_ascii_uppercase() + &rest.to_ascii_lowercase()
}
