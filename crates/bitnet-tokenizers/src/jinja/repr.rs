//! Values as text: Python's `str` and `repr`.

use super::fault::{Fault, Result};
use super::limits::Budget;
use super::strings;
use super::text::{Text, TextBuilder};
use super::value::{Dict, Key, Seq, SeqKind, Value};

impl Value {
    /// As Python's `str`; empty for an undefined value.
    pub(crate) fn to_text(&self, budget: &Budget) -> Result<Text> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Undefined(_) => Ok(Text::own("")),
            other => other.to_repr(budget),
        }
    }

    /// As Python's `repr`.
    pub(crate) fn to_repr(&self, budget: &Budget) -> Result<Text> {
        let mut out = TextBuilder::default();
        write_repr(self, &mut out, budget)?;
        budget.built(out.len())?;
        Ok(out.finish())
    }
}

fn write_repr(value: &Value, out: &mut TextBuilder, budget: &Budget) -> Result<()> {
    budget.step(1)?;
    budget.check(out.len())?;
    match value {
        Value::Undefined(_) => out.push_own("Undefined"),
        Value::None => out.push_own("None"),
        Value::Bool(true) => out.push_own("True"),
        Value::Bool(false) => out.push_own("False"),
        Value::Int(number) => out.push_own(&number.to_string()),
        Value::Float(number) => out.push_own(&strings::float(*number)),
        Value::Text(text) => {
            budget.read(text.len())?;
            out.push_as(&strings::repr(text.as_str()), text.is_foreign());
        }
        Value::Seq(seq) => write_seq(seq, out, budget)?,
        Value::Dict(dict) => write_dict(dict, out, budget)?,
        Value::Macro(closure) => {
            out.push_own(&format!("<Macro {}>", strings::repr(&closure.node.name)))
        }
        Value::Loop(state) => {
            let (index, length) = (state.index.get() + 1, state.items.len());
            out.push_own(&format!("<LoopContext {index}/{length}>"));
        }
        other => {
            let name = other.type_name();
            return Err(Fault::new(format!("a {name} has no text")));
        }
    }
    Ok(())
}

fn write_seq(seq: &Seq, out: &mut TextBuilder, budget: &Budget) -> Result<()> {
    let (open, close) = match seq.kind {
        SeqKind::List => ("[", "]"),
        SeqKind::Tuple | SeqKind::Group if seq.items.len() == 1 => ("(", ",)"),
        SeqKind::Tuple | SeqKind::Group => ("(", ")"),
        SeqKind::Keys => ("dict_keys([", "])"),
        SeqKind::Values => ("dict_values([", "])"),
        SeqKind::Items => ("dict_items([", "])"),
        SeqKind::Range { start, stop, step } => {
            out.push_own(&match step {
                1 => format!("range({start}, {stop})"),
                _ => format!("range({start}, {stop}, {step})"),
            });
            return Ok(());
        }
    };
    out.push_own(open);
    for (index, item) in seq.items.iter().enumerate() {
        if index > 0 {
            out.push_own(", ");
        }
        write_repr(item, out, budget)?;
    }
    out.push_own(close);
    Ok(())
}

fn write_dict(dict: &Dict, out: &mut TextBuilder, budget: &Budget) -> Result<()> {
    out.push_own("{");
    for (index, (Key(key), value)) in dict.entries.iter().enumerate() {
        if index > 0 {
            out.push_own(", ");
        }
        write_repr(key, out, budget)?;
        out.push_own(": ");
        write_repr(value, out, budget)?;
    }
    out.push_own("}");
    Ok(())
}
