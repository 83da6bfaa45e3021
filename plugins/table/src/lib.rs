//! Results for people: tables with borders, as wide as their longest cells.
//!
//! Form and alignment: shared/spec/cli.md §1.

use keepwell_sdk::Failure;
use keepwell_sdk::formatter::{
    Alignment, Column, Document, Environment, Formatter, Info, Layout, Plugin, Rendering,
};
use keepwell_sdk::options::NoOptions;
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub struct Table;

impl Plugin for Table {
    fn describe() -> Info {
        Info {
            name: "table".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Prints results as tables".into(),
            options: Vec::new(),
            capabilities: Vec::new(),
            formats: vec!["text".into()],
        }
    }
}

struct Cell {
    lines: Vec<String>,
    alignment: Alignment,
}

impl Cell {
    fn new(text: &str, alignment: Alignment) -> Self {
        Self { lines: text.split('\n').map(str::to_owned).collect(), alignment }
    }
    fn width(&self) -> usize {
        self.lines.iter().map(|line| line.width()).max().unwrap_or(0)
    }
}

struct Grid {
    header: Option<Vec<Cell>>,
    rows: Vec<Vec<Cell>>,
}

impl Formatter for Table {
    type Options = NoOptions;

    fn render(
        document: Document,
        environment: Environment,
        _: NoOptions,
    ) -> Result<Vec<u8>, Failure> {
        let text = document.display.as_ref().unwrap_or(&document.data);
        let value: Value = serde_json::from_str(text)
            .map_err(|problem| Failure::Invalid(format!("document: {problem}")))?;
        let grid = match document.layout {
            Layout::Message => return Ok(message(&value)),
            Layout::Table(columns) => table(&columns, &value),
            Layout::Properties(columns) => properties(&columns, &value),
            Layout::Grid(alignments) => grid(&alignments, &value),
        };
        Ok(draw(grid, &environment).into_bytes())
    }
}

fn message(value: &Value) -> Vec<u8> {
    let lines = match value {
        Value::Array(lines) => lines.iter().map(plain_text).collect(),
        other => vec![plain_text(other)],
    };
    lines.into_iter().flat_map(|line| (line + "\n").into_bytes()).collect()
}

fn rows_of(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], |rows| rows)
}

fn table(columns: &[Column], value: &Value) -> Grid {
    let row = |row: &Value| {
        columns
            .iter()
            .map(|column| {
                Cell::new(&rendered(row.get(&column.key), column.rendering), column.alignment)
            })
            .collect()
    };
    let header = columns.iter().map(|column| Cell::new(&column.header, column.alignment)).collect();
    Grid { header: Some(header), rows: rows_of(value).iter().map(row).collect() }
}

fn properties(columns: &[Column], value: &Value) -> Grid {
    let shown: Vec<&Column> =
        columns.iter().filter(|c| value.get(&c.key).is_some_and(|v| !v.is_null())).collect();
    let numeric = shown.iter().all(|column| column.alignment == Alignment::Right);
    let alignment = if numeric { Alignment::Right } else { Alignment::Left };
    let row = |column: &&Column| {
        let text = rendered(value.get(&column.key), column.rendering);
        vec![Cell::new(&column.header, Alignment::Left), Cell::new(&text, alignment)]
    };
    let header = vec![Cell::new("Name", Alignment::Left), Cell::new("Value", alignment)];
    Grid { header: Some(header), rows: shown.iter().map(row).collect() }
}

fn grid(alignments: &[Alignment], value: &Value) -> Grid {
    let row = |row: &Value| {
        let cells = rows_of(row).iter().zip(alignments);
        cells.map(|(cell, alignment)| Cell::new(&plain_text(cell), *alignment)).collect()
    };
    Grid { header: None, rows: rows_of(value).iter().map(row).collect() }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => visible(text),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        other => other.to_string(),
    }
}

/// Names and notes come from anywhere: what would do something to a terminal is shown instead.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\r' if chars.peek() == Some(&'\n') => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

fn rendered(value: Option<&Value>, rendering: Rendering) -> String {
    let Some(value) = value else {
        return String::new();
    };
    match rendering {
        Rendering::Bytes => value.as_u64().map_or_else(|| plain_text(value), human_bytes),
        Rendering::Boolean => {
            value.as_bool().map_or_else(|| plain_text(value), |b| u8::from(b).to_string())
        }
        Rendering::Text => plain_text(value),
    }
}

/// `1.5 GiB`: up to three decimals, no trailing zeros.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", (value * 1000.0).round() / 1000.0, UNITS[unit])
}

/// The strings a border is drawn with: of the top, below the header, between rows, at the bottom.
struct Frame {
    vertical: &'static str,
    lines: [[&'static str; 4]; 4],
}

const UNICODE: Frame = Frame {
    vertical: "│",
    lines: [["┌", "─", "┬", "┐"], ["╞", "═", "╪", "╡"], ["├", "─", "┼", "┤"], ["└", "─", "┴", "┘"]],
};
const ASCII: Frame = Frame {
    vertical: "|",
    lines: [["+", "-", "+", "+"], ["+", "=", "+", "+"], ["+", "-", "+", "+"], ["+", "-", "+", "+"]],
};

fn draw(grid: Grid, environment: &Environment) -> String {
    if grid.rows.is_empty() {
        return String::new();
    }
    let header = grid.header.filter(|_| environment.header && environment.borders);
    let all_rows = || header.iter().chain(&grid.rows);
    let columns = all_rows().map(Vec::len).max().unwrap_or(0);
    let width = |i| all_rows().filter_map(|row| row.get(i)).map(Cell::width).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let frame = if environment.unicode { &UNICODE } else { &ASCII };
    let mut lines = Vec::new();
    let rule = |which: usize| {
        let [left, middle, cross, right] = frame.lines[which];
        let bars: Vec<String> = widths.iter().map(|width| middle.repeat(width + 2)).collect();
        format!("{left}{}{right}", bars.join(cross))
    };
    let bordered = environment.borders;
    if bordered {
        lines.push(rule(0));
    }
    if let Some(header) = &header {
        lines.extend(row_lines(header, &widths, bordered, frame));
        lines.push(rule(1));
    }
    for (position, row) in grid.rows.iter().enumerate() {
        if bordered && position > 0 {
            lines.push(rule(2));
        }
        lines.extend(row_lines(row, &widths, bordered, frame));
    }
    if bordered {
        lines.push(rule(3));
    }
    let limit = environment.terminal_width.map(|width| width as usize);
    lines.iter().map(|line| cut(line, limit) + "\n").collect()
}

fn row_lines(row: &[Cell], widths: &[usize], bordered: bool, frame: &Frame) -> Vec<String> {
    let height = row.iter().map(|cell| cell.lines.len()).max().unwrap_or(1);
    let line = |index: usize| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| {
                let text = cell.lines.get(index).map_or("", String::as_str);
                let padding = " ".repeat(width - text.width().min(*width));
                match cell.alignment {
                    Alignment::Left => format!("{text}{padding}"),
                    Alignment::Right => format!("{padding}{text}"),
                }
            })
            .collect();
        if bordered {
            let bar = frame.vertical;
            format!("{bar} {} {bar}", cells.join(&format!(" {bar} ")))
        } else {
            cells.join(" ")
        }
    };
    (0..height).map(line).collect()
}

fn cut(line: &str, limit: Option<usize>) -> String {
    let Some(limit) = limit else {
        return line.to_owned();
    };
    let mut used = 0;
    line.chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= limit
        })
        .collect()
}

keepwell_sdk::export_output_formatter!(Table);

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            format: "text".into(),
            borders: true,
            header: true,
            unicode: true,
            terminal_width: None,
        }
    }

    fn rendered_with(environment: Environment) -> String {
        let column = |key: &str, alignment, rendering| Column {
            key: key.into(),
            header: key.into(),
            alignment,
            rendering,
        };
        let document = Document {
            data: r#"[{"name":"é","size":1536},{"name":"b"}]"#.into(),
            display: None,
            layout: Layout::Table(vec![
                column("name", Alignment::Left, Rendering::Text),
                column("size", Alignment::Right, Rendering::Bytes),
            ]),
        };
        String::from_utf8(Table::render(document, environment, NoOptions {}).unwrap()).unwrap()
    }

    #[test]
    fn a_table_is_drawn_as_the_reference_draws_it() {
        let expected = "\
┌──────┬─────────┐
│ name │    size │
╞══════╪═════════╡
│ é    │ 1.5 KiB │
├──────┼─────────┤
│ b    │         │
└──────┴─────────┘
";
        assert_eq!(rendered_with(environment()), expected);
    }

    #[test]
    fn without_borders_there_is_no_header_and_padding_stays() {
        let plain = rendered_with(Environment { borders: false, ..environment() });
        assert_eq!(plain, "é 1.5 KiB\nb        \n");
    }

    #[test]
    fn a_terminal_cuts_lines() {
        let narrow = rendered_with(Environment { terminal_width: Some(5), ..environment() });
        assert!(narrow.lines().all(|line| line.width() == 5), "{narrow}");
    }

    #[test]
    fn byte_counts_have_up_to_three_decimals() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (44_625_068, "42.558 MiB")];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
