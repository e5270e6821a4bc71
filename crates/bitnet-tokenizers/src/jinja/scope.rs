//! Variables and their scopes.

use hashbrown::HashMap;

use super::ast::Name;
use super::value::Value;

/// The variables of a block.
#[derive(Clone, Default)]
pub(crate) struct Scope(HashMap<Name, Value>);

impl Scope {
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub(crate) fn set(&mut self, name: Name, value: Value) {
        self.0.insert(name, value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.values()
    }
}
