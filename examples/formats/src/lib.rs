//! Output formats for other programs: `csv`, `yaml` and `prometheus`.
//!
//! They print the data that `json` prints, not what tables show.

use keepwell_sdk::formatter::{Document, Environment, Formatter, Info, Plugin};
use keepwell_sdk::options::option;
use keepwell_sdk::{Failure, OptionKind, OptionSpec};
use serde::Deserialize;
use serde_json::{Map, Value};

pub struct Formats;

/// What is given on the command line, or else the defaults.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Options {
    csv_separator: String,
    metric_prefix: String,
}

impl Plugin for Formats {
    fn describe() -> Info {
        let separator = OptionSpec {
            default: Some(",".into()),
            ..option("csv-separator", OptionKind::Text, "What separates the fields of csv")
        };
        let prefix = OptionSpec {
            default: Some("keepwell".into()),
            ..option("metric-prefix", OptionKind::Text, "What names of prometheus begin with")
        };
        Info {
            name: "formats".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Prints results as CSV, YAML or metrics for Prometheus".into(),
            options: vec![separator, prefix],
            capabilities: Vec::new(),
            formats: ["csv", "yaml", "prometheus"].map(Into::into).into(),
        }
    }
}

impl Formatter for Formats {
    type Options = Options;

    fn render(
        document: Document,
        environment: Environment,
        options: Options,
    ) -> Result<Vec<u8>, Failure> {
        let data: Value = serde_json::from_str(&document.data)
            .map_err(|problem| Failure::Invalid(format!("document: {problem}")))?;
        let mut out = String::new();
        match environment.format.as_str() {
            "csv" => csv(&rows(data), &options.csv_separator, &mut out),
            "yaml" => yaml(&data, 0, &mut out),
            _ => prometheus(&rows(data), &options.metric_prefix, &mut out),
        }
        Ok(out.into_bytes())
    }
}

type Row = Map<String, Value>;

/// A list of objects, whatever the data is.
fn rows(data: Value) -> Vec<Row> {
    let all = match data {
        Value::Array(all) => all,
        other => vec![other],
    };
    let row = |item| match item {
        Value::Object(row) => row,
        other => Row::from_iter([("value".to_owned(), other)]),
    };
    all.into_iter().map(row).collect()
}

/// A value as one field.
fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn csv(rows: &[Row], separator: &str, out: &mut String) {
    let mut keys: Vec<&String> = Vec::new();
    for key in rows.iter().flat_map(Map::keys) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let quoted = |text: &str| {
        let is_plain = !text.contains(['"', '\n', '\r']) && !text.contains(separator);
        match is_plain {
            true => text.to_owned(),
            false => format!("\"{}\"", text.replace('"', "\"\"")),
        }
    };
    let mut line = |fields: Vec<String>| {
        out.push_str(&fields.join(separator));
        out.push('\n');
    };
    if keys.is_empty() {
        return;
    }
    line(keys.iter().map(|key| quoted(key)).collect());
    for row in rows {
        line(keys.iter().map(|key| quoted(&row.get(*key).map_or(String::new(), field))).collect());
    }
}

/// Block style; texts as JSON writes them, which YAML reads the same.
fn yaml(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Array(all) if !all.is_empty() => {
            for item in all {
                out.push_str(&format!("{indent}- "));
                nested(item, depth, out);
            }
        }
        Value::Object(all) if !all.is_empty() => {
            for (key, item) in all {
                out.push_str(&format!("{indent}{}: ", Value::from(key.as_str())));
                nested(item, depth, out);
            }
        }
        scalar => out.push_str(&format!("{indent}{scalar}\n")),
    }
}

/// What stands behind "- " or "key: ".
fn nested(item: &Value, depth: usize, out: &mut String) {
    let is_block = match item {
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        _ => false,
    };
    if is_block {
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
        yaml(item, depth + 1, out);
    } else {
        out.push_str(&format!("{item}\n"));
    }
}

/// Numbers and booleans are metrics, texts are their labels.
fn prometheus(rows: &[Row], prefix: &str, out: &mut String) {
    let name = |text: &str| {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        text.chars().map(legal).collect::<String>()
    };
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let number = |value: &Value| match value {
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is_true) => Some(u8::from(*is_true).to_string()),
        _ => None,
    };
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let labels: Vec<String> = row
            .iter()
            .filter_map(|(key, value)| {
                Some(format!("{}=\"{}\"", name(key), escaped(value.as_str()?)))
            })
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        for (key, value) in row {
            if let Some(number) = number(value) {
                lines.push(format!("{}_{}{labels} {number}\n", name(prefix), name(key)));
            }
        }
    }
    // All lines of a metric have to stand together.
    lines.sort();
    out.extend(lines);
}

keepwell_sdk::export_output_formatter!(Formats);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!([
            { "id": "a,b", "size": 5, "files": ["x", "y"] },
            { "id": "say \"hi\"", "protected": true },
        ])
    }

    fn printed(print: impl Fn(&[Row], &str, &mut String), word: &str) -> String {
        let mut out = String::new();
        print(&rows(sample()), word, &mut out);
        out
    }

    #[test]
    fn csv_quotes_what_has_to_be() {
        let expected = "files,id,size,protected\n\"[\"\"x\"\",\"\"y\"\"]\",\"a,b\",5,\n,\"say \"\"hi\"\"\",,true\n";
        assert_eq!(printed(csv, ","), expected);
        assert!(printed(csv, ";").contains(";a,b;5;"));
    }

    #[test]
    fn yaml_is_in_blocks() {
        let mut out = String::new();
        yaml(&sample(), 0, &mut out);
        let expected = "-\n  \"files\":\n    - \"x\"\n    - \"y\"\n  \"id\": \"a,b\"\n  \"size\": 5\n\
                        -\n  \"id\": \"say \\\"hi\\\"\"\n  \"protected\": true\n";
        assert_eq!(out, expected);
        out.clear();
        yaml(&json!({ "a": [], "b": {}, "c": null }), 0, &mut out);
        assert_eq!(out, "\"a\": []\n\"b\": {}\n\"c\": null\n");
    }

    #[test]
    fn prometheus_has_numbers_with_labels() {
        let expected = "k_w_protected{id=\"say \\\"hi\\\"\"} 1\nk_w_size{id=\"a,b\"} 5\n";
        assert_eq!(printed(prometheus, "k-w"), expected);
    }
}
