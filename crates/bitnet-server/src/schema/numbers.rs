//! Numbers and ranges within what the grammar engine can enforce.

use serde_json::{Map, Value, json};

use super::error::{SchemaError, error};
use super::references::SchemaPlace;

/// Refuses empty ranges: the engine would silently drop an optional property with such a range.
pub(super) fn check_ranges(
    place: &SchemaPlace,
    schema: &Map<String, Value>,
) -> Result<(), SchemaError> {
    for (lower, upper) in [
        ("minimum", "maximum"),
        ("minLength", "maxLength"),
        ("minItems", "maxItems"),
        ("minProperties", "maxProperties"),
    ] {
        let (Some(least), Some(most)) = (schema.get(lower), schema.get(upper)) else {
            continue;
        };
        let is_empty = least.as_f64().zip(most.as_f64());
        if is_empty.is_some_and(|(least, most)| least > most) {
            let problem = format!("'{lower}' is {least}, more than '{upper}', {most}");
            return Err(error(place, problem));
        }
    }
    Ok(())
}

/// The largest bound of an integer: the largest `f64` below 2⁶³, since the grammar engine has
/// bounds as `f64` and computes with them as `i64`.
const INTEGER_MAX: f64 = 9_223_372_036_854_774_784.0;
/// From here on an integer needs bounds on both sides.
const INTEGER_ONE_SIDED_MAX: f64 = 1e18;

/// Moves the bounds of integers to where the grammar engine can enforce them: never outwards, and
/// inwards at most to 64 bits.
pub(super) fn bound_integers(
    place: &SchemaPlace,
    schema: &mut Map<String, Value>,
) -> Result<(), SchemaError> {
    let is_integer = match schema.get("type") {
        Some(Value::String(kind)) => kind == "integer",
        Some(Value::Array(kinds)) => kinds.contains(&json!("integer")),
        _ => false,
    };
    if !is_integer {
        bound_numbers(schema);
        return Ok(());
    }
    let (mut lowest, mut highest) = (None, None);
    for (name, sign) in BOUNDS {
        let Some(bound) = schema.get(name).filter(|bound| bound.is_number()) else {
            continue;
        };
        let inner = sign * inward(bound, sign);
        if inner > INTEGER_MAX {
            let problem = format!("'{name}' is beyond integers of 64 bits");
            return Err(error(&place.child(name), problem));
        }
        let bound = sign * inner.max(-INTEGER_MAX);
        schema.insert(name.to_owned(), json!(bound));
        if sign > 0.0 {
            lowest = Some(bound);
        } else {
            highest = Some(bound);
        }
    }
    match (lowest, highest) {
        (Some(lowest), None) if lowest >= INTEGER_ONE_SIDED_MAX => {
            schema.insert("maximum".to_owned(), json!(INTEGER_MAX));
        }
        (None, Some(highest)) if highest <= -INTEGER_ONE_SIDED_MAX => {
            schema.insert("minimum".to_owned(), json!(-INTEGER_MAX));
        }
        _ => {}
    }
    Ok(())
}

/// The largest bound of a number: the largest `f64` below 10¹⁸. The grammar engine supports no more
/// digits before the point.
const NUMBER_MAX: f64 = 999_999_999_999_999_872.0;
/// No number in an answer is this large: see the limits on digits and exponents in `grammar.rs`.
const NUMBER_UNREACHED: f64 = 1e160;

/// Moves the bounds of numbers inwards to where the grammar engine can enforce them, and removes
/// bounds that no number reaches, such as the largest `f64`.
fn bound_numbers(schema: &mut Map<String, Value>) {
    for (name, sign) in BOUNDS {
        let Some(bound) = schema.get(name).and_then(Value::as_f64) else {
            continue;
        };
        // Distance between zero and the bound, on the side that the bound allows.
        let room = -sign * bound;
        if room >= NUMBER_UNREACHED {
            schema.shift_remove(name);
        } else if room > NUMBER_MAX {
            schema.insert(name.to_owned(), json!(-sign * NUMBER_MAX));
        }
    }
}

/// Bounds, with 1 for lower and -1 for upper ones.
const BOUNDS: [(&str, f64); 4] = [
    ("minimum", 1.0),
    ("exclusiveMinimum", 1.0),
    ("maximum", -1.0),
    ("exclusiveMaximum", -1.0),
];

/// The nearest `f64` to a bound that is not outside of it; `sign` is 1 for a lower bound.
fn inward(bound: &Value, sign: f64) -> f64 {
    let rounded = bound.as_f64().unwrap_or_default();
    let exact = bound
        .as_i64()
        .map(i128::from)
        .or(bound.as_u64().map(i128::from));
    let is_outside = |exact: i128| {
        let rounded = rounded as i128;
        if sign > 0.0 {
            rounded < exact
        } else {
            rounded > exact
        }
    };
    match exact {
        Some(exact) if is_outside(exact) && sign > 0.0 => rounded.next_up(),
        Some(exact) if is_outside(exact) => rounded.next_down(),
        _ => rounded,
    }
}

/// Refuses integers that an `f64` cannot represent, because the grammar engine would write another
/// integer.
pub(super) fn check_exact(place: &SchemaPlace, value: &Value) -> Result<(), SchemaError> {
    match value {
        Value::Number(number) => {
            let exact = number
                .as_i64()
                .map(i128::from)
                .or(number.as_u64().map(i128::from));
            let rounded = number.as_f64().map(|rounded| rounded as i128);
            if exact.is_some() && exact != rounded {
                let problem = format!("the integer {number} is too large to be enforced exactly");
                return Err(error(place, problem));
            }
            Ok(())
        }
        Value::Array(list) => (0..)
            .zip(list)
            .try_for_each(|(index, value)| check_exact(&place.child(&format!("{index}")), value)),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, value)| check_exact(&place.child(name), value)),
        _ => Ok(()),
    }
}
