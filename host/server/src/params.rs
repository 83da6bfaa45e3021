//! Parameters of a request, checked against what an endpoint takes. Spec: protocol.md §1.

use crate::error::{ApiError, ApiResult};
use keepwell_transport::query;
use serde_json::{Map, Value};
use std::str::FromStr;

/// What a parameter may be.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Text,
    /// text in a form of its own
    Form(fn(&str) -> bool),
    OneOf(&'static [&'static str]),
    Integer {
        minimum: i64,
        maximum: i64,
    },
    Bool,
    Texts,
    Integers,
}

/// One parameter of an endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Param {
    name: &'static str,
    kind: Kind,
    optional: bool,
}

pub(crate) const fn required(name: &'static str, kind: Kind) -> Param {
    Param { name, kind, optional: false }
}

pub(crate) const fn optional(name: &'static str, kind: Kind) -> Param {
    Param { name, kind, optional: true }
}

pub(crate) const fn at_least(minimum: i64) -> Kind {
    Kind::Integer { minimum, maximum: i64::MAX }
}

/// Whether text is one of our types.
pub(crate) fn is<T: FromStr>(text: &str) -> bool {
    text.parse::<T>().is_ok()
}

/// Parameters that fit.
#[derive(Debug, Default)]
pub(crate) struct Params(Map<String, Value>);

/// Where the parameters of a request came from.
pub(crate) enum Given {
    /// all are text
    Query(Vec<(String, String)>),
    Json(Map<String, Value>),
}

impl Given {
    /// From the part behind the question mark.
    pub(crate) fn query(text: &str) -> ApiResult<Self> {
        let pairs = query::decode(text).ok_or_else(|| ApiError::bad("invalid query string"))?;
        Ok(Self::Query(pairs))
    }
}

impl Params {
    /// Checks what was given, the query first; a body may add to it.
    pub(crate) fn check(schema: &[Param], given: Vec<Given>) -> ApiResult<Self> {
        let mut values = Map::new();
        let mut problems = Vec::new();
        let is_json = given.iter().any(|given| matches!(given, Given::Json(_)));
        for given in given {
            match given {
                Given::Query(pairs) => {
                    for (name, text) in pairs.into_iter().filter(|(name, _)| name != "_dc") {
                        add_text(schema, &mut values, &mut problems, name, text);
                    }
                }
                Given::Json(map) => {
                    for (name, value) in map {
                        add_value(schema, &mut values, &mut problems, name, value);
                    }
                }
            }
        }
        for param in schema.iter().filter(|param| !param.optional) {
            let failed = problems.iter().any(|(name, _)| name == param.name);
            if !values.contains_key(param.name) && !failed {
                let problem = match is_json {
                    true => "property is missing and it is not optional",
                    false => "parameter is missing and it is not optional.",
                };
                problems.push((param.name.to_owned(), problem.to_owned()));
            }
        }
        let message = match &problems[..] {
            [] => return Ok(Self(values)),
            [(name, problem)] => format!("parameter verification failed - '{name}': {problem}"),
            all => {
                let lines = all.iter().map(|(name, problem)| format!("\n- '{name}': {problem}"));
                format!("parameter verification failed:{}", lines.collect::<String>())
            }
        };
        Err(ApiError { parameters: problems, ..ApiError::bad(message) })
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    pub(crate) fn integer(&self, name: &str) -> Option<i64> {
        self.0.get(name)?.as_i64()
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.0.get(name)?.as_bool()
    }

    pub(crate) fn texts(&self, name: &str) -> Vec<&str> {
        let list = self.0.get(name).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let list = self.0.get(name).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_i64).collect()
    }

    /// One of our types, which the schema has checked already.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let bad = |_| ApiError::bad(format!("parameter '{name}' is not valid"));
        text.parse().map(Some).map_err(bad)
    }

    pub(crate) fn needed<T: FromStr>(&self, name: &str) -> ApiResult<T> {
        let missing = || ApiError::bad(format!("parameter '{name}' is missing"));
        self.parsed(name)?.ok_or_else(missing)
    }
}

type Problems = Vec<(String, String)>;

fn find<'a>(schema: &'a [Param], problems: &mut Problems, name: &str) -> Option<&'a Param> {
    let found = schema.iter().find(|param| param.name == name);
    if found.is_none() {
        let problem = "schema does not allow additional properties.";
        problems.push((name.to_owned(), problem.to_owned()));
    }
    found
}

fn add_text(
    schema: &[Param],
    values: &mut Map<String, Value>,
    problems: &mut Problems,
    name: String,
    text: String,
) {
    let Some(param) = find(schema, problems, &name) else { return };
    let value = match param.kind {
        Kind::Integer { .. } => match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(problem) => {
                return problems
                    .push((name, format!("unable to parse '{text}' as integer: {problem}")));
            }
        },
        Kind::Bool => match text.to_ascii_lowercase().as_str() {
            "1" | "on" | "yes" | "true" => Value::from(true),
            "0" | "off" | "no" | "false" => Value::from(false),
            _ => return problems.push((name, format!("Expected boolean value, got '{text}'."))),
        },
        Kind::Texts => {
            if let Some(list) =
                values.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()
            {
                list.push(text.into());
            }
            return;
        }
        _ => Value::from(text),
    };
    check_value(param, values, problems, name, value);
}

fn add_value(
    schema: &[Param],
    values: &mut Map<String, Value>,
    problems: &mut Problems,
    name: String,
    value: Value,
) {
    if value.is_null() {
        return;
    }
    let Some(param) = find(schema, problems, &name) else { return };
    check_value(param, values, problems, name, value);
}

fn check_value(
    param: &Param,
    values: &mut Map<String, Value>,
    problems: &mut Problems,
    name: String,
    value: Value,
) {
    let problem = match (param.kind, &value) {
        (Kind::Text, Value::String(_)) | (Kind::Bool, Value::Bool(_)) => None,
        (Kind::Form(fits), Value::String(text)) => {
            (!fits(text)).then(|| "value does not match the regex pattern".to_owned())
        }
        (Kind::OneOf(list), Value::String(text)) => (!list.contains(&text.as_str()))
            .then(|| format!("value '{text}' is not defined in the enumeration.")),
        (Kind::Integer { minimum, maximum }, Value::Number(number)) => match number.as_i64() {
            Some(number) if number < minimum => {
                Some(format!("value must have a minimum value of {minimum} (got {number})"))
            }
            Some(number) if number > maximum => {
                Some(format!("value must have a maximum value of {maximum} (got {number})"))
            }
            Some(_) => None,
            None => Some("Expected integer value.".to_owned()),
        },
        (Kind::Texts, Value::Array(list)) if list.iter().all(Value::is_string) => None,
        (Kind::Integers, Value::Array(list)) if list.iter().all(Value::is_i64) => None,
        (Kind::Bool, _) => Some("Expected boolean value.".to_owned()),
        (Kind::Integer { .. }, _) => Some("Expected integer value.".to_owned()),
        (Kind::Texts | Kind::Integers, _) => {
            Some("Expected array - got something else.".to_owned())
        }
        _ => Some("Expected string value.".to_owned()),
    };
    match problem {
        Some(problem) => problems.push((name, problem)),
        None => {
            if values.insert(name.clone(), value).is_some() {
                problems.push((name, "Duplicate parameter.".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEMA: [Param; 4] = [
        required("store", Kind::Text),
        optional("n", at_least(1)),
        optional("flag", Kind::Bool),
        optional("list", Kind::Texts),
    ];

    fn check(query: &str) -> Result<Params, String> {
        Params::check(&SCHEMA, vec![Given::query(query).unwrap()]).map_err(|error| error.message)
    }

    #[test]
    fn parameters_have_types() {
        let params = check("store=a+b&n=5&flag=on&list=x&list=y&_dc=1").unwrap();
        assert_eq!(params.text("store"), Some("a b"));
        assert_eq!((params.integer("n"), params.flag("flag")), (Some(5), Some(true)));
        assert_eq!(params.texts("list"), ["x", "y"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_as_the_reference_does() {
        let one = "parameter verification failed - ";
        for (query, problem) in [
            ("", "'store': parameter is missing and it is not optional."),
            ("store=a&x=1", "'x': schema does not allow additional properties."),
            ("store=a&n=0", "'n': value must have a minimum value of 1 (got 0)"),
        ] {
            assert_eq!(check(query).unwrap_err(), format!("{one}{problem}"));
        }
        let two = check("x=1&n=z").unwrap_err();
        assert_eq!(two.lines().count(), 4, "{two}");
        assert!(two.starts_with("parameter verification failed:\n- 'x': "), "{two}");
    }

    proptest! {
        #[test]
        fn any_query_is_taken_or_refused(text in ".*") {
            if let Ok(given) = Given::query(&text) {
                let _ = Params::check(&SCHEMA, vec![given]);
            }
        }
    }
}
