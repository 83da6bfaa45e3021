//! Results for programs: one line of JSON, or the same with indentation.

use keepwell_sdk::Failure;
use keepwell_sdk::formatter::{Document, Environment, Formatter, Info, Plugin};
use keepwell_sdk::options::NoOptions;
use serde_json::Value;

pub struct Json;

impl Plugin for Json {
    fn describe() -> Info {
        Info {
            name: "json".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Prints results as JSON".into(),
            options: Vec::new(),
            capabilities: Vec::new(),
            formats: vec!["json".into(), "json-pretty".into()],
        }
    }
}

impl Formatter for Json {
    type Options = NoOptions;

    fn render(
        document: Document,
        environment: Environment,
        _: NoOptions,
    ) -> Result<Vec<u8>, Failure> {
        let value: Value = serde_json::from_str(&document.data)
            .map_err(|problem| Failure::Invalid(format!("document: {problem}")))?;
        let text = match environment.format.as_str() {
            "json-pretty" => serde_json::to_vec_pretty(&value),
            _ => serde_json::to_vec(&value),
        };
        let mut text = text.map_err(|problem| Failure::Other(problem.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }
}

keepwell_sdk::export_output_formatter!(Json);
