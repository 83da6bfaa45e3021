//! Prints results as lines of `key=value`: `keepwell snapshot list --output-format {name}`.

use keepwell_sdk::formatter::{Document, Environment, Formatter, Info, Plugin};
use keepwell_sdk::options::option;
use keepwell_sdk::{Failure, OptionKind, OptionSpec};
use serde::Deserialize;
use serde_json::Value;

pub struct {Type}Plugin;

/// What is given on the command line.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Options {
    key_separator: String,
}

impl Plugin for {Type}Plugin {
    fn describe() -> Info {
        let separator = option("key-separator", OptionKind::Text, "What stands behind a key");
        Info {
            name: "{name}".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Prints results as lines of keys and values".into(),
            options: vec![OptionSpec { default: Some("=".into()), ..separator }],
            capabilities: Vec::new(),
            // The values of --output-format.
            formats: vec!["{name}".into()],
        }
    }
}

impl Formatter for {Type}Plugin {
    type Options = Options;

    fn render(
        document: Document,
        _: Environment,
        options: Options,
    ) -> Result<Vec<u8>, Failure> {
        // `data` is for programs; `display` and `layout` say how people want to see it.
        let data: Value = serde_json::from_str(&document.data)
            .map_err(|problem| Failure::Invalid(format!("document: {problem}")))?;
        let mut out = String::new();
        match data {
            Value::Array(items) => items.iter().for_each(|item| line(item, &options, &mut out)),
            item => line(&item, &options, &mut out),
        }
        Ok(out.into_bytes())
    }
}

fn line(item: &Value, options: &Options, out: &mut String) {
    let words: Vec<String> = match item {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}{}{value}", options.key_separator)).collect()
        }
        other => vec![other.to_string()],
    };
    out.push_str(&words.join(" "));
    out.push('\n');
}

keepwell_sdk::export_output_formatter!({Type}Plugin);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_a_line() {
        let options = Options { key_separator: ":".into() };
        let mut out = String::new();
        line(&serde_json::json!({ "a": 1, "b": "x" }), &options, &mut out);
        assert_eq!(out, "a:1 b:\"x\"\n");
    }
}
