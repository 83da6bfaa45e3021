//! Options: declaring them, and reading what was given into a struct.
//!
//! What a plugin declares with [`option`] is what its users give as flags. Its `Options` type is any struct that serde
//! can fill: a field for each option (`#[serde(rename_all = "kebab-case")]` makes `keep_tagged` of `--keep-tagged`). Numbers
//! behind `#[serde(flatten)]` it can't: there serde does not say what it wants, and gets text.
//!
//! | option | field |
//! |---|---|
//! | flag | `bool` with `#[serde(default)]` |
//! | integer, size (bytes), duration (seconds) | a number |
//! | text | `String`, or an enum where there are choices |
//! | pattern, and texts that may hold any bytes | [`Bytes`] |
//! | repeatable | `Vec<…>` with `#[serde(default)]` |
//! | one that has no default and may be left out | `Option<…>` |

use crate::{Failure, OptionKind, OptionSpec, OptionValue};
use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use std::fmt;

/// Declares an option; `repeatable`, `default`, `minimum` and `choices` can be set on the result.
pub fn option(name: &str, kind: OptionKind, help: &str) -> OptionSpec {
    OptionSpec {
        name: name.to_owned(),
        kind,
        help: help.to_owned(),
        repeatable: false,
        default: None,
        minimum: None,
        choices: Vec::new(),
    }
}

/// For plugins that declare no options.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct NoOptions {}

/// A value that need not be text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// Reads what was given; of an option that was given several times and is no list, the last counts.
///
/// Fails with [`Failure::Invalid`] that names the option. The host has checked values against what was declared, so
/// that happens only where that and `T` do not agree.
pub fn parse<T: DeserializeOwned>(given: &[OptionValue]) -> Result<T, Failure> {
    let mut options: Vec<(&str, Values<'_>)> = Vec::new();
    for OptionValue { name, value } in given {
        match options.iter_mut().find(|(known, _)| known == name) {
            Some((_, Values { last, all, .. })) => {
                *last = value;
                all.push(value);
            }
            None => options.push((name, Values { name, last: value, all: vec![value] })),
        }
    }
    let fields = MapDeserializer::new(options.into_iter());
    T::deserialize(fields).map_err(|Problem(text)| Failure::Invalid(text))
}

/// What was given for one option.
struct Values<'a> {
    name: &'a str,
    last: &'a [u8],
    all: Vec<&'a [u8]>,
}

impl<'a> Values<'a> {
    fn text(&self) -> Result<&'a str, Problem> {
        std::str::from_utf8(self.last).map_err(|_| self.wrong("UTF-8"))
    }

    fn number<T: std::str::FromStr>(&self) -> Result<T, Problem> {
        self.text()?.parse().map_err(|_| self.wrong("a number of that size"))
    }

    fn wrong(&self, expected: &str) -> Problem {
        let value = String::from_utf8_lossy(self.last);
        Problem(format!("option '{}': '{value}' is not {expected}", self.name))
    }

    /// Says which option it was.
    fn named<T>(&self, outcome: Result<T, Problem>) -> Result<T, Problem> {
        outcome.map_err(|Problem(text)| match text.starts_with("option '") {
            true => Problem(text),
            false => Problem(format!("option '{}': {text}", self.name)),
        })
    }
}

#[derive(Debug)]
struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Self(problem.to_string())
    }
}

impl<'de> IntoDeserializer<'de, Problem> for Values<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($deserialize:ident $visit:ident,)*) => {
        $(fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            let visited = visitor.$visit(self.number()?);
            self.named(visited)
        })*
    };
}

impl<'de> Deserializer<'de> for Values<'de> {
    type Error = Problem;

    numbers! {
        deserialize_i8 visit_i8, deserialize_i16 visit_i16, deserialize_i32 visit_i32,
        deserialize_i64 visit_i64, deserialize_u8 visit_u8, deserialize_u16 visit_u16,
        deserialize_u32 visit_u32, deserialize_u64 visit_u64, deserialize_i128 visit_i128,
        deserialize_u128 visit_u128, deserialize_f32 visit_f32, deserialize_f64 visit_f64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let visited = visitor.visit_borrowed_str(self.text()?);
        self.named(visited)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.last {
            b"true" => visitor.visit_bool(true),
            b"false" => visitor.visit_bool(false),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_borrowed_bytes(self.last)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_borrowed_bytes(self.last)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let name = self.name;
        let each = self.all.into_iter().map(|value| Values { name, last: value, all: vec![value] });
        visitor.visit_seq(SeqDeserializer::new(each))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let variant: StrDeserializer<'_, Problem> = self.text()?.into_deserializer();
        let visited = visitor.visit_enum(variant);
        self.named(visited)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        char str string unit unit_struct tuple tuple_struct map struct identifier
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                self.visit_bytes(text.as_bytes())
            }
        }

        deserializer.deserialize_byte_buf(Any)
    }
}

/// What a user would have given, as the host hands it over: for tests.
pub fn given(options: &[(&str, &str)]) -> Vec<OptionValue> {
    let value = |(name, value): &(&str, &str)| OptionValue {
        name: (*name).to_owned(),
        value: value.as_bytes().to_vec(),
    };
    options.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        Fast,
        VerySafe,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case", default)]
    struct Options {
        keep_last: Option<u64>,
        depth: u8,
        quiet: bool,
        tags: Vec<String>,
        exclude: Vec<Bytes>,
        mode: Option<Mode>,
    }

    fn parsed(options: &[(&str, &str)]) -> Result<Options, Failure> {
        parse(&given(options))
    }

    #[test]
    fn options_fill_a_struct() {
        assert_eq!(parsed(&[]), Ok(Options::default()));
        let all = parsed(&[
            ("keep-last", "3"),
            ("tags", "a"),
            ("quiet", "true"),
            ("exclude", "*.o"),
            ("tags", "b"),
            ("mode", "very-safe"),
            ("depth", "1"),
            ("depth", "2"),
        ]);
        let expected = Options {
            keep_last: Some(3),
            depth: 2,
            quiet: true,
            tags: vec!["a".into(), "b".into()],
            exclude: vec![Bytes(b"*.o".into())],
            mode: Some(Mode::VerySafe),
        };
        assert_eq!(all, Ok(expected));
        let bytes = OptionValue { name: "exclude".into(), value: vec![0xff] };
        assert_eq!(parse::<Options>(&[bytes]).unwrap().exclude, [Bytes(vec![0xff])]);
        let counts: HashMap<String, u64> = parse(&given(&[("a", "1"), ("b", "2")])).unwrap();
        assert_eq!(counts, HashMap::from([("a".into(), 1), ("b".into(), 2)]));
        let other = OptionValue { name: "other".into(), value: vec![0xff] };
        assert_eq!(parse(&[other]), Ok(NoOptions {}));
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_name() {
        for (name, value, told) in [
            ("depth", "256", "option 'depth': '256' is not a number of that size"),
            ("keep-last", "-1", "option 'keep-last': '-1' is not a number of that size"),
            ("quiet", "yes", "option 'quiet': 'yes' is not true or false"),
            (
                "mode",
                "slow",
                "option 'mode': unknown variant `slow`, expected `fast` or `very-safe`",
            ),
        ] {
            assert_eq!(parsed(&[(name, value)]), Err(Failure::Invalid(told.into())));
        }
        let bytes = OptionValue { name: "tags".into(), value: vec![0xff] };
        let told = "option 'tags': '\u{fffd}' is not UTF-8";
        assert_eq!(parse::<Options>(&[bytes]), Err(Failure::Invalid(told.into())));
        #[derive(Debug, Deserialize, PartialEq)]
        struct Needed {
            _weeks: u64,
        }
        assert!(parse::<Needed>(&[]).is_err());
    }
}
