//! Lines of the shell: into words and back. Words are bytes, because names are.
//!
//! Blanks part words; `\` takes the next byte as it is, `'…'` all of them, `"…"` all but `\`;
//! `$'…'` knows `\n`, `\t`, `\\`, `\'` and `\xHH`.

use std::fmt::Write;

/// A word, and where it begins in the line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) start: usize,
    pub(super) bytes: Vec<u8>,
}

/// The words of a line, and what is wrong with its end.
pub(super) fn split(line: &[u8]) -> (Vec<Word>, Option<&'static str>) {
    let mut words: Vec<Word> = Vec::new();
    let mut at = 0;
    let mut is_within = false;
    while let Some(byte) = line.get(at) {
        if byte.is_ascii_whitespace() {
            is_within = false;
            at += 1;
            continue;
        }
        if !is_within {
            words.push(Word { start: at, bytes: Vec::new() });
            is_within = true;
        }
        let Some(word) = words.last_mut() else { break };
        let quoted = match byte {
            b'\\' => match line.get(at + 1) {
                Some(next) => {
                    word.bytes.push(*next);
                    at += 2;
                    continue;
                }
                None => return (words, Some("the line ends with a '\\'")),
            },
            b'\'' => single(&line[at + 1..], &mut word.bytes).map(|length| length + 1),
            b'"' => double(&line[at + 1..], &mut word.bytes).map(|length| length + 1),
            b'$' if line.get(at + 1) == Some(&b'\'') => {
                escaped(&line[at + 2..], &mut word.bytes).map(|length| length + 2)
            }
            byte => {
                word.bytes.push(*byte);
                Some(1)
            }
        };
        match quoted {
            Some(length) => at += length,
            None => return (words, Some("a quotation mark is not closed")),
        }
    }
    (words, None)
}

/// Each takes what follows an opening mark, and returns how much of that belongs to it; none where it
/// is not closed.
fn single(rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let end = rest.iter().position(|byte| *byte == b'\'');
    out.extend(&rest[..end.unwrap_or(rest.len())]);
    end.map(|end| end + 1)
}

fn double(rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut bytes = rest.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at + 1),
            b'\\' => out.push(*bytes.next()?.1),
            byte => out.push(*byte),
        }
    }
    None
}

fn escaped(rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut at = 0;
    loop {
        match *rest.get(at)? {
            b'\'' => return Some(at + 1),
            b'\\' => {
                let next = *rest.get(at + 1)?;
                at += 2;
                match next {
                    b'n' => out.push(b'\n'),
                    b't' => out.push(b'\t'),
                    b'x' => {
                        let digits = rest.get(at..at + 2)?;
                        let digits = std::str::from_utf8(digits).ok();
                        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                            Some(byte) => {
                                out.push(byte);
                                at += 2;
                            }
                            None => out.push(b'x'),
                        }
                    }
                    other => out.push(other),
                }
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
}

/// What moves a terminal's cursor, or hides and turns round what is near it.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A word that [`split`] takes back to these bytes, all of it printable.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).ok();
    let mut out = String::new();
    match text.filter(|text| !text.chars().any(is_unseen)) {
        Some("") => out += "''",
        Some(text) => {
            for c in text.chars() {
                if c.is_ascii_whitespace() || matches!(c, '\\' | '\'' | '"' | '$') {
                    out.push('\\');
                }
                out.push(c);
            }
        }
        None => {
            out += "$'";
            for chunk in bytes.utf8_chunks() {
                for c in chunk.valid().chars() {
                    match c {
                        '\'' | '\\' => out.extend(['\\', c]),
                        c if is_unseen(c) => push_hex(&mut out, c.to_string().as_bytes()),
                        c => out.push(c),
                    }
                }
                push_hex(&mut out, chunk.invalid());
            }
            out.push('\'');
        }
    }
    out
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(out, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        let (words, problem) = split(line.as_bytes());
        assert_eq!(problem, None, "{line}");
        words.into_iter().map(|word| word.bytes).collect()
    }

    #[test]
    fn lines_are_split_as_in_a_shell() {
        assert_eq!(words("  ls  a\\ b\t'c d'\"e\\\" f\" "), [&b"ls"[..], b"a b", b"c de\" f"]);
        assert_eq!(
            words(r"cd $'\xff\n\'\\q\xzz' '' a$b"),
            [&b"cd"[..], b"\xff\n'\\qxzz", b"", b"a$b"]
        );
        assert!(words("").is_empty());
        for open in ["a 'b", "a \"b", "a \"b\\", "a $'b", "a $'\\x4", "a\\"] {
            let (words, problem) = split(open.as_bytes());
            assert!(problem.is_some() && !words.is_empty(), "{open}");
        }
        assert_eq!(split(b"ls  x").0[1].start, 4);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_one_word(bytes: Vec<u8>) {
            let line = quoted(&bytes);
            prop_assert!(!line.chars().any(is_unseen));
            let (words, problem) = split(line.as_bytes());
            prop_assert_eq!(problem, None);
            prop_assert_eq!(words, vec![Word { start: 0, bytes }]);
        }

        #[test]
        fn no_line_is_too_odd(line: Vec<u8>) {
            let (words, _) = split(&line);
            prop_assert!(words.iter().all(|word| word.start < line.len()));
        }
    }
}
