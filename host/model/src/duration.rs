//! Durations as people write them, in seconds.

const DAY: u64 = 86_400;

/// Reads `90`, `90s`, `15min`, `36h`, `3d`, `2w`, `1y` (365 days), and several of them: `1d12h`.
pub fn parse(text: &str) -> Result<u64, DurationError> {
    let problem = || DurationError { given: text.to_owned() };
    let mut rest = text.trim();
    let mut seconds: Option<u64> = None;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let unit = match unit {
            // A bare number is seconds, and stands alone.
            "" if seconds.is_none() && behind.is_empty() => 1,
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            "d" => DAY,
            "w" => 7 * DAY,
            "y" => 365 * DAY,
            _ => return Err(problem()),
        };
        let number: u64 = number.parse().map_err(|_| problem())?;
        let part = number.checked_mul(unit).ok_or_else(problem)?;
        seconds = Some(seconds.unwrap_or(0).checked_add(part).ok_or_else(problem)?);
        rest = behind;
    }
    seconds.ok_or_else(problem)
}

/// Text that should be a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not a duration such as 90s, 15min, 36h, 3d, 2w or 1y")]
pub struct DurationError {
    given: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let cases = [
            ("0", 0),
            ("90", 90),
            ("90s", 90),
            ("15min", 900),
            ("36h", 129_600),
            (" 3d", 3 * DAY),
            ("2w", 14 * DAY),
            ("1y", 365 * DAY),
            ("1d12h", DAY + 43_200),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for text in
            ["", "d", "3m", "3 d", "-1d", "1.5d", "1d12", "12 1d", "99999999999999999999d", "3dd"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("18446744073709551615w").is_err());
    }
}
