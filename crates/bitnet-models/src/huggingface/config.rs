//! `config.json`: the shape of the model, and how its weights are quantized.

use bitnet_files::shown;
use bitnet_kernels::{AttentionShape, Gate, MAX_COLS, MAX_HEAD_DIM, math};
use serde_json::{Value, json};

use super::hybrid;
use super::keys::{Keys, shown_value};
use super::mlx::MlxQuantization;
use super::modules::ModulePattern;
use super::names::module_name;
use crate::config::{Architecture, Config, Multipliers, RopePairs, Yarn};
use crate::error::{Error, Result};
use crate::source::Projection;

/// How a checkpoint's weights are quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// The use of `weight_scale`.
    pub weight_scale: WeightScale,
    /// Whether the file holds float weights that are quantized at every use (`quantization_mode:
    /// "online"`).
    pub online: bool,
    /// Whether `config.json` says how the weights are quantized. Without it, transformers runs
    /// float weights as they are.
    pub is_stated: bool,
    /// Whether the logits come from the embedding; `None` if the tensors decide.
    pub(super) tie_word_embeddings: Option<bool>,
    /// The scaling of the rotary frequencies.
    pub(super) rope: RopeScaling,
    /// How MLX's tools quantized the model, if they did.
    pub(super) mlx: Option<MlxQuantization>,
}

/// The use of the scale beside packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightScale {
    /// It divides them (`linear_class: "bitlinear"`).
    Divides,
    /// It multiplies them (`"autobitlinear"`).
    Multiplies,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// Divides all frequencies by one factor.
    Linear(f32),
    /// Divides low frequencies, keeps high ones and blends the ones in between: Llama 3.1.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Divides low frequencies, and raises attention a little.
    Yarn(Yarn),
    /// LongRoPE: divides each frequency by its own factor.
    Long {
        /// For texts within the context that the model was first trained for.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
    },
}

/// A class of models and the defaults of its configuration.
#[derive(Clone, Copy)]
struct Class {
    /// The name in `architectures`.
    name: &'static str,
    /// The name in `model_type`, which decides where `architectures` is missing.
    model_type: Option<&'static str>,
    /// The graph with SiLU.
    architecture: Architecture,
    gate: Gate,
    rope_theta: f64,
    rms_norm_eps: f64,
    /// `None`: as many as heads.
    kv_heads: Option<usize>,
    /// `None`: the hidden size over the number of heads.
    head_dim: Option<usize>,
}

/// The defaults of most classes.
const LLAMA: Class = Class {
    name: "LlamaForCausalLM",
    model_type: Some("llama"),
    architecture: Architecture::Llama,
    gate: Gate::Silu,
    rope_theta: 10_000.0,
    rms_norm_eps: 1e-6,
    kv_heads: None,
    head_dim: None,
};

/// The classes that can be run, with the defaults of their configurations in transformers. The
/// 1bitLLM models bring their own code, whose defaults are Llama's.
const CLASSES: [Class; 8] = [
    Class {
        name: "BitNetForCausalLM",
        model_type: Some("bitnet"),
        architecture: Architecture::Bitnet,
        gate: Gate::Relu2,
        rope_theta: 500_000.0,
        rms_norm_eps: 1e-5,
        kv_heads: Some(5),
        ..LLAMA
    },
    Class {
        name: "BitnetForCausalLM",
        model_type: None,
        architecture: Architecture::Bitnet,
        ..LLAMA
    },
    LLAMA,
    Class {
        name: "Qwen2ForCausalLM",
        model_type: Some("qwen2"),
        architecture: Architecture::Qwen2,
        kv_heads: Some(32),
        ..LLAMA
    },
    Class {
        name: "Qwen3ForCausalLM",
        model_type: Some("qwen3"),
        architecture: Architecture::Qwen3,
        kv_heads: Some(32),
        head_dim: Some(128),
        ..LLAMA
    },
    Class {
        name: "Qwen3_5ForCausalLM",
        model_type: Some("qwen3_5_text"),
        architecture: Architecture::Qwen35,
        kv_heads: Some(4),
        head_dim: Some(256),
        ..LLAMA
    },
    // transformers does not have this class; the defaults come from the code beside the models.
    Class {
        name: "MiniCPMForCausalLM",
        model_type: Some("minicpm"),
        architecture: Architecture::MiniCpm,
        ..LLAMA
    },
    Class {
        name: "HunYuanDenseV1ForCausalLM",
        model_type: Some("hunyuan_v1_dense"),
        architecture: Architecture::HunyuanDense,
        rms_norm_eps: 1e-5,
        ..LLAMA
    },
];

/// Reads a parsed `config.json`. num_tensors: a bound on the number of layers.
pub(super) fn read(json: &Value, num_tensors: usize) -> Result<(Config, Quantization)> {
    // A model that sees has a configuration for each of its parts.
    let text = json
        .get("text_config")
        .filter(|_| json["model_type"] == "qwen3_5");
    let Some(object) = text.unwrap_or(json).as_object() else {
        return Err(Error::Config {
            key: "config.json".into(),
            problem: "not an object".into(),
        });
    };
    let root = Keys { object, path: "" };
    let class = class(&root)?;
    let architecture = architecture(&root, class)?;
    root.refuse_what_changes_the_graph(architecture)?;
    let mlx = json
        .get("quantization")
        .or_else(|| root.get("quantization"))
        .filter(|value| !value.is_null())
        .map(MlxQuantization::from_json);
    // MLX's tools write their parameters under both names.
    let quantization_config = match mlx {
        Some(_) => None,
        None => root.object("quantization_config")?,
    };
    let num_layers = root.size("num_hidden_layers", num_tensors.max(1))?;
    let (weight_scale, online, input_norm_eps) = match &quantization_config {
        Some(keys) => quantization(keys, architecture, num_layers)?,
        None => (WeightScale::Divides, true, None),
    };
    let (config, rope) = graph(&root, class, architecture, num_layers, input_norm_eps)?;
    let tie_word_embeddings = match root.bool("tie_word_embeddings")? {
        None => json.get("tie_word_embeddings").and_then(Value::as_bool),
        stated => stated,
    };
    Ok((
        config,
        Quantization {
            weight_scale,
            online,
            is_stated: quantization_config.is_some(),
            tie_word_embeddings,
            rope,
            mlx,
        },
    ))
}

/// The numbers of the graph, and how positions are scaled.
fn graph(
    root: &Keys<'_>,
    class: Class,
    architecture: Architecture,
    num_layers: usize,
    input_norm_eps: Option<f32>,
) -> Result<(Config, RopeScaling)> {
    let context_length = root.size("max_position_embeddings", u32::MAX as usize)?;
    let hidden_size = root.size("hidden_size", MAX_COLS)?;
    let heads = root.size("num_attention_heads", 4096)?;
    let head_dim = head_dim(root, class, hidden_size, heads)?;
    let (rope_theta, rope) = rope(root, class, context_length, head_dim)?;
    let config = Config {
        architecture,
        architecture_name: class.name.to_owned(),
        name: root
            .str("_name_or_path")?
            .filter(|name| !name.is_empty())
            .map(shown),
        vocab_size: root.size("vocab_size", 1 << 24)?,
        hidden_size,
        num_layers,
        num_extra_layers: 0,
        attention: AttentionShape {
            heads,
            kv_heads: kv_heads(root, class, heads)?,
            head_dim,
        },
        ffn_size: root.size("intermediate_size", MAX_COLS)?,
        context_length,
        rms_norm_eps: root.number("rms_norm_eps")?.unwrap_or(class.rms_norm_eps) as f32,
        rope_theta: rope_theta as f32,
        rope_scaling_factor: if let RopeScaling::Linear(factor) = rope {
            factor
        } else {
            1.0
        },
        rope_pairs: RopePairs::HalfSplit,
        input_norm_eps,
        rotary_dim: match architecture {
            Architecture::Qwen35 => hybrid::rotary_dim(&rope_parameters(root)?, head_dim)?,
            _ => head_dim,
        },
        yarn: match &rope {
            RopeScaling::Yarn(yarn) => Some(*yarn),
            _ => None,
        },
        linear: match architecture {
            Architecture::Qwen35 => Some(hybrid::linear_attention(root, num_layers)?),
            _ => None,
        },
        multipliers: match architecture {
            Architecture::MiniCpm => multipliers(root, hidden_size, num_layers)?,
            _ => Multipliers::default(),
        },
        pooling: None,
    }
    .checked()?;
    Ok((config, rope))
}

/// The factors of MiniCPM.
fn multipliers(root: &Keys<'_>, hidden_size: usize, num_layers: usize) -> Result<Multipliers> {
    let number = |key: &str| match root.get(key) {
        Some(_) => root.positive(key),
        None => Ok(1.0),
    };
    Ok(Multipliers {
        embedding: number("scale_emb")? as f32,
        residual: (number("scale_depth")? / (num_layers as f64).sqrt()) as f32,
        logits: (hidden_size as f64 / number("dim_model_base")?) as f32,
    })
}

/// The class's graph, with the gate that the configuration states.
fn architecture(root: &Keys<'_>, class: Class) -> Result<Architecture> {
    let gate = match root.str("hidden_act")? {
        None => class.gate,
        Some("relu2") => Gate::Relu2,
        Some("silu" | "swish") => Gate::Silu,
        Some(other) => {
            return Err(root.error(
                "hidden_act",
                format!("{:?}; relu2 and silu are supported", shown(other)),
            ));
        }
    };
    match (class.architecture, gate) {
        (Architecture::Bitnet, Gate::Relu2) => Ok(Architecture::BitnetB158),
        (architecture, gate) if architecture.gate() == gate => Ok(architecture),
        _ => Err(root.error("hidden_act", format!("\"relu2\"; {} uses silu", class.name))),
    }
}

/// The length of a head: stated, the default of the class, or an equal part of the hidden size.
fn head_dim(root: &Keys<'_>, class: Class, hidden_size: usize, heads: usize) -> Result<usize> {
    let stated = root.optional_size("head_dim", MAX_HEAD_DIM)?;
    let default = class
        .head_dim
        .filter(|_| !root.object.contains_key("head_dim"));
    match stated.or(default) {
        Some(head_dim) => Ok(head_dim),
        None if hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        None => {
            let problem = format!("{heads}, which does not divide hidden_size {hidden_size}");
            Err(root.error("num_attention_heads", problem))
        }
    }
}

/// The class that `architectures` names, or without it `model_type`.
fn class(root: &Keys<'_>) -> Result<Class> {
    let supported = || CLASSES.map(|class| class.name).join(", ");
    let names = root.object.get("architectures").and_then(Value::as_array);
    let unsupported = |found: &str| Error::Architecture {
        found: shown(found),
        supported: supported(),
    };
    if let Some(name) = names.and_then(|names| names.first()?.as_str()) {
        let known = CLASSES.iter().find(|class| class.name == name);
        return known.copied().ok_or_else(|| unsupported(name));
    }
    let Some(model_type) = root.str("model_type")? else {
        let problem = format!(
            "missing or not a list of names, and there is no model_type; supported are {}",
            supported()
        );
        return Err(root.error("architectures", problem));
    };
    let known = CLASSES
        .iter()
        .find(|class| class.model_type == Some(model_type));
    known.copied().ok_or_else(|| unsupported(model_type))
}

/// Key/value heads: null means as many as heads, a missing key the default of the class.
fn kv_heads(root: &Keys<'_>, class: Class, heads: usize) -> Result<usize> {
    if let Some(stated) = root.optional_size("num_key_value_heads", heads)? {
        return Ok(stated);
    }
    let default = class
        .kv_heads
        .filter(|_| !root.object.contains_key("num_key_value_heads"));
    match default {
        Some(default) if default > heads => {
            let problem = format!(
                "missing; {} has {default} by default, more than {heads} heads",
                class.name
            );
            Err(root.error("num_key_value_heads", problem))
        }
        default => Ok(default.unwrap_or(heads)),
    }
}

/// The use of `weight_scale`, whether weights are quantized on load, and the epsilon of the
/// projections' own norms.
fn quantization(
    keys: &Keys<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> Result<(WeightScale, bool, Option<f32>)> {
    let one_of = |key: &str, found: &str, supported: &str| {
        Err(keys.error(key, format!("{:?}; {supported} is supported", shown(found))))
    };
    match keys.str("quant_method")? {
        Some("bitnet") => {}
        other => return one_of("quant_method", other.unwrap_or("missing"), "bitnet"),
    }
    let weight_scale = match keys.str("linear_class")? {
        None | Some("bitlinear") => WeightScale::Divides,
        Some("autobitlinear") => WeightScale::Multiplies,
        Some(other) => return one_of("linear_class", other, "bitlinear or autobitlinear"),
    };
    let online = match keys.str("quantization_mode")? {
        None | Some("offline") => false,
        Some("online") => true,
        Some(other) => return one_of("quantization_mode", other, "offline or online"),
    };
    for (key, supported) in [("input_bits", 8.0), ("activation_bits", 8.0)] {
        if let Some(bits) = keys.number(key)?
            && bits != supported
        {
            return Err(keys.error(key, format!("{bits}; {supported} is supported")));
        }
    }
    keys.check_unconverted_modules(num_layers)?;
    if !keys.bool("use_rms_norm")?.unwrap_or(false) {
        return Ok((weight_scale, online, None));
    }
    if architecture.has_sub_norms() {
        let problem =
            "true, which is not supported for a graph that has norms before its output projections";
        return Err(keys.error("use_rms_norm", problem.into()));
    }
    let eps = keys.number("rms_norm_eps")?.unwrap_or(1e-6);
    Ok((weight_scale, online, Some(eps as f32)))
}

/// The object with the parameters of the rotary embedding; the root if there is none.
fn rope_parameters<'a>(root: &Keys<'a>) -> Result<Keys<'a>> {
    let scaling = root.object("rope_scaling")?;
    let parameters = match scaling.filter(|scaling| !scaling.object.is_empty()) {
        Some(scaling) => Some(scaling),
        None => root.object("rope_parameters")?,
    };
    Ok(parameters.unwrap_or(Keys { ..*root }))
}

/// Base of the rotary frequencies and what changes them.
///
/// As in transformers: an object `rope_scaling` that is not empty replaces `rope_parameters`; the
/// base is the one in that object, else the one beside it, else the class's default. Hunyuan's
/// `alpha` multiplies the base, whatever the length of the text.
fn rope(
    root: &Keys<'_>,
    class: Class,
    context_length: usize,
    head_dim: usize,
) -> Result<(f64, RopeScaling)> {
    let keys = rope_parameters(root)?;
    let beside = root.number("rope_theta")?.unwrap_or(class.rope_theta);
    if class.architecture != Architecture::Qwen35 {
        keys.refuse_other("partial_rotary_factor", 1.0)?;
    }
    let theta = keys.number("rope_theta")?.unwrap_or(beside);
    let kind = match keys.str("rope_type")? {
        Some(kind) => kind,
        None => keys.str("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "dynamic"
            if class.architecture == Architecture::HunyuanDense && keys.get("alpha").is_some() =>
        {
            let (alpha, dim) = (keys.positive("alpha")?, head_dim as f64);
            let stretched = theta * math::pow_f64(alpha, dim / (dim - 2.0));
            return Ok((stretched, RopeScaling::None));
        }
        "longrope" if class.architecture == Architecture::MiniCpm => {
            longrope(&keys, root, context_length, head_dim)?
        }
        "linear" => RopeScaling::Linear(keys.positive("factor")? as f32),
        "llama3" => llama3(&keys, root, context_length)?,
        "yarn" if class.architecture.has_yarn() => {
            RopeScaling::Yarn(yarn(&keys, root, context_length)?)
        }
        other => {
            let yarn = if class.architecture.has_yarn() {
                ", yarn"
            } else {
                ""
            };
            let problem = format!(
                "{:?}; default, linear and llama3{yarn} are supported",
                shown(other)
            );
            return Err(keys.error("rope_type", problem));
        }
    };
    Ok((theta, scaling))
}

/// The factor of rotary scaling without a type, which [`rope`] ignores.
pub(super) fn untyped_rope_factor(json: &Value) -> Option<f64> {
    let is_stated = |value: &&Value| value.as_object().is_some_and(|keys| !keys.is_empty());
    let stated = ["rope_scaling", "rope_parameters"].map(|key| &json[key]);
    let keys = stated.into_iter().find(is_stated)?;
    let has_type = ["rope_type", "type"].iter().any(|key| !keys[key].is_null());
    keys["factor"].as_f64().filter(|_| !has_type)
}

/// The context that the model was first trained for is stated beside the object, or in it, or is
/// the context length.
fn llama3(keys: &Keys<'_>, root: &Keys<'_>, context_length: usize) -> Result<RopeScaling> {
    let (low, high) = (
        keys.positive("low_freq_factor")?,
        keys.positive("high_freq_factor")?,
    );
    if low >= high {
        return Err(keys.error(
            "low_freq_factor",
            format!("{low}, not below high_freq_factor {high}"),
        ));
    }
    Ok(RopeScaling::Llama3 {
        factor: keys.positive("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context: original_context(keys, root, context_length)?,
    })
}

/// LongRoPE within the context that the model was first trained for.
fn longrope(
    keys: &Keys<'_>,
    root: &Keys<'_>,
    context_length: usize,
    head_dim: usize,
) -> Result<RopeScaling> {
    let original = original_context(keys, root, context_length)?;
    if original < context_length as f64 {
        let problem = format!(
            "{original}, below max_position_embeddings {context_length}; longrope is supported up to the former only"
        );
        return Err(keys.error(ORIGINAL_CONTEXT, problem));
    }
    let factors = |key: &str| {
        let list = keys.get(key).and_then(Value::as_array);
        let numbers = list.map(|list| list.iter().filter_map(Value::as_f64));
        let factors: Vec<f32> = numbers.into_iter().flatten().map(|x| x as f32).collect();
        let are_divisors = factors.iter().all(|x| x.is_normal() && *x > 0.0);
        if are_divisors && factors.len() == head_dim / 2 {
            return Ok(factors);
        }
        let problem = format!("expected {} numbers above 0", head_dim / 2);
        Err(keys.error(key, problem))
    };
    Ok(RopeScaling::Long {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
    })
}

const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";

fn original_context(keys: &Keys<'_>, root: &Keys<'_>, context_length: usize) -> Result<f64> {
    let mut stated = [root, keys].into_iter();
    stated
        .find(|keys| keys.get(ORIGINAL_CONTEXT).is_some())
        .map_or(Ok(context_length as f64), |keys| {
            keys.positive(ORIGINAL_CONTEXT)
        })
}

/// The numbers of YaRN.
fn yarn(keys: &Keys<'_>, root: &Keys<'_>, context_length: usize) -> Result<Yarn> {
    let factor = keys.positive("factor")?;
    if factor < 1.0 {
        return Err(keys.error("factor", format!("{factor}, expected 1 or more")));
    }
    for key in ["mscale", "mscale_all_dim"] {
        if let Some(found) = keys.number(key)? {
            return Err(keys.error(key, format!("{found}, which is not supported")));
        }
    }
    if keys.bool("truncate")? == Some(false) {
        return Err(keys.error("truncate", "false; true is supported".into()));
    }
    let number = |key: &str, default: f64| match keys.get(key) {
        Some(_) => keys.positive(key),
        None => Ok(default),
    };
    let own_factor = 1.0 + 0.1 * math::ln_f64(factor);
    Ok(Yarn {
        factor: factor as f32,
        original_context: original_context(keys, root, context_length)? as f32,
        ext_factor: 1.0,
        // The file states the whole factor of cosines and sines.
        attn_factor: (number("attention_factor", own_factor)? / own_factor) as f32,
        beta_fast: number("beta_fast", 32.0)? as f32,
        beta_slow: number("beta_slow", 1.0)? as f32,
    })
}

/// The `quantization_config` of a directory with packed weights whose scales multiply.
pub(crate) fn packed_quantization(config: &Config) -> Value {
    let mut object = json!({
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        // transformers assumes this list if it is missing; mlx-lm would quantize an untied head.
        "modules_to_not_convert": ["lm_head"],
    });
    if let Some(eps) = config.input_norm_eps {
        (object["use_rms_norm"], object["rms_norm_eps"]) = (true.into(), number(eps));
    }
    object
}

/// A `config.json` for a model that has none yet, without its quantization.
///
/// tied: whether the logits come from the embedding; bos, eos: the tokens that begin and end a
/// text.
pub(crate) fn write(config: &Config, tied: bool, bos: Option<u32>, eos: Option<u32>) -> Value {
    // The two graphs with norms before their output projections share a class; the activation
    // distinguishes them.
    let (name, kind) = match config.architecture {
        Architecture::BitnetB158 | Architecture::Bitnet => ("BitNetForCausalLM", "bitnet"),
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Architecture::MiniCpm => ("MiniCPMForCausalLM", "minicpm"),
        Architecture::HunyuanDense => ("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
        Architecture::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
        Architecture::Qwen35 => ("Qwen3_5ForCausalLM", "qwen3_5_text"),
    };
    let mut object = json!({
        "architectures": [name],
        "model_type": kind,
        "hidden_act": if config.architecture.gate() == Gate::Relu2 { "relu2" } else { "silu" },
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.attention.heads,
        "num_key_value_heads": config.attention.kv_heads,
        "head_dim": config.attention.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": number(config.rms_norm_eps),
        "rope_theta": number(config.rope_theta),
        "tie_word_embeddings": tied,
        "attention_bias": false,
        "torch_dtype": "bfloat16",
        "bos_token_id": bos,
        "eos_token_id": eos,
    });
    // Newer readers read `rope_parameters`; older ones and mlx-lm read the keys beside it.
    let mut rope = json!({"rope_type": "default", "rope_theta": number(config.rope_theta)});
    if config.rope_scaling_factor != 1.0 {
        let factor = number(config.rope_scaling_factor);
        rope["rope_type"] = "linear".into();
        rope["factor"] = factor.clone();
        object["rope_scaling"] = json!({"rope_type": "linear", "type": "linear", "factor": factor});
    }
    if let Some(stretch) = &config.yarn {
        let stated = yarn_json(stretch);
        if let (Some(rope), Some(stated)) = (rope.as_object_mut(), stated.as_object()) {
            rope.extend(stated.clone());
        }
        object["rope_scaling"] = stated;
    }
    object["rope_parameters"] = rope;
    object
}

/// YaRN as `rope_scaling` states it.
fn yarn_json(yarn: &Yarn) -> Value {
    let mut stated = json!({
        "rope_type": "yarn",
        "type": "yarn",
        "factor": number(yarn.factor),
        "original_max_position_embeddings": yarn.original_context as u64,
        "beta_fast": number(yarn.beta_fast),
        "beta_slow": number(yarn.beta_slow),
    });
    if yarn.attn_factor != 1.0 {
        let own_factor = 1.0 + 0.1 * math::ln_f64(f64::from(yarn.factor));
        stated["attention_factor"] = (f64::from(yarn.attn_factor) * own_factor).into();
    }
    stated
}

/// Repeats the base of the rotary frequencies beside `rope_parameters`, where older readers look
/// for it.
pub(crate) fn repeat_rope_theta(json: &mut Value, config: &Config) {
    if json["rope_theta"].is_null() {
        json["rope_theta"] = number(config.rope_theta);
    }
}

/// The shortest decimal that is this f32; as an f64 it would get digits that mean nothing.
fn number(x: f32) -> Value {
    x.to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

impl Keys<'_> {
    /// Options of the published model classes that change the graph.
    fn refuse_what_changes_the_graph(&self, architecture: Architecture) -> Result<()> {
        for key in ["attention_bias", "mlp_bias"] {
            // Qwen2 has the same biases for any value of this key.
            let is_ignored = architecture.has_biases() && key == "attention_bias";
            if !is_ignored && self.bool(key)? == Some(true) {
                return Err(self.error(key, "true; biases are not supported".into()));
            }
        }
        if architecture == Architecture::MiniCpm && self.get("sparse_config").is_some() {
            let problem = "present; only models whose tokens see all earlier ones are supported";
            return Err(self.error("sparse_config", problem.into()));
        }
        if self.bool("use_sliding_window")? == Some(true) {
            let problem = "true; only models whose tokens see all earlier ones are supported";
            return Err(self.error("use_sliding_window", problem.into()));
        }
        for (key, only) in [
            ("partial_rotary_factor", 1.0),
            ("input_bits", 8.0),
            ("weight_bits", 1.0),
        ] {
            let is_known = architecture == Architecture::Qwen35 && key == "partial_rotary_factor";
            if !is_known {
                self.refuse_other(key, only)?;
            }
        }
        Ok(())
    }

    /// Checks that the head is kept in floats and every projection is not: other models are not
    /// supported. If the list is missing, transformers keeps the head in floats.
    fn check_unconverted_modules(&self, num_layers: usize) -> Result<()> {
        const KEY: &str = "modules_to_not_convert";
        let Some(value) = self.get(KEY) else {
            return Ok(());
        };
        let not_names = || self.wrong_type(KEY, value, "a list of names");
        let mut patterns = Vec::new();
        for name in value.as_array().ok_or_else(not_names)? {
            let name = name.as_str().ok_or_else(not_names)?;
            let pattern = ModulePattern::new(name)
                .map_err(|why| self.error(KEY, format!("{:?}: {why}", shown(name))))?;
            patterns.push(pattern);
        }
        for layer in 0..num_layers {
            for projection in Projection::ALL {
                let module = module_name(layer, projection);
                if let Some(pattern) = patterns.iter().find(|pattern| pattern.keeps(&module)) {
                    let problem = format!(
                        "{:?}, which keeps {module} in floats; projections in floats are not supported",
                        shown(pattern.text)
                    );
                    return Err(self.error(KEY, problem));
                }
            }
        }
        if !patterns.iter().any(|pattern| pattern.keeps("lm_head")) {
            let problem = format!(
                "{}, without lm_head, so the head is quantized, too, which is not supported",
                shown_value(value)
            );
            return Err(self.error(KEY, problem));
        }
        Ok(())
    }
}
