//! What commands print about a run: timings, a summary of the model, memory.

use bitnet_inference::{EngineFacts, ModelSource, Timings};
use bitnet_kernels::Gate;
use bitnet_models::{Config, FfnActivity, ModelInfo};
use serde_json::{Value, json};

/// Maximum number of characters of a text from a file in a message.
const FOREIGN_CHARS_MAX: usize = 4096;

/// A text as one line of a terminal: control characters, which could move the cursor or change
/// colours, are escaped, and a text that is too long loses its middle.
pub fn one_line(text: &str) -> String {
    let num_chars = text.chars().count();
    let (head, tail) = match num_chars > FOREIGN_CHARS_MAX {
        true => (FOREIGN_CHARS_MAX / 2, FOREIGN_CHARS_MAX / 2),
        false => (num_chars, 0),
    };
    let mut out = String::with_capacity(text.len().min(4 * FOREIGN_CHARS_MAX));
    let mut push = |c: char| match c {
        '\n' | '\r' => out.push(' '),
        c if c.is_control() => out.extend(c.escape_default()),
        c => out.push(c),
    };
    text.chars().take(head).for_each(&mut push);
    if tail > 0 {
        " … ".chars().for_each(&mut push);
        text.chars().skip(num_chars - tail).for_each(&mut push);
    }
    out
}

/// Maximum number of bytes of a line that [`Printable`] writes.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Writes text to a terminal, without the control characters that names and values in a file may
/// have, and cuts lines that are too long.
pub struct Printable<W> {
    out: W,
    line_bytes: usize,
    /// The first byte of a control character of two bytes was omitted.
    is_after_c2: bool,
}

impl<W> Printable<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            line_bytes: 0,
            is_after_c2: false,
        }
    }

    /// For text that escapes control characters itself, as JSON does.
    pub fn exact(&mut self) -> &mut W {
        &mut self.out
    }
}

impl<W: std::io::Write> std::io::Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            // U+0080 to U+009F are control characters, too: C2 80 to C2 9F in UTF-8.
            let is_c1 = self.is_after_c2 && (0x80..0xa0).contains(&byte);
            if std::mem::take(&mut self.is_after_c2) && !is_c1 {
                text.push(0xc2);
            }
            self.line_bytes = if byte == b'\n' {
                0
            } else {
                self.line_bytes + 1
            };
            match byte {
                b'\n' => text.push(byte),
                _ if self.line_bytes > LINE_BYTES_MAX + 1 => {}
                _ if self.line_bytes > LINE_BYTES_MAX => text.extend_from_slice("…".as_bytes()),
                0xc2 => self.is_after_c2 = true,
                _ if is_c1 => text.extend_from_slice(format!("\\u{{{byte:x}}}").as_bytes()),
                byte if byte.is_ascii_control() => {
                    text.extend_from_slice(format!("\\u{{{byte:x}}}").as_bytes());
                }
                byte => text.push(byte),
            }
        }
        self.out.write_all(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// A duration in milliseconds, with fractions.
fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Events per second; `None` without events or time.
pub fn per_second(count: usize, duration: std::time::Duration) -> Option<f64> {
    (count > 0 && !duration.is_zero()).then(|| count as f64 / duration.as_secs_f64())
}

/// The speed of prefill and of decoding, in tokens per second. Prefill yields the first token.
pub fn speeds(timings: &Timings) -> (Option<f64>, Option<f64>) {
    let prefill = per_second(
        timings.prompt_tokens - timings.cached_tokens,
        timings.prefill,
    );
    let decode = per_second(timings.generated_tokens.saturating_sub(1), timings.decode);
    (prefill, decode)
}

/// Timings for `--json`.
pub fn timings_json(timings: &Timings, load: std::time::Duration) -> Value {
    let (prefill, decode) = speeds(timings);
    json!({
        "load_ms": ms(load),
        "prompt_tokens": timings.prompt_tokens,
        "cached_tokens": timings.cached_tokens,
        "prefill_ms": ms(timings.prefill),
        "prefill_tokens_per_second": prefill,
        "generated_tokens": timings.generated_tokens,
        "decode_ms": ms(timings.decode),
        "decode_tokens_per_second": decode,
        "drafted_tokens": timings.drafted_tokens,
        "accepted_tokens": timings.accepted_tokens,
    })
}

/// Timings on one readable line.
pub fn timings_line(timings: &Timings) -> String {
    let speed = |speed: Option<f64>| {
        speed.map_or(String::new(), |speed| format!(" at {speed:.1} tokens/s"))
    };
    let (prefill, decode) = speeds(timings);
    let cached = match timings.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} of them kept from before)"),
    };
    format!(
        "prompt {} tokens{cached}{}; {} generated{}",
        timings.prompt_tokens,
        speed(prefill),
        timings.generated_tokens,
        speed(decode)
    )
}

/// The shape of a model, for `--json`.
pub fn config_json(config: &Config, tied: bool) -> Value {
    json!({
        "name": config.name,
        "architecture": config.architecture_name,
        "layers": config.num_layers,
        "linear_layers": config.num_layers - config.num_attention_layers(),
        "state_bytes": config.state_len() * size_of::<f32>(),
        "hidden": config.hidden_size,
        "ffn": config.ffn_size,
        "heads": config.attention.heads,
        "kv_heads": config.attention.kv_heads,
        "head_dim": config.attention.head_dim,
        "vocab": config.vocab_size,
        "context": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tied": tied,
    })
}

/// The loaded model for `--json`: its shape, source and form.
pub fn model_json(source: &ModelSource, model: &ModelInfo) -> Value {
    let mut object = config_json(&model.config, model.is_tied);
    object["path"] = source.to_string().into();
    object["parameters"] = model.num_parameters().into();
    object["embedding"] = model.embedding_format.into();
    object
}

/// How logits were computed, for `--json`.
pub fn head_json(facts: &EngineFacts) -> Value {
    let head_use = facts.head_use;
    json!({
        "mode": facts.model.head_mode.name(),
        "screened_tokens": head_use.screened,
        "fell_back_tokens": head_use.fell_back,
        "exact_logits": head_use.exact_logits,
        "wasted_logits": head_use.wasted_logits,
        "screen_bytes": facts.model.screen_bytes,
    })
}

/// The work that the feed-forward networks skipped, and the shares of zeros, for `--json`.
pub fn ffn_sparsity_json(facts: &EngineFacts) -> Value {
    let model = &facts.model;
    let seen = |layer: usize| facts.ffn_activity.get(layer).copied().unwrap_or_default();
    let layers = model.ffn_layers.iter().enumerate().map(|(index, layer)| {
        json!({
            "closed_gates": closed_gates(model, seen(index)),
            "zeros": seen(index).zeros(),
            "dead_neurons": layer.num_dead_neurons,
            "up_copy_bytes": layer.up_copy_bytes,
            "down_copy_bytes": layer.down_copy_bytes,
        })
    });
    let layers: Vec<Value> = layers.collect();
    let all: FfnActivity = facts.ffn_activity.iter().copied().sum();
    json!({
        "mode": model.ffn_sparsity.name(),
        "closed_gates": closed_gates(model, all),
        "zeros": all.zeros(),
        "dead_neurons": model.ffn_layers.iter().map(|layer| layer.num_dead_neurons).sum::<usize>(),
        "copy_bytes": model.ffn_copy_bytes(),
        "layers": layers,
    })
}

/// The share of gates that are not positive, if the activation makes them zero.
fn closed_gates(model: &ModelInfo, seen: FfnActivity) -> Option<f64> {
    (model.config.architecture.gate() == Gate::Relu2)
        .then(|| seen.closed_gates())
        .flatten()
}

/// The shares of zeros in the feed-forward networks on one readable line; `None` if nothing has
/// run.
pub fn ffn_sparsity_line(facts: &EngineFacts) -> Option<String> {
    let model = &facts.model;
    let all: FfnActivity = facts.ffn_activity.iter().copied().sum();
    let gates =
        closed_gates(model, all).map(|share| format!("{:.1} % of the gates, ", 100.0 * share));
    let zeros = format!("{:.1} % of the int8 values", 100.0 * all.zeros()?);
    let num_layers = model
        .ffn_layers
        .iter()
        .filter(|layer| layer.up_copy_bytes.or(layer.down_copy_bytes).is_some())
        .count();
    let copies = match num_layers {
        0 => String::new(),
        n => format!(
            "; copies in {n} layers, {:.0} MB",
            model.ffn_copy_bytes() as f64 / 1e6
        ),
    };
    Some(format!("{}{zeros}{copies}", gates.unwrap_or_default()))
}

/// Whether an error is about an argument, not about a file or the system.
pub fn is_wrong_parameter(error: &anyhow::Error) -> bool {
    use bitnet_inference::Error;
    matches!(
        error.downcast_ref::<Error>(),
        Some(
            Error::Sampling { .. }
                | Error::StopString { .. }
                | Error::BiasRange { .. }
                | Error::TokenRange { .. }
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_text_has_no_control_characters_and_no_endless_lines() {
        use std::io::Write;
        let print = |text: &str| {
            let mut out = Printable::new(Vec::new());
            // Write byte by byte, so that a character is split.
            for byte in text.bytes() {
                out.write_all(&[byte]).expect("a vector takes it");
            }
            String::from_utf8_lossy(&out.out).into_owned()
        };
        assert_eq!(
            print("a\u{1b}]0;t\u{7}\n\u{9b}2J é ©\n"),
            "a\\u{1b}]0;t\\u{7}\n\\u{9b}2J é ©\n"
        );
        let long = print(&format!("{}\nb\n", "x".repeat(1 << 20)));
        assert_eq!(long.len(), LINE_BYTES_MAX + "…\nb\n".len());
    }

    #[test]
    fn a_line_has_no_control_characters_and_a_limited_length() {
        assert_eq!(
            one_line("a\nb\u{1b}[31mc\u{9b}d é"),
            "a b\\u{1b}[31mc\\u{9b}d é"
        );
        let long = one_line(&"x".repeat(5_000_000));
        assert_eq!(long.chars().count(), FOREIGN_CHARS_MAX + 3);
    }
}
