//! Name patterns: shared/spec/semantics.md §10.
//!
//! A pattern is parsed here into tokens and handed to globset; what globset can't say (bytes that
//! are no UTF-8) goes to a byte regex of the same tokens. Of a list, the last that matches decides.

use globset::{GlobBuilder, GlobMatcher};
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the deciding pattern says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    None,
    Include,
    Exclude,
}

/// What is wrong with a pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatternError {
    #[error("unclosed character class in pattern, starting at byte {0}")]
    UnclosedClass(usize),
    #[error("trailing backslash in pattern")]
    TrailingBackslash,
    #[error("a character range in the pattern runs backwards, at byte {0}")]
    Range(usize),
    #[error("pattern can't be used: {0}")]
    Unusable(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    Any,
    /// `*`, also `**` inside a component
    Run,
    /// `**/`: any number of components
    Components,
    /// `/**` at the end: everything below
    Below,
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

/// One pattern.
#[derive(Debug)]
pub struct Pattern {
    matcher: Matcher,
    include: bool,
    only_directories: bool,
    root_only: bool,
}

#[derive(Debug)]
enum Matcher {
    /// this path alone
    Path(Vec<u8>),
    Glob(Box<GlobMatcher>),
    Bytes(regex::bytes::Regex),
}

impl Pattern {
    /// Parses a pattern. `base` is the directory, from the root and with `/` in front of each
    /// component, in which a leading `/` anchors it and below which alone it matches.
    pub fn parse(text: &[u8], base: &[u8]) -> Result<Self, PatternError> {
        let (include, text) = match text.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let slashes = text.iter().rev().take_while(|byte| **byte == b'/').count();
        let body = &text[..text.len() - slashes];
        // "" and "/" name the root, which is never excluded.
        let root_only = body.is_empty();
        let mut tokens: Vec<Token> = base.iter().copied().map(Token::Byte).collect();
        match body.strip_prefix(b"/") {
            Some(anchored) => {
                tokens.push(Token::Byte(b'/'));
                tokens.extend(tokenize(anchored)?);
            }
            None => {
                tokens.extend([Token::Byte(b'/'), Token::Components]);
                tokens.extend(tokenize(body)?);
            }
        }
        let matcher = match glob_text(&tokens) {
            Some(glob) => Matcher::Glob(Box::new(glob_matcher(&glob)?)),
            None => Matcher::Bytes(byte_regex(&tokens)?),
        };
        Ok(Self { matcher, include, only_directories: slashes > 0, root_only })
    }

    /// `path` begins with `/`.
    pub fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.root_only {
            return path == b"/";
        }
        if self.only_directories && !is_directory {
            return false;
        }
        match &self.matcher {
            Matcher::Path(own) => own == path,
            Matcher::Glob(glob) => glob.is_match(Path::new(OsStr::from_bytes(path))),
            Matcher::Bytes(regex) => regex.is_match(path),
        }
    }
}

/// Tokens of a pattern without leading and trailing slashes.
fn tokenize(text: &[u8]) -> Result<Vec<Token>, PatternError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' => {
                let next = text.get(at + 1).ok_or(PatternError::TrailingBackslash)?;
                tokens.push(Token::Byte(*next));
                at += 2;
            }
            b'?' => {
                tokens.push(Token::Any);
                at += 1;
            }
            b'[' => {
                let (class, end) = parse_class(text, at)?;
                tokens.push(class);
                at = end;
            }
            b'*' => {
                let stars = text[at..].iter().take_while(|byte| **byte == b'*').count();
                let end = at + stars;
                let begins = at == 0 || text[at - 1] == b'/';
                match (stars >= 2 && begins, text.get(end)) {
                    (true, Some(b'/')) => {
                        tokens.push(Token::Components);
                        at = end + 1;
                    }
                    (true, None) if at > 0 => {
                        tokens.push(Token::Below);
                        at = end;
                    }
                    (true, None) => {
                        tokens.extend([Token::Components, Token::Run]);
                        at = end;
                    }
                    _ => {
                        tokens.push(Token::Run);
                        at = end;
                    }
                }
            }
            byte => {
                tokens.push(Token::Byte(*byte));
                at += 1;
            }
        }
    }
    Ok(tokens)
}

/// A class from its `[` on, and where it ends. An empty one, `[]`, matches nothing.
fn parse_class(text: &[u8], start: usize) -> Result<(Token, usize), PatternError> {
    let unclosed = PatternError::UnclosedClass(start);
    let mut at = start + 1;
    let negated = matches!(text.get(at), Some(b'!' | b'^'));
    at += usize::from(negated);
    let mut ranges = Vec::new();
    loop {
        let mut next = || -> Option<(u8, bool)> {
            let byte = *text.get(at)?;
            at += 1;
            if byte != b'\\' {
                return Some((byte, false));
            }
            let escaped = *text.get(at)?;
            at += 1;
            Some((escaped, true))
        };
        let Some((first, escaped)) = next() else { return Err(unclosed) };
        if first == b']' && !escaped {
            return Ok((Token::Class { negated, ranges }, at));
        }
        let is_range = text.get(at) == Some(&b'-') && text.get(at + 1).is_some_and(|b| *b != b']');
        if !is_range {
            ranges.push((first, first));
            continue;
        }
        at += 1;
        let mut next = || -> Option<u8> {
            let byte = *text.get(at)?;
            at += 1;
            if byte != b'\\' {
                return Some(byte);
            }
            let escaped = *text.get(at)?;
            at += 1;
            Some(escaped)
        };
        let Some(last) = next() else { return Err(unclosed) };
        if last < first {
            return Err(PatternError::Range(start));
        }
        ranges.push((first, last));
    }
}

/// Globset's words for the tokens; none where it has no words.
fn glob_text(tokens: &[Token]) -> Option<String> {
    let mut bytes = Vec::new();
    for token in tokens {
        match token {
            Token::Byte(byte) if byte.is_ascii_alphanumeric() || *byte >= 0x80 || *byte == b'/' => {
                bytes.push(*byte);
            }
            Token::Byte(byte) => bytes.extend([b'\\', *byte]),
            Token::Any => bytes.push(b'?'),
            Token::Run => bytes.push(b'*'),
            Token::Components => bytes.extend(b"**/"),
            Token::Below => bytes.extend(b"**"),
            // Classes may not match '/', and globset's rules for odd members are its own.
            Token::Class { .. } => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

fn glob_matcher(glob: &str) -> Result<GlobMatcher, PatternError> {
    let mut builder = GlobBuilder::new(glob);
    builder.literal_separator(true).backslash_escape(true);
    let glob = builder.build().map_err(|problem| PatternError::Unusable(problem.to_string()))?;
    Ok(glob.compile_matcher())
}

fn byte_regex(tokens: &[Token]) -> Result<regex::bytes::Regex, PatternError> {
    let mut text = String::from("(?s-u)^");
    for token in tokens {
        match token {
            Token::Byte(byte) => push_byte(&mut text, *byte),
            Token::Any => text += "[^/]",
            Token::Run => text += "[^/]*",
            Token::Components => text += "(?:[^/]+/)*",
            Token::Below => text += ".+",
            Token::Class { negated, ranges } => push_class(&mut text, *negated, ranges),
        }
    }
    text += "$";
    regex::bytes::Regex::new(&text).map_err(|problem| PatternError::Unusable(problem.to_string()))
}

fn push_byte(text: &mut String, byte: u8) {
    let _ = write!(text, "\\x{byte:02x}");
}

fn push_class(text: &mut String, negated: bool, ranges: &[(u8, u8)]) {
    let mut members = String::new();
    for (first, last) in ranges {
        push_byte(&mut members, *first);
        members.push('-');
        push_byte(&mut members, *last);
    }
    match (negated, ranges.is_empty()) {
        (false, true) => *text += "[^\\x00-\\xff]",
        (true, true) => *text += "[^/]",
        (true, false) => *text += &format!("[^/{members}]"),
        (false, false) => *text += &format!("[{members}&&[^/]]"),
    }
}

/// Patterns of which the last that matches decides.
#[derive(Debug, Default)]
pub struct PatternList {
    patterns: Vec<Pattern>,
}

impl PatternList {
    pub fn push(&mut self, text: &[u8], base: &[u8]) -> Result<(), PatternError> {
        self.patterns.push(Pattern::parse(text, base)?);
        Ok(())
    }

    /// Includes the one entry that has this path of names from the root.
    pub fn include_path(&mut self, path: &[Vec<u8>]) {
        let mut own = Vec::new();
        for name in path {
            own.push(b'/');
            own.extend(name);
        }
        self.patterns.push(Pattern {
            root_only: own.is_empty(),
            matcher: Matcher::Path(own),
            include: true,
            only_directories: false,
        });
    }

    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    pub fn truncate(&mut self, length: usize) {
        self.patterns.truncate(length);
    }

    /// `path` begins with `/`.
    pub fn judge(&self, path: &[u8], is_directory: bool) -> Verdict {
        let deciding = self.patterns.iter().rev().find(|p| p.matches(path, is_directory));
        match deciding {
            None => Verdict::None,
            Some(pattern) if pattern.include => Verdict::Include,
            Some(_) => Verdict::Exclude,
        }
    }
}

#[cfg(test)]
mod tests;
