//! Output formatters of contract 0.1.

use crate::bindings::formatter::OutputFormatter as Bindings;
use crate::bindings::formatter::exports::keepwell::formatter::formatter as guest;
use crate::convert::{info, option_values};
use crate::state::{State, limited, trap};
use crate::{LoadError, Plugin, PluginInfo};
use keepwell_engine::plugin::{
    Alignment, Column, Document, Failure, FormatEnvironment, Formatter, Layout, OptionValue,
    Rendering,
};
use wasmtime::Store;

pub(crate) struct WasmFormatter {
    store: Store<State>,
    bindings: Bindings,
    output_bytes_max: usize,
    plugin: String,
}

impl WasmFormatter {
    pub(crate) fn new(plugin: &Plugin) -> Result<Self, LoadError> {
        let (store, bindings) =
            limited(plugin, |store, code, linker| Bindings::instantiate(store, code, linker))?;
        let output_bytes_max = plugin.limits().output_bytes_max;
        Ok(Self { store, bindings, output_bytes_max, plugin: plugin.name().to_owned() })
    }
}

pub(crate) fn describe(plugin: &Plugin) -> Result<PluginInfo, LoadError> {
    let WasmFormatter { mut store, bindings, .. } = WasmFormatter::new(plugin)?;
    let described = bindings.keepwell_formatter_about().call_describe(&mut store);
    let given = described.map_err(|error| trap(&mut store, &error))?;
    let mut described =
        info(given.name, given.version, given.summary, given.options, given.capabilities);
    described.formats = given.formats;
    Ok(described)
}

fn column(column: &Column) -> guest::Column {
    guest::Column {
        key: column.key.to_owned(),
        header: column.header.to_owned(),
        alignment: alignment(&column.alignment),
        rendering: match column.rendering {
            Rendering::Text => guest::Rendering::Text,
            Rendering::Bytes => guest::Rendering::Bytes,
            Rendering::Boolean => guest::Rendering::Boolean,
        },
    }
}

fn alignment(alignment: &Alignment) -> guest::Alignment {
    match alignment {
        Alignment::Left => guest::Alignment::Left,
        Alignment::Right => guest::Alignment::Right,
    }
}

impl Formatter for WasmFormatter {
    fn render(
        &mut self,
        document: &Document,
        environment: &FormatEnvironment,
        options: Vec<OptionValue>,
    ) -> Result<Vec<u8>, Failure> {
        let layout = match &document.layout {
            Layout::Table(columns) => guest::Layout::Table(columns.iter().map(column).collect()),
            Layout::Properties(columns) => {
                guest::Layout::Properties(columns.iter().map(column).collect())
            }
            Layout::Grid(alignments) => {
                guest::Layout::Grid(alignments.iter().map(alignment).collect())
            }
            Layout::Message => guest::Layout::Message,
        };
        let document = guest::Document {
            data: document.data.to_string(),
            display: document.display.as_ref().map(ToString::to_string),
            layout,
        };
        let environment = guest::Environment {
            format: environment.format.clone(),
            borders: environment.borders,
            header: environment.header,
            unicode: environment.unicode,
            terminal_width: environment.terminal_width,
        };
        let options = option_values(options);
        let formatter = self.bindings.keepwell_formatter_formatter();
        let rendered = formatter.call_render(&mut self.store, &document, &environment, &options);
        let bytes = rendered
            .map_err(|error| trap(&mut self.store, &error))?
            .map_err(|failure| self.store.data().blamed(failure.into()))?;
        if bytes.len() > self.output_bytes_max {
            let problem = format!("it returned {} bytes of output", bytes.len());
            return Err(Failure::Trap { plugin: self.plugin.clone(), problem });
        }
        Ok(bytes)
    }
}
