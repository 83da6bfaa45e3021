//! Byte counts as people write and read them: shared/spec/semantics.md §11.

/// `1.5 GiB`: binary units, up to three decimals, no trailing zeros.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", (value * 1000.0).round() / 1000.0, UNITS[unit])
}

/// Reads `4096`, `1.5GiB`, `10 k`, `2MB`.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let problem = || SizeError { given: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| problem())?;
    let unit = unit.trim_start();
    let unit = unit.strip_suffix(['b', 'B']).unwrap_or(unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) if !letter.is_empty() => (letter, 1024f64),
        _ => (unit, 1000f64),
    };
    let power = match letter {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "p" | "P" => 5,
        _ => return Err(problem()),
    };
    let bytes = number * base.powi(power);
    if bytes < u64::MAX as f64 { Ok(bytes.round() as u64) } else { Err(problem()) }
}

/// Text that should be a byte count.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not a size such as 4096, 512KiB or 1.5GB")]
pub struct SizeError {
    given: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_with_three_decimals_at_most() {
        let cases = [(0, "0 B"), (44_625_068, "42.558 MiB"), (1 << 30, "1 GiB"), (1536, "1.5 KiB")];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn sizes_are_read_with_decimal_and_binary_units() {
        let cases = [
            ("4096", 4096),
            ("1.5GiB", 3 << 29),
            ("10 k", 10_000),
            ("2MB", 2_000_000),
            ("1 kib", 1024),
            ("7b", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "x", "-1", "1.5.5", "1 q", "1ii", "99999999999P", "i"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
