//! Query strings: `application/x-www-form-urlencoded`. Spec: protocol.md §1.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value};

/// What stays as it is, beside letters, digits and the blank, which becomes `+`.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'*').remove(b'.').remove(b'_').remove(b'-').remove(b' ');

/// Parameters of a request, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query(Map<String, Value>);

impl Query {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As the body of a POST.
    pub fn to_json(&self) -> Vec<u8> {
        Value::Object(self.0.clone()).to_string().into_bytes()
    }

    /// `a=1&b=x+y`: null is left out, a list repeats its name.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        for (name, value) in &self.0 {
            match value {
                Value::Array(values) => {
                    values.iter().for_each(|value| push(&mut out, name, value));
                }
                value => push(&mut out, name, value),
            }
        }
        out
    }
}

fn push(out: &mut String, name: &str, value: &Value) {
    let text = match value {
        Value::Null => return,
        Value::String(text) => escape(text),
        other => escape(&other.to_string()),
    };
    if !out.is_empty() {
        out.push('&');
    }
    out.push_str(&escape(name));
    out.push('=');
    out.push_str(&text);
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string().replace(' ', "+")
}

/// One component of a path, such as the id of a task.
pub fn escape_component(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Name and value of each parameter, in order. None where a value is not UTF-8.
pub fn decode(query: &str) -> Option<Vec<(String, String)>> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Some((unescape(name)?, unescape(value)?))
        })
        .collect()
}

fn unescape(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    Some(percent_decode_str(&text).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn parameters_are_sorted_and_escaped() {
        let query = Query::new()
            .with("store", "s1")
            .with("ns", "a/b")
            .with("debug", true)
            .with("notes", "some notes_*.-~ä")
            .with("none", Value::Null)
            .with("list", json!(["x", 1]));
        let text = "debug=true&list=x&list=1&notes=some+notes_*.-%7E%C3%A4&ns=a%2Fb&store=s1";
        assert_eq!(query.encode(), text);
    }

    #[test]
    fn a_task_id_is_escaped_as_the_reference_does() {
        let upid = "UPID:vm:000019BF:0004C4E6:00000055:6B03A138:garbage_collection:s:t@pbs:";
        let escaped = escape_component(upid);
        assert!(escaped.starts_with("UPID%3Avm%3A000019BF%3A"), "{escaped}");
        assert!(escaped.ends_with("garbage%5Fcollection%3As%3At%40pbs%3A"), "{escaped}");
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(pairs in prop::collection::btree_map(".{1,9}", ".{0,9}", 0..5)) {
            let query = pairs.iter().fold(Query::new(), |query, (name, value)| query.with(name, value.as_str()));
            let decoded = decode(&query.encode()).unwrap();
            prop_assert_eq!(decoded, pairs.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn anything_is_decoded_or_refused(text in ".*") {
            let _ = decode(&text);
        }
    }
}
