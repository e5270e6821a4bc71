//! [`Keeper`]: weights that a loader has packed, by name, so that a cache file can give them to the
//! next loader.
//!
//! A loader asks its keeper for each matrix before it reads the matrix from the source. A keeper of
//! an earlier load has the packed bytes, mapped from a file. Any other keeper has nothing; if it
//! notes, it gets the packed bytes of the matrix that the loader then makes.
//!
//! Facts are checked against the bytes when a matrix is made of them, but not against the model:
//! the owner of the file must know that it belongs to the same source, options and program.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bitnet_kernels::{GroupCodes, GroupMatrix, Packing, Part, TernaryMatrix};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The packed weights that a load takes from an earlier one, or keeps for a later one.
#[derive(Default)]
pub struct Keeper {
    mode: Mode,
    /// Weights that an earlier load should have kept but did not.
    num_missed: Cell<usize>,
}

#[derive(Default)]
enum Mode {
    /// Nothing is kept.
    #[default]
    Off,
    /// The keeper notes all weights that the load packs.
    Noting(RefCell<Noted>),
    /// An earlier load has packed the weights.
    Kept {
        quantization: String,
        weights: BTreeMap<String, Packed>,
    },
}

#[derive(Default)]
struct Noted {
    quantization: String,
    weights: Vec<(String, Packed)>,
}

/// Describes pieces of bytes: the part of a cache file that a keeper writes and reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptIndex {
    /// The name of the formats of the source.
    quantization: String,
    /// In the order of their pieces.
    weights: Vec<KeptEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct KeptEntry {
    name: String,
    facts: Facts,
    num_pieces: usize,
}

/// Packed weights.
#[derive(Clone)]
pub struct Packed {
    pub(crate) facts: Facts,
    pub(crate) pieces: Vec<Bytes>,
}

/// The facts about packed bytes that do not follow from the model's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Facts {
    /// A [`TernaryMatrix`].
    Ternary {
        /// The rows of each part, and the bits of its scale.
        parts: Vec<(usize, u32)>,
        cols: usize,
        packing: String,
        num_left_out: usize,
    },
    /// A [`GroupMatrix`].
    Groups {
        parts: Vec<usize>,
        cols: usize,
        codes: String,
        group_cols: usize,
    },
    /// The 8-bit copy of a head: its integers, then the numbers that bound errors.
    Screen,
    /// A copy of a part of a matrix by rows.
    Rows,
    /// A copy of a matrix by columns.
    Columns,
    /// The positions of live neurons, u32; no piece if all are live.
    Live,
}

impl Keeper {
    /// A keeper that has nothing and keeps nothing.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// A keeper that notes all weights that a load packs, and keeps their memory.
    #[must_use]
    pub fn noting() -> Self {
        Self {
            mode: Mode::Noting(RefCell::default()),
            num_missed: Cell::new(0),
        }
    }

    /// A keeper of the weights that an earlier load packed; `None` if these are not all pieces of
    /// the index.
    #[must_use]
    pub fn kept(index: KeptIndex, pieces: Vec<Bytes>) -> Option<Self> {
        let mut pieces = pieces.into_iter();
        let mut weights = BTreeMap::new();
        for entry in index.weights {
            let of_entry: Vec<Bytes> = pieces.by_ref().take(entry.num_pieces).collect();
            if of_entry.len() != entry.num_pieces {
                return None;
            }
            let packed = Packed {
                facts: entry.facts,
                pieces: of_entry,
            };
            weights.insert(entry.name, packed);
        }
        pieces.next().is_none().then_some(Self {
            mode: Mode::Kept {
                quantization: index.quantization,
                weights,
            },
            num_missed: Cell::new(0),
        })
    }

    /// The noted weights, in the form that [`Keeper::kept`] takes; `None` unless the keeper notes.
    #[must_use]
    pub fn into_noted(self) -> Option<(KeptIndex, Vec<Bytes>)> {
        let Mode::Noting(noted) = self.mode else {
            return None;
        };
        let Noted {
            quantization,
            weights,
        } = noted.into_inner();
        let mut pieces = Vec::new();
        let entry = |(name, packed): (String, Packed)| {
            let num_pieces = packed.pieces.len();
            pieces.extend(packed.pieces);
            KeptEntry {
                name,
                facts: packed.facts,
                num_pieces,
            }
        };
        let index = KeptIndex {
            quantization,
            weights: weights.into_iter().map(entry).collect(),
        };
        Some((index, pieces))
    }

    /// Weights that an earlier load should have kept but did not: the loader packed them again.
    #[must_use]
    pub fn num_missed(&self) -> usize {
        self.num_missed.get()
    }

    /// Whether an earlier load has packed the weights.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.mode, Mode::Kept { .. })
    }

    /// The weights of that name, if an earlier load packed them.
    pub(crate) fn find(&self, name: &str) -> Option<&Packed> {
        match &self.mode {
            Mode::Kept { weights, .. } => weights.get(name),
            Mode::Off | Mode::Noting(_) => None,
        }
    }

    /// The weights of that name as `restore` makes them, or as `make` packs them if there are none;
    /// these are noted, as `packed` describes them.
    pub(crate) fn find_or_make<T, E>(
        &self,
        name: &str,
        restore: impl FnOnce(&Packed) -> Option<T>,
        make: impl FnOnce() -> Result<T, E>,
        packed: impl FnOnce(&T) -> Option<Packed>,
    ) -> Result<T, E> {
        if self.is_kept() {
            if let Some(restored) = self.find(name).and_then(restore) {
                return Ok(restored);
            }
            self.num_missed.set(self.num_missed.get() + 1);
        }
        let made = make()?;
        self.note(name, || packed(&made));
        Ok(made)
    }

    /// Notes weights, if the keeper notes and there is something to keep.
    pub(crate) fn note(&self, name: &str, packed: impl FnOnce() -> Option<Packed>) {
        if let Mode::Noting(noted) = &self.mode
            && let Some(packed) = packed()
        {
            noted.borrow_mut().weights.push((name.to_owned(), packed));
        }
    }

    /// The name of the source's formats: the one that an earlier load found, or `found`, which is
    /// noted.
    pub(crate) fn quantization(&self, found: String) -> String {
        match &self.mode {
            Mode::Kept { quantization, .. } => quantization.clone(),
            Mode::Noting(noted) => {
                noted.borrow_mut().quantization.clone_from(&found);
                found
            }
            Mode::Off => found,
        }
    }
}

impl Packed {
    pub(crate) fn new(facts: Facts, pieces: Vec<Bytes>) -> Self {
        Self { facts, pieces }
    }

    pub(crate) fn of_ternary(matrix: &TernaryMatrix, num_left_out: usize) -> Self {
        let parts = matrix.parts().iter();
        let facts = Facts::Ternary {
            parts: parts
                .map(|part| (part.rows, part.scale.to_bits()))
                .collect(),
            cols: matrix.cols(),
            packing: matrix.packing().name().to_owned(),
            num_left_out,
        };
        Self::new(facts, vec![matrix.bytes().clone()])
    }

    /// The matrix, and the weights of the model that it leaves out; `None` if it is not a matrix.
    pub(crate) fn ternary(&self) -> Option<(TernaryMatrix, usize)> {
        let (
            Facts::Ternary {
                parts,
                cols,
                packing,
                num_left_out,
            },
            [bytes],
        ) = (&self.facts, &self.pieces[..])
        else {
            return None;
        };
        let part = |&(rows, scale): &(usize, u32)| Part {
            rows,
            scale: f32::from_bits(scale),
        };
        let parts: Vec<Part> = parts.iter().map(part).collect();
        let packing = Packing::by_name(packing)?;
        let matrix = TernaryMatrix::from_packed(&parts, *cols, packing, bytes.clone())?;
        Some((matrix, *num_left_out))
    }

    pub(crate) fn of_groups(matrix: &GroupMatrix) -> Self {
        let facts = Facts::Groups {
            parts: matrix.parts().to_vec(),
            cols: matrix.cols(),
            codes: matrix.codes().name().to_owned(),
            group_cols: matrix.group_cols(),
        };
        Self::new(facts, vec![matrix.bytes().clone()])
    }

    /// The matrix; `None` if it is not one.
    pub(crate) fn groups(&self) -> Option<GroupMatrix> {
        let (
            Facts::Groups {
                parts,
                cols,
                codes,
                group_cols,
            },
            [bytes],
        ) = (&self.facts, &self.pieces[..])
        else {
            return None;
        };
        let codes = GroupCodes::ALL
            .into_iter()
            .find(|known| known.name() == codes)?;
        GroupMatrix::from_packed(parts, *cols, codes, *group_cols, bytes.clone())
    }

    pub(crate) fn of_live(live: Option<&[u32]>) -> Self {
        let bytes = |live: &[u32]| live.iter().flat_map(|at| at.to_le_bytes()).collect();
        Self::new(Facts::Live, live.map(bytes).into_iter().collect())
    }

    /// The positions of live neurons, if not all are; `None` if it is not such a list.
    pub(crate) fn live(&self) -> Option<Option<Vec<u32>>> {
        match (&self.facts, &self.pieces[..]) {
            (Facts::Live, []) => Some(None),
            (Facts::Live, [bytes]) => {
                let numbers = bytes.as_chunks::<4>().0.iter();
                Some(Some(numbers.map(|at| u32::from_le_bytes(*at)).collect()))
            }
            _ => None,
        }
    }
}
