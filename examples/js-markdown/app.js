// An output format in JavaScript: `list --output-format markdown` prints a Markdown table.

const text = (value) => {
  if (value === undefined || value === null) return "";
  const plain = typeof value === "object" ? JSON.stringify(value) : String(value);
  return plain.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("\n", "<br>");
};

const bytes = (value) => {
  let size = Number(value);
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (size >= 1024 && units.length > 1) {
    size /= 1024;
    units.shift();
  }
  return `${Math.round(size * 100) / 100} ${units[0]}`;
};

const cell = (value, column) =>
  column.rendering === "bytes" && typeof value === "number" ? bytes(value) : text(value);

const line = (cells) => `| ${cells.join(" | ")} |`;

const table = (columns, rows) => [
  line(columns.map((column) => text(column.header))),
  line(columns.map((column) => (column.alignment === "right" ? "--:" : ":--"))),
  ...rows.map((row) => line(columns.map((column) => cell(row[column.key], column)))),
];

const lines = (data, layout) => {
  switch (layout.tag) {
    case "table":
      return table(layout.val, data);
    case "properties": {
      const known = layout.val.filter((column) => data[column.key] !== undefined);
      const rows = known.map((column) => line([text(column.header), cell(data[column.key], column)]));
      return [line(["Name", "Value"]), line([":--", "--:"]), ...rows];
    }
    case "grid":
      return [line(layout.val.map(() => "")), line(layout.val.map(() => ":--")), ...data.map((row) => line(row.map(text)))];
    default:
      return [].concat(data).map(String);
  }
};

export const about = {
  describe: () => ({
    name: "markdown",
    version: "0.1.0",
    summary: "Prints results as Markdown",
    options: [],
    capabilities: [],
    formats: ["markdown"],
  }),
};

export const formatter = {
  render: (document, environment, options) => {
    const data = JSON.parse(document.display ?? document.data);
    return new TextEncoder().encode(lines(data, document.layout).join("\n") + "\n");
  },
};
