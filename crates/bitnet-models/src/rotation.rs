//! [`Rotations`]: which inputs of a model's matrices are rotated, as `prism.hadamard.*` keys of
//! GGUF files declare it.
//!
//! Models such as Bonsai 2 keep their weights in a rotated basis, in which outliers are spread and
//! rounding costs less. An input `x` of a folded matrix becomes `H(s ⊙ x)` before it is rounded:
//! signs first, then the normalised Walsh-Hadamard transform of each run of `block_size` values. A
//! row that is looked up in a folded embedding becomes `s ⊙ H(row)`. Without its rotation, a model
//! writes fluent nonsense, so every unknown key or value is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitnet_files::gguf::{Gguf, Metadata};
use bitnet_files::shown;
use bitnet_kernels::DeltaShape;

use crate::error::{Error, Result};

/// The prefix of the keys.
const PREFIX: &str = "prism.hadamard.";
/// The embedding, the one tensor whose rows may be rotated back.
const EMBEDDING: &str = "token_embd.weight";
/// The head.
const HEAD: &str = "output.weight";
/// The names of tensors that may be folded, between `blk.N.` and `.weight`.
const FOLDABLE: [&str; 9] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_gate",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];
/// The output projection of linear attention, whose input may be permuted, too.
const LINEAR_OUTPUT: &str = "ssm_out";

/// The rotation of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Values that are transformed together, a power of two that divides the input.
    pub block_size: usize,
    /// The signs that multiply the input first, `[cols]`, each 1 or −1.
    pub signs: Arc<[f32]>,
    /// If the input consists of heads of values in tiled order, the number of heads of keys and of
    /// values. The heads are then first put into grouped order: head `k + K·r` becomes head `r +
    /// (V/K)·k`.
    pub value_heads: Option<(usize, usize)>,
}

/// The rotations that a file declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rotations {
    block_size: usize,
    signs: BTreeMap<usize, Arc<[f32]>>,
    /// Tensors whose input is rotated.
    folded: BTreeSet<String>,
    /// Whether the rows of the embedding are rotated.
    embedding: bool,
    /// Whether the head is the embedding.
    ties_head: bool,
    groups_value_heads: bool,
}

impl Rotations {
    /// Reads the declaration of a file; nothing is rotated if there is none.
    ///
    /// # Errors
    /// If a key is missing, unknown or contradicts another or the tensors of the file. The error
    /// names the key and its value.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let keys = Keys(gguf.metadata());
        if !keys.are_there() {
            return Ok(Self::default());
        }
        let version = keys.u32("version")?;
        if !(1..=2).contains(&version) {
            return Err(wrong(
                "version",
                format!("{version}; 1 and 2 are supported"),
            ));
        }
        keys.expect("transform", "normalized-sylvester-walsh-hadamard")?;
        keys.expect("axis", "input-last-dimension")?;
        let block_size = keys.u32("block_size")? as usize;
        if !block_size.is_power_of_two() {
            let problem = format!("{block_size}; a power of two is expected");
            return Err(wrong("block_size", problem));
        }
        let mut rotations = Self {
            block_size,
            signs: BTreeMap::new(),
            folded: keys.names("weight_names")?.into_iter().collect(),
            embedding: keys.rotates_embedding()?,
            ties_head: version == 2,
            groups_value_heads: keys.0.bool(&key("gdn_v_grouped"))?.unwrap_or(false),
        };
        rotations.check_tie(&keys, gguf)?;
        let widths = rotations.folded_widths(gguf)?;
        rotations.signs = keys.signs(block_size, &widths)?;
        Ok(rotations)
    }

    /// The rotation of the input of a tensor of `cols` columns. linear: the heads of the model's
    /// linear attention.
    #[must_use]
    pub fn of_input(
        &self,
        tensor: &str,
        cols: usize,
        linear: Option<DeltaShape>,
    ) -> Option<Rotation> {
        let is_grouped = self.groups_value_heads && part_of_layer(tensor) == LINEAR_OUTPUT;
        let heads = linear.map(|shape| (shape.key_heads, shape.value_heads));
        self.folded.contains(tensor).then(|| Rotation {
            value_heads: heads.filter(|_| is_grouped),
            ..self.of_width(cols)
        })
    }

    /// The rotation that turns rows of the embedding back.
    #[must_use]
    pub fn of_embedding(&self, cols: usize) -> Option<Rotation> {
        self.embedding.then(|| self.of_width(cols))
    }

    /// The rotation of the input of the head, where the head is the embedding.
    #[must_use]
    pub fn of_tied_head(&self, cols: usize) -> Option<Rotation> {
        self.ties_head.then(|| self.of_width(cols))
    }

    fn of_width(&self, cols: usize) -> Rotation {
        Rotation {
            block_size: self.block_size,
            signs: self
                .signs
                .get(&cols)
                .cloned()
                .unwrap_or_else(|| vec![1.0; cols].into()),
            value_heads: None,
        }
    }

    /// A head that is the rotated embedding requires version 2, and no other model may have version
    /// 2.
    fn check_tie(&self, keys: &Keys<'_>, gguf: &Gguf) -> Result<()> {
        let has_head = gguf.tensor(HEAD).is_some();
        if let Some(tied) = keys.0.bool(&key("tied_output"))?
            && tied != self.ties_head
        {
            let version = if self.ties_head { 2 } else { 1 };
            return Err(wrong(
                "tied_output",
                format!("{tied}, but version is {version}"),
            ));
        }
        if self.ties_head && has_head {
            return Err(wrong(
                "version",
                format!("2, a tied head, but there is {HEAD}"),
            ));
        }
        if self.ties_head != (self.embedding && !has_head) {
            let problem = if self.ties_head {
                format!("no {EMBEDDING}, which a tied head (version 2) needs")
            } else {
                format!("{EMBEDDING} without {HEAD}, which needs version 2")
            };
            return Err(wrong("inverse_weight_names", problem));
        }
        Ok(())
    }

    /// The widths of all inputs that are rotated.
    fn folded_widths(&self, gguf: &Gguf) -> Result<BTreeSet<usize>> {
        let mut widths = BTreeSet::new();
        let embedding = self.embedding.then_some(EMBEDDING);
        if let Some(name) = self.folded.iter().find(|name| !is_foldable(name)) {
            let problem = format!("{}, whose input cannot be rotated", shown(name));
            return Err(wrong("weight_names", problem));
        }
        for name in self.folded.iter().map(String::as_str).chain(embedding) {
            let Some(tensor) = gguf.tensor(name) else {
                let problem = format!("{}, which is not a tensor of the file", shown(name));
                return Err(wrong("weight_names", problem));
            };
            if !tensor.cols().is_multiple_of(self.block_size) {
                let problem = format!(
                    "{}, which does not divide the {} columns of {name}",
                    self.block_size,
                    tensor.cols()
                );
                return Err(wrong("block_size", problem));
            }
            widths.insert(tensor.cols());
        }
        Ok(widths)
    }
}

/// A model called Bonsai 2 has rotated weights: if its file has no declaration, the declaration is
/// lost.
#[must_use]
pub fn lost_rotation(metadata: &Metadata) -> bool {
    let name = metadata.str("general.name").ok().flatten().unwrap_or("");
    let name = name.to_lowercase().replace(['-', '_'], " ");
    name.contains("bonsai 2") && !name.contains("bonsai 27") && !Keys(metadata).are_there()
}

/// `prism.hadamard.*` keys.
struct Keys<'a>(&'a Metadata);

impl Keys<'_> {
    fn are_there(&self) -> bool {
        self.0.iter().any(|(name, _)| name.starts_with(PREFIX))
    }

    fn u32(&self, name: &str) -> Result<u32> {
        Ok(self.0.require_u32(&key(name))?)
    }

    fn expect(&self, name: &str, expected: &str) -> Result<()> {
        let found = self.0.require_str(&key(name))?;
        if found == expected {
            return Ok(());
        }
        Err(wrong(
            name,
            format!("{}; {expected} is supported", shown(found)),
        ))
    }

    /// A list of different names, at least one.
    fn names(&self, name: &str) -> Result<Vec<String>> {
        let names: Vec<String> = self
            .0
            .require_strings(&key(name))?
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            return Err(wrong(name, "an empty list; names are expected".into()));
        }
        let mut seen = BTreeSet::new();
        match names.iter().find(|name| !seen.insert(*name)) {
            Some(twice) => Err(wrong(name, format!("{} twice", shown(twice)))),
            None => Ok(names),
        }
    }

    fn rotates_embedding(&self) -> Result<bool> {
        if self.0.get(&key("inverse_weight_names")).is_none() {
            return Ok(false);
        }
        let names = self.names("inverse_weight_names")?;
        match names.iter().find(|name| *name != EMBEDDING) {
            Some(other) => {
                let problem = format!("{}, expected {EMBEDDING}", shown(other));
                Err(wrong("inverse_weight_names", problem))
            }
            None => Ok(true),
        }
    }

    /// The signs of each width; empty under `identity`, where keys of signs are ignored.
    fn signs(
        &self,
        block_size: usize,
        folded: &BTreeSet<usize>,
    ) -> Result<BTreeMap<usize, Arc<[f32]>>> {
        match self.0.require_str(&key("sign_mode"))? {
            "identity" => return Ok(BTreeMap::new()),
            "explicit" => {}
            other => {
                let problem = format!("{}; identity and explicit are supported", shown(other));
                return Err(wrong("sign_mode", problem));
            }
        }
        let widths = self.integers("sign_widths")?;
        let mut values = self.integers("sign_values")?.into_iter();
        let mut signs = BTreeMap::new();
        for width in widths {
            let is_possible = width > 0 && width % block_size as i128 == 0;
            let Some(width) = usize::try_from(width).ok().filter(|_| is_possible) else {
                let problem = format!("{width}, expected a multiple of the block, {block_size}");
                return Err(wrong("sign_widths", problem));
            };
            if width > values.len() {
                let problem = format!("{} values for a width of {width}", values.len());
                return Err(wrong("sign_values", problem));
            }
            let of_width: Vec<f32> = values
                .by_ref()
                .take(width)
                .map(sign)
                .collect::<Result<_>>()?;
            if signs.insert(width, of_width.into()).is_some() {
                return Err(wrong("sign_widths", format!("{width} twice")));
            }
        }
        if values.len() > 0 {
            let problem = format!("{} values more than sign_widths says", values.len());
            return Err(wrong("sign_values", problem));
        }
        match folded.iter().find(|width| !signs.contains_key(width)) {
            Some(width) => Err(wrong(
                "sign_widths",
                format!("no {width}, the width of a folded tensor"),
            )),
            None => Ok(signs),
        }
    }

    /// An array of integers of any type.
    fn integers(&self, name: &str) -> Result<Vec<i128>> {
        let value = self
            .0
            .get(&key(name))
            .ok_or_else(|| bitnet_files::Error::MetadataMissing { key: key(name) })?;
        let integers: Option<Vec<i128>> = value
            .as_array()
            .and_then(|array| array.iter().map(|value| value.as_integer()).collect());
        integers.ok_or_else(|| wrong(name, "not a list of integers".into()))
    }
}

/// Reads a sign. Files with unsigned integers store −1 as the largest unsigned number.
fn sign(value: i128) -> Result<f32> {
    match value {
        1 => Ok(1.0),
        -1 | 0xFF | 0xFFFF | 0xFFFF_FFFF | 0xFFFF_FFFF_FFFF_FFFF => Ok(-1.0),
        other => Err(wrong("sign_values", format!("{other}, expected 1 or -1"))),
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn wrong(name: &str, problem: String) -> Error {
    Error::Config {
        key: key(name),
        problem,
    }
}

/// The part of a layer's tensor name between `blk.N.` and `.weight`.
fn part_of_layer(name: &str) -> &str {
    let rest = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    rest.and_then(|(_, part)| part.strip_suffix(".weight"))
        .unwrap_or("")
}

fn is_foldable(name: &str) -> bool {
    let part = part_of_layer(name);
    name == HEAD || part == LINEAR_OUTPUT || FOLDABLE.contains(&part)
}
