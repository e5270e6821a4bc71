//! The filters of lists, maps and other iterables.

use std::cmp::Ordering;

use hashbrown::HashSet;

use super::arguments::{Args, flag, required, text};
use super::ast::{Binary, Name};
use super::fault::{Fault, Result};
use super::filters::positive_count;
use super::machine::Machine;
use super::operators;
use super::text::Text;
use super::value::{Key, SeqKind, Value};

/// The path from an item to the value that a filter uses.
struct Getter {
    /// Each path is a chain of attributes; several paths are compared one after the other.
    paths: Vec<Vec<Value>>,
    is_list: bool,
    ignores_case: bool,
    default: Option<Value>,
}

impl Getter {
    fn new(attribute: Option<&Value>, splits: bool, ignores_case: bool) -> Result<Self> {
        let parts = |path: &str| {
            let part = |part: &str| match part.parse::<i128>() {
                Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(index),
                _ => Value::text(part),
            };
            path.split('.').map(part).collect::<Vec<_>>()
        };
        let paths = match attribute {
            None | Some(Value::None) => vec![Vec::new()],
            Some(Value::Int(index)) => vec![vec![Value::Int(*index)]],
            Some(attribute) => {
                let attribute = text(attribute, "an attribute")?.as_str();
                match splits {
                    true => attribute.split(',').map(parts).collect(),
                    false => vec![parts(attribute)],
                }
            }
        };
        Ok(Self {
            paths,
            is_list: splits,
            ignores_case,
            default: None,
        })
    }

    fn get(&self, machine: &mut Machine, item: &Value) -> Result<Value> {
        let mut values = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            let mut value = item.clone();
            for part in path {
                machine.budget.step(1)?;
                value = machine.item(&value, part)?;
                if let (Value::Undefined(_), Some(default)) = (&value, &self.default) {
                    value = default.clone();
                }
            }
            values.push(match value {
                Value::Text(text) if self.ignores_case => {
                    machine.budget.read(text.len())?;
                    Value::Text(text.map(str::to_lowercase))
                }
                other => other,
            });
        }
        match values.len() {
            1 if !self.is_list || self.paths.len() == 1 => Ok(values.remove(0)),
            _ => Value::list(values),
        }
    }
}

impl Machine {
    pub(crate) fn sequence_filter(
        &mut self,
        name: &str,
        value: &Value,
        args: Args,
    ) -> Result<Value> {
        match name {
            "first" | "last" | "random" => self.pick(name, value, args),
            "list" => {
                args.none(name)?;
                let items = value.items(&self.budget)?.into_owned();
                Value::list(items)
            }
            "items" => {
                args.none(name)?;
                match value {
                    Value::Undefined(_) => Value::generator(Vec::new()),
                    Value::Dict(_) => {
                        let items = self.method(value, "items", Args::default())?;
                        Value::generator(items.items(&self.budget)?.into_owned())
                    }
                    _ => Err(Fault::new("Can only get item pairs from a mapping.")),
                }
            }
            "reverse" => self.reverse(value, args),
            "join" => self.join(value, args),
            "map" => self.map(value, args),
            "select" | "reject" => self.select(name, value, args, false),
            "selectattr" | "rejectattr" => self.select(name, value, args, true),
            "sort" => self.sort(value, args),
            "dictsort" => self.dict_sort(value, args),
            "groupby" => self.group(value, args),
            "unique" => self.unique(value, args),
            "min" | "max" => self.extreme(name, value, args),
            "sum" => self.sum(value, args),
            "batch" => self.batch(value, args),
            _ => self.slices(value, args),
        }
    }

    fn pick(&mut self, name: &str, value: &Value, args: Args) -> Result<Value> {
        args.none(name)?;
        if let (Value::Generator(generator), "first") = (value, name) {
            let first = generator.items.borrow_mut().pop_front();
            return Ok(
                first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty."))
            );
        }
        let items = value.items(&self.budget)?;
        // `random` returns the first item: a chat must render the same way every time.
        let item = if name == "last" {
            items.last()
        } else {
            items.first()
        };
        let problem = || Value::undefined(format!("No {name} item, sequence was empty."));
        Ok(item.cloned().unwrap_or_else(problem))
    }

    fn reverse(&mut self, value: &Value, args: Args) -> Result<Value> {
        args.none("reverse")?;
        if let Value::Text(_) = value {
            return operators::slice(value, &[Value::None, Value::None, Value::Int(-1)]);
        }
        let mut items = value.items(&self.budget)?.into_owned();
        items.reverse();
        Value::generator(items)
    }

    fn join(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
        let separator = match separator {
            Some(separator) => separator.to_text(&self.budget)?,
            None => Text::own(""),
        };
        let items = self.values(value, attribute.as_ref())?;
        let texts = items.iter().map(|item| item.to_text(&self.budget));
        self.joined(&separator, texts).map(Value::Text)
    }

    /// The items, or an attribute of each.
    fn values(&mut self, value: &Value, attribute: Option<&Value>) -> Result<Vec<Value>> {
        let items = value.items(&self.budget)?.into_owned();
        let Some(attribute) = attribute.filter(|attribute| !matches!(attribute, Value::None))
        else {
            return Ok(items);
        };
        let getter = Getter::new(Some(attribute), false, false)?;
        items.iter().map(|item| getter.get(self, item)).collect()
    }

    fn map(&mut self, value: &Value, mut args: Args) -> Result<Value> {
        if !value.is_true() {
            return Value::generator(Vec::new());
        }
        let items = value.items(&self.budget)?.into_owned();
        let has_attribute = args.named.iter().any(|(name, _)| &**name == "attribute");
        let mapped: Vec<Value> = if args.positional.is_empty() && has_attribute {
            let [attribute, default] = args.bind("map", ["attribute", "default"])?;
            let mut getter = Getter::new(attribute.as_ref(), false, false)?;
            getter.default = default.filter(|default| !matches!(default, Value::None));
            items
                .iter()
                .map(|item| getter.get(self, item))
                .collect::<Result<_>>()?
        } else {
            if args.positional.is_empty() {
                return Err(Fault::new("map requires a filter argument"));
            }
            let filter = args.positional.remove(0);
            let filter: Name = text(&filter, "the filter of map")?.as_str().into();
            let mut mapped = Vec::with_capacity(items.len());
            for item in items {
                self.budget.enter()?;
                mapped.push(self.filter(&filter, item, args.clone())?);
                self.budget.leave();
            }
            mapped
        };
        Value::generator(mapped)
    }

    fn select(
        &mut self,
        name: &str,
        value: &Value,
        mut args: Args,
        by_attribute: bool,
    ) -> Result<Value> {
        if !value.is_true() {
            return Value::generator(Vec::new());
        }
        let items = value.items(&self.budget)?.into_owned();
        let getter = match by_attribute {
            true if args.positional.is_empty() => {
                return Err(Fault::new("Missing parameter for attribute name"));
            }
            true => Some(Getter::new(Some(&args.positional.remove(0)), false, false)?),
            false => None,
        };
        let test = match args.positional.is_empty() {
            true => None,
            false => Some(args.positional.remove(0)),
        };
        let keeps = name.starts_with("select");
        let mut selected = Vec::new();
        for item in items {
            self.budget.step(1)?;
            let looked_at = match &getter {
                Some(getter) => getter.get(self, &item)?,
                None => item.clone(),
            };
            let holds = match &test {
                Some(test) => {
                    let test = text(test, "the name of a test")?.as_str().to_owned();
                    self.test(&test, &looked_at, args.clone())?
                }
                None => looked_at.is_true(),
            };
            if holds == keeps {
                selected.push(item);
            }
        }
        Value::generator(selected)
    }

    /// Sorts by `key`; the sort is stable.
    fn sort_by(&self, keyed: &mut [(Value, Value)], is_reverse: bool) -> Result<()> {
        self.budget.step(keyed.len().saturating_mul(16))?;
        let mut failed = Ok(());
        keyed.sort_by(|(a, _), (b, _)| match a.compare(b, &self.budget) {
            Ok(order) => {
                let order = order.unwrap_or(Ordering::Equal);
                if is_reverse { order.reverse() } else { order }
            }
            Err(fault) => {
                failed = Err(fault);
                Ordering::Equal
            }
        });
        failed
    }

    fn keyed(&mut self, items: Vec<Value>, getter: &Getter) -> Result<Vec<(Value, Value)>> {
        items
            .into_iter()
            .map(|item| Ok((getter.get(self, &item)?, item)))
            .collect()
    }

    fn sort(&mut self, value: &Value, args: Args) -> Result<Value> {
        let names = ["reverse", "case_sensitive", "attribute"];
        let [reverse, case, attribute] = args.bind("sort", names)?;
        let getter = Getter::new(attribute.as_ref(), true, !flag(case.as_ref(), false))?;
        let items = value.items(&self.budget)?.into_owned();
        let mut keyed = self.keyed(items, &getter)?;
        self.sort_by(&mut keyed, flag(reverse.as_ref(), false))?;
        Value::list(keyed.into_iter().map(|(_, item)| item).collect())
    }

    fn dict_sort(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [case, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let index = match &by {
            None => 0,
            Some(by) => match text(by, "what dictsort sorts by")?.as_str() {
                "key" => 0,
                "value" => 1,
                _ => {
                    return Err(Fault::new(
                        "You can only sort by either \"key\" or \"value\"",
                    ));
                }
            },
        };
        if !matches!(value, Value::Dict(_)) {
            return Err(Fault::new(format!(
                "dictsort takes a map, not {}",
                value.type_name()
            )));
        }
        let items = self.method(value, "items", Args::default())?;
        let items = items.items(&self.budget)?.into_owned();
        let getter = Getter::new(Some(&Value::Int(index)), false, !flag(case.as_ref(), false))?;
        let mut keyed = self.keyed(items, &getter)?;
        self.sort_by(&mut keyed, flag(reverse.as_ref(), false))?;
        Value::list(keyed.into_iter().map(|(_, item)| item).collect())
    }

    fn group(&mut self, value: &Value, args: Args) -> Result<Value> {
        let names = ["attribute", "default", "case_sensitive"];
        let [attribute, default, case] = args.bind("groupby", names)?;
        let attribute = required(attribute, "groupby", "attribute")?;
        let mut getter = Getter::new(Some(&attribute), false, !flag(case.as_ref(), false))?;
        getter.default = default.filter(|default| !matches!(default, Value::None));
        let items = value.items(&self.budget)?.into_owned();
        let mut keyed = self.keyed(items, &getter)?;
        self.sort_by(&mut keyed, false)?;
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (key, item) in keyed {
            match groups.last_mut() {
                Some((last, items)) if last.equals(&key, &self.budget)? => items.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        getter.ignores_case = false;
        let groups = groups.into_iter().map(|(_, items)| {
            let grouper = getter.get(self, &items[0])?;
            Value::seq(SeqKind::Group, vec![grouper, Value::list(items)?])
        });
        let groups = groups.collect::<Result<Vec<_>>>()?;
        Value::list(groups)
    }

    fn unique(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [case, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
        let getter = Getter::new(attribute.as_ref(), false, !flag(case.as_ref(), false))?;
        let items = value.items(&self.budget)?.into_owned();
        let mut seen = HashSet::new();
        let mut unique = Vec::new();
        for (key, item) in self.keyed(items, &getter)? {
            if seen.insert(Key::new(&key)?) {
                unique.push(item);
            }
        }
        Value::generator(unique)
    }

    fn extreme(&mut self, name: &str, value: &Value, args: Args) -> Result<Value> {
        let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
        let getter = Getter::new(attribute.as_ref(), false, !flag(case.as_ref(), false))?;
        let items = value.items(&self.budget)?.into_owned();
        let mut best: Option<(Value, Value)> = None;
        for (key, item) in self.keyed(items, &getter)? {
            let wanted = if name == "min" {
                Ordering::Less
            } else {
                Ordering::Greater
            };
            let is_better = match &best {
                None => true,
                Some((best, _)) => key.compare(best, &self.budget)? == Some(wanted),
            };
            if is_better {
                best = Some((key, item));
            }
        }
        let problem = || Value::undefined("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(problem, |(_, item)| item))
    }

    fn sum(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
        let start = start.unwrap_or(Value::Int(0));
        if matches!(start, Value::Text(_)) {
            return Err(Fault::new(
                "sum() can't sum strings [use ''.join(seq) instead]",
            ));
        }
        let items = self.values(value, attribute.as_ref())?;
        items.iter().try_fold(start, |sum, item| {
            let sum = operators::binary(Binary::Add, &sum, item, &self.budget)?;
            self.budget.built(sum.shallow_bytes())?;
            Ok(sum)
        })
    }

    fn batch(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [count, fill] = args.bind("batch", ["linecount", "fill_with"])?;
        let count = positive_count(&required(count, "batch", "linecount")?, "a batch")?;
        let items = value.items(&self.budget)?.into_owned();
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let batches = items.chunks(count).map(|chunk| {
            let mut batch = chunk.to_vec();
            if let Some(fill) = &fill {
                self.budget
                    .check(count.saturating_mul(size_of::<Value>()))?;
                batch.resize(count, fill.clone());
            }
            Value::list(batch)
        });
        Value::generator(batches.collect::<Result<_>>()?)
    }

    fn slices(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [count, fill] = args.bind("slice", ["slices", "fill_with"])?;
        let count = positive_count(&required(count, "slice", "slices")?, "the number of slices")?;
        self.budget
            .check(count.saturating_mul(size_of::<Value>()))?;
        let items = value.items(&self.budget)?.into_owned();
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let (size, num_longer) = (items.len() / count, items.len() % count);
        let mut slices = Vec::with_capacity(count);
        let mut rest = &items[..];
        for index in 0..count {
            self.budget.step(1)?;
            let (slice, after) = rest.split_at(size + usize::from(index < num_longer));
            rest = after;
            let mut slice = slice.to_vec();
            slice.extend(fill.clone().filter(|_| index >= num_longer));
            slices.push(Value::list(slice)?);
        }
        Value::generator(slices)
    }
}
