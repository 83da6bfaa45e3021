//! Keys on paper: as text to type in again, and as QR codes to scan. Spec: formats.md §12.

use anyhow::{Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use keepwell_seal::KeyFile;
use qrcode::{Color, EcLevel, QrCode};
use std::fmt::Write;
use zeroize::Zeroizing;

const PRIVATE_LABELS: [&str; 2] = ["ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY"];
/// Fewer lines are no private key.
const PRIVATE_LINES_MIN: usize = 20;
/// Lines of a private key in one code.
const TEXT_BLOCK: usize = 5;
const HTML_BLOCK: usize = 20;

type Page = Zeroizing<String>;
type Lines = Vec<Zeroizing<String>>;

/// What is printed, in lines.
pub(super) enum Content {
    /// The JSON of a key file.
    KeyFile(Lines),
    /// A private master key.
    Private(Lines),
}

fn lines_of(text: &str) -> Lines {
    text.lines().map(|line| Zeroizing::new(line.to_owned())).collect()
}

impl Content {
    /// A key file or a private master key.
    pub(super) fn of(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| anyhow!("it is no key file"))?;
        let text = &*Zeroizing::new(text.replace("\r\n", "\n"));
        let label =
            PRIVATE_LABELS.iter().find(|l| text.starts_with(&format!("-----BEGIN {l}-----\n")));
        let Some(label) = label else {
            if text.starts_with("-----BEGIN ") {
                bail!(
                    "of PEM files only private keys can be printed: {}",
                    PRIVATE_LABELS.join(", ")
                );
            }
            return Ok(Self::KeyFile(lines_of(&KeyFile::parse(bytes)?.to_json_pretty())));
        };
        let lines = lines_of(text.trim());
        let ends = lines.last().is_some_and(|line| **line == format!("-----END {label}-----"));
        let filled = lines.iter().filter(|line| !line.trim().is_empty()).count();
        if !ends || filled < PRIVATE_LINES_MIN {
            bail!("it is not a whole private key");
        }
        Ok(Self::Private(lines))
    }

    pub(super) fn to_text(&self, subject: Option<&str>) -> Result<Page> {
        let mut page = Page::default();
        if let Some(subject) = subject {
            write!(page, "Subject: {subject}\n\n")?;
        }
        match self {
            Self::KeyFile(lines) => {
                writeln!(page, "-----BEGIN PROXMOX BACKUP KEY-----")?;
                for line in lines {
                    writeln!(page, "{}", **line)?;
                }
                writeln!(page, "-----END PROXMOX BACKUP KEY-----")?;
                writeln!(page, "{}", code(lines)?.to_text().as_str())?;
            }
            Self::Private(lines) => {
                for (block, lines) in lines.chunks(TEXT_BLOCK).enumerate() {
                    for (at, line) in lines.iter().enumerate() {
                        writeln!(page, "{:2}: {}", block * TEXT_BLOCK + at, **line)?;
                    }
                    writeln!(page, "{}", code(lines)?.to_text().as_str())?;
                    writeln!(page, "\x0c")?;
                }
            }
        }
        Ok(page)
    }

    pub(super) fn to_html(&self, subject: Option<&str>) -> Result<Page> {
        let mut page = Zeroizing::new(HTML_HEAD.to_owned());
        if let Some(subject) = subject {
            writeln!(page, "<p>Subject: {}</p>", escaped(subject).as_str())?;
        }
        match self {
            Self::KeyFile(lines) => {
                writeln!(page, "<div style=\"page-break-inside: avoid\">\n<p>")?;
                writeln!(page, "-----BEGIN PROXMOX BACKUP KEY-----")?;
                for line in lines {
                    writeln!(page, "{}", escaped(line).as_str())?;
                }
                writeln!(page, "-----END PROXMOX BACKUP KEY-----\n</p>")?;
                page.push_str(&code(lines)?.to_html());
                writeln!(page, "</div>")?;
            }
            Self::Private(lines) => {
                for (block, lines) in lines.chunks(HTML_BLOCK).enumerate() {
                    writeln!(
                        page,
                        "<div style=\"page-break-inside: avoid;page-break-after: always\">\n<p>"
                    )?;
                    for (at, line) in lines.iter().enumerate() {
                        writeln!(
                            page,
                            "{:02}: {}",
                            block * HTML_BLOCK + at,
                            escaped(line).as_str()
                        )?;
                    }
                    writeln!(page, "</p>")?;
                    page.push_str(&code(lines)?.to_html());
                    writeln!(page, "</div>")?;
                }
            }
        }
        page.push_str("</body>\n</html>\n");
        Ok(page)
    }
}

const HTML_HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>Proxmox Backup Paperkey</title>
<style type="text/css">
  p {
    font-size: 12pt;
    font-family: monospace;
    white-space: pre-wrap;
    line-break: anywhere;
  }
</style>
</head>
<body>
"#;

fn escaped(text: &str) -> Zeroizing<String> {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Zeroizing::new(text)
}

/// A QR code: rows of modules, dark or not.
struct Code {
    rows: Vec<Vec<bool>>,
}

/// The lines, joined, as a QR code of medium error correction.
fn code(lines: &[Zeroizing<String>]) -> Result<Code> {
    let parts: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
    let text = Zeroizing::new(parts.join("\n"));
    let code = QrCode::with_error_correction_level(text.as_bytes(), EcLevel::M);
    let code = code.map_err(|problem| anyhow!("it does not fit into a QR code: {problem}"))?;
    let (width, colors) = (code.width(), code.to_colors());
    let rows = colors.chunks(width);
    Ok(Code { rows: rows.map(|row| row.iter().map(|c| *c == Color::Dark).collect()).collect() })
}

impl Code {
    /// Two rows of modules in each line; ink is dark, as on paper.
    fn to_text(&self) -> Page {
        let mut text = Page::default();
        for pair in self.rows.chunks(2) {
            let below = pair.get(1);
            for (at, above) in pair[0].iter().enumerate() {
                let below = below.is_some_and(|row| row[at]);
                text.push(match (above, below) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            text.push('\n');
        }
        text
    }

    /// One path of runs of dark modules.
    fn to_svg(&self) -> Page {
        let width = self.rows.len();
        let mut svg = Zeroizing::new(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {width}\" \
             shape-rendering=\"crispEdges\"><rect width=\"{width}\" height=\"{width}\" \
             fill=\"#fff\"/><path fill=\"#000\" d=\""
        ));
        for (y, row) in self.rows.iter().enumerate() {
            let mut x = 0;
            for run in row.chunk_by(|a, b| a == b) {
                if run[0] {
                    let length = run.len();
                    let _ = write!(svg, "M{x} {y}h{length}v1h-{length}z");
                }
                x += run.len();
            }
        }
        svg.push_str("\"/></svg>");
        svg
    }

    fn to_html(&self) -> Page {
        let image = Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(self.to_svg().as_bytes()));
        Zeroizing::new(format!(
            "<center>\n<img\nwidth=\"500pt\" height=\"500pt\"\n\
             src=\"data:image/svg+xml;base64,{}\"/>\n</center>\n",
            *image
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keepwell_seal::{EncryptionKey, KeyTime};

    /// What a scanner reads, from dark modules with a white border around them.
    fn scan(rows: &[Vec<bool>]) -> String {
        const SCALE: usize = 4;
        let border = 4;
        let side = (rows.len() + 2 * border) * SCALE;
        let dark = |x: usize, y: usize| {
            let at = |v: usize| (v / SCALE).checked_sub(border);
            let (Some(x), Some(y)) = (at(x), at(y)) else { return false };
            rows.get(y).and_then(|row| row.get(x)).copied().unwrap_or(false)
        };
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(side, side, |x, y| {
            if dark(x, y) { 0 } else { 255 }
        });
        let grids = image.detect_grids();
        assert_eq!(grids.len(), 1);
        grids[0].decode().unwrap().1
    }

    fn rows_of_text(lines: &[&str]) -> Vec<Vec<bool>> {
        let mut rows = Vec::new();
        for line in lines {
            let half = |set: &str| line.chars().map(|c| set.contains(c)).collect::<Vec<_>>();
            rows.push(half("█▀"));
            rows.push(half("█▄"));
        }
        rows.truncate(lines[0].chars().count());
        rows
    }

    fn rows_of_svg(svg: &str) -> Vec<Vec<bool>> {
        let after = |from: &str, until: char| {
            let rest = &svg[svg.find(from).unwrap() + from.len()..];
            rest[..rest.find(until).unwrap()].to_owned()
        };
        let side: usize = after("width=\"", '"').parse().unwrap();
        let mut rows = vec![vec![false; side]; side];
        for run in after(" d=\"", '"').split('M').skip(1) {
            let mut numbers = run.split(|c: char| !c.is_ascii_digit()).map(str::parse::<usize>);
            let mut next = || numbers.next().unwrap().unwrap();
            let (x, y, length) = (next(), next(), next());
            rows[y][x..x + length].fill(true);
        }
        rows
    }

    fn key_file() -> Zeroizing<String> {
        let now: KeyTime = "2026-01-01T00:00:00+00:00".parse().unwrap();
        KeyFile::open(&EncryptionKey::generate(), now, now).to_json()
    }

    fn private_key() -> String {
        let body: Vec<String> = (0..30).map(|i| format!("{i:02}").repeat(32)).collect();
        let (begin, end) =
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----");
        format!("{begin}\n{}\n{end}\n", body.join("\n"))
    }

    fn images(page: &str) -> Vec<String> {
        let marker = "data:image/svg+xml;base64,";
        let encoded = page.split(marker).skip(1).map(|rest| &rest[..rest.find('"').unwrap()]);
        let decode = |text| BASE64_STANDARD_NO_PAD.decode(text).unwrap();
        encoded.map(|text| String::from_utf8(decode(text)).unwrap()).collect()
    }

    #[test]
    fn a_scanner_reads_the_key_from_text_and_html() {
        let json = key_file();
        let content = Content::of(json.as_bytes()).unwrap();
        let text = content.to_text(Some("my key")).unwrap();
        assert!(text.starts_with("Subject: my key\n\n-----BEGIN PROXMOX BACKUP KEY-----\n{\n"));
        let lines: Vec<&str> = text.lines().collect();
        let end = lines.iter().position(|line| line.starts_with("-----END")).unwrap();
        let code: Vec<&str> = lines[end + 1..].iter().copied().filter(|l| !l.is_empty()).collect();
        let scanned = scan(&rows_of_text(&code));
        assert_eq!(scanned, lines[3..end].join("\n"));
        assert_eq!(*KeyFile::parse(scanned.as_bytes()).unwrap().to_json(), *json);
        let html = content.to_html(Some("a <b> & c")).unwrap();
        assert!(html.contains("<p>Subject: a &lt;b&gt; &amp; c</p>"));
        let svg = images(&html);
        assert_eq!(svg.len(), 1);
        assert_eq!(scan(&rows_of_svg(&svg[0])), scanned);
    }

    #[test]
    fn a_scanner_reads_a_private_key_block_by_block() {
        let pem = private_key();
        let content = Content::of(pem.as_bytes()).unwrap();
        let html = content.to_html(None).unwrap();
        let blocks: Vec<String> = images(&html).iter().map(|svg| scan(&rows_of_svg(svg))).collect();
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks.join("\n") + "\n", pem);
        assert!(html.contains("\n00: -----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
        let text = content.to_text(None).unwrap();
        assert!(text.starts_with(" 0: -----BEGIN ENCRYPTED PRIVATE KEY-----\n 1: "));
        let blocks: Vec<String> = text
            .split_terminator("\x0c\n")
            .map(|block| {
                let lines: Vec<&str> =
                    block.lines().filter(|line| !line.is_empty() && !line.contains(": ")).collect();
                scan(&rows_of_text(&lines))
            })
            .collect();
        assert_eq!(blocks.len(), 7);
        assert_eq!(blocks.join("\n") + "\n", pem);
    }

    #[test]
    fn what_is_no_key_is_not_printed() {
        let cut = private_key().replace("-----END", "-----and");
        let short = "-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----\n";
        for bad in ["", "{}", "hello", &cut, short] {
            assert!(Content::of(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
