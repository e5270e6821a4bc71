//! Logit biases as text, `15043+1.5` or `15043-inf`: JSON has no infinity.

use bitnet_tokenizers::TokenId;
use serde::de;
use serde::{Deserialize, Deserializer, Serializer};

/// Reads `ID+BIAS` or `ID-BIAS`; `None` if `text` has another form.
#[must_use]
pub fn parse_logit_bias(text: &str) -> Option<(TokenId, f32)> {
    let sign = text.find(['+', '-'])?;
    Some((text[..sign].parse().ok()?, text[sign..].parse().ok()?))
}

pub(crate) fn serialize<S: Serializer>(
    biases: &[(TokenId, f32)],
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(
        biases
            .iter()
            .map(|(token, bias)| format!("{token}{bias:+}")),
    )
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<(TokenId, f32)>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let bias = |text: &String| {
        parse_logit_bias(text)
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not a logit bias")))
    };
    texts.iter().map(bias).collect()
}

#[cfg(test)]
mod tests {
    use crate::sampling::SamplingParams;

    use super::*;

    #[test]
    fn biases_are_read_with_their_sign() {
        assert_eq!(parse_logit_bias("12-1.5"), Some((TokenId(12), -1.5)));
        assert_eq!(
            parse_logit_bias("12+inf"),
            Some((TokenId(12), f32::INFINITY))
        );
        assert_eq!(parse_logit_bias("12"), None);
        assert_eq!(parse_logit_bias("+1"), None);
    }

    #[test]
    fn biases_survive_json() {
        let params = SamplingParams {
            logit_bias: vec![(TokenId(3), f32::NEG_INFINITY), (TokenId(4), 0.1)],
            ..SamplingParams::default()
        };
        let text = serde_json::to_string(&params).expect("JSON");
        assert!(text.contains(r#""logit_bias":["3-inf","4+0.1"]"#), "{text}");
        let read: SamplingParams = serde_json::from_str(&text).expect("the same");
        assert_eq!(read, params);
    }
}
