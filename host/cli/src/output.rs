//! Prints results through formatter plugins.

use crate::args::option_values;
use crate::config::environment_format;
use crate::plugins::Plugins;
use crate::terminal::{speaks_utf8, stdout_width};
use anyhow::{Result, anyhow};
use clap::ArgMatches;
use keepwell_engine::plugin::{
    Alignment, Column, Document, Failure, FormatEnvironment, Layout, Rendering,
};
use serde_json::Value;
use std::io::Write;

/// What the user asked for: `--output-format`, else the environment, else the settings, else text.
pub(crate) fn wanted_format(plugins: &Plugins, matches: &ArgMatches) -> String {
    let given = matches.try_get_one::<String>("output-format").ok().flatten().cloned();
    let configured = || plugins.config().output_format().map(str::to_owned);
    given.or_else(environment_format).or_else(configured).unwrap_or_else(|| "text".into())
}

/// Prints a document to stdout.
pub(crate) fn print(plugins: &Plugins, matches: &ArgMatches, document: &Document) -> Result<()> {
    let format = wanted_format(plugins, matches);
    let loaded = plugins.formatter(&format)?;
    let environment = FormatEnvironment {
        format,
        borders: std::env::var_os("PROXMOX_OUTPUT_NO_BORDER").is_none(),
        header: std::env::var_os("PROXMOX_OUTPUT_NO_HEADER").is_none(),
        unicode: speaks_utf8(),
        terminal_width: stdout_width(),
    };
    let options = option_values(matches, &loaded.options)?;
    let rendered = loaded.plugin.formatter()?.render(document, &environment, options);
    write_out(&rendered.map_err(|failure| explained(failure, document, &environment.format))?)
}

/// Results of this many rows are too large for most formatters.
const ROWS_MANY: usize = 10_000;

fn explained(failure: Failure, document: &Document, format: &str) -> anyhow::Error {
    let rows = document.data.as_array().map_or(0, Vec::len);
    match failure {
        Failure::Trap { .. } if rows >= ROWS_MANY && format != "json" => {
            anyhow!("{rows} rows are too many to print as '{format}': use --output-format json")
        }
        other => other.into(),
    }
}

/// Refuses an unknown format before anything is done.
pub(crate) fn check_format(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    plugins.formatter(&wanted_format(plugins, matches)).map(|_| ())
}

/// Bytes to stdout.
pub(crate) fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Lines of text for people, and data for programs.
pub(crate) fn message(data: Value, text: impl Into<Value>) -> Document {
    Document { data, display: Some(text.into()), layout: Layout::Message }
}

pub(crate) const fn column(
    key: &'static str,
    alignment: Alignment,
    rendering: Rendering,
) -> Column {
    Column { key, header: key, alignment, rendering }
}

pub(crate) const fn left(key: &'static str) -> Column {
    column(key, Alignment::Left, Rendering::Text)
}

pub(crate) const fn right(key: &'static str) -> Column {
    column(key, Alignment::Right, Rendering::Text)
}
