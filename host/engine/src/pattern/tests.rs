//! The specification's table, and a model that matches by trying everything.

use super::*;
use proptest::prelude::*;

fn hit(pattern: &str, path: &str, is_directory: bool) -> bool {
    Pattern::parse(pattern.as_bytes(), b"").unwrap().matches(path.as_bytes(), is_directory)
}

#[test]
fn the_table_of_the_specification_holds() {
    let table = [
        ("foo", "/a/foo", false, true),
        ("foo", "/foo/bar", false, false),
        ("/foo", "/a/foo", false, false),
        ("/foo", "/foo", false, true),
        ("a/foo", "/x/a/foo", false, true),
        ("ir/file", "/dir/file", false, false),
        ("foo/", "/foo", false, false),
        ("foo//", "/foo", true, true),
        ("a/*", "/a/b/c", false, false),
        ("a/**", "/a", true, false),
        ("a/**", "/a/b/c", false, true),
        ("**/x", "/x", false, true),
        ("/a/**/x", "/a/x", false, true),
        ("/a/**/x", "/a/b/c/x", false, true),
        ("/a**/x", "/ab/c/x", false, false),
        ("/a**/x", "/ab/x", false, true),
        // The user's documentation: both negate.
        ("[!a-c]x", "/bx", false, false),
        ("[!a-c]x", "/dx", false, true),
        ("[^a-c]x", "/bx", false, false),
        ("[^a-c]x", "/dx", false, true),
        ("?", "/é", false, false),
        ("??", "/é", false, true),
        ("*", "/anything", false, true),
        ("*", "/a/b", false, true),
        ("/*", "/a/b", false, false),
        ("./foo", "/foo", false, false),
        (".", "/foo", false, false),
        ("", "/foo", false, false),
        ("/", "/foo", true, false),
        ("", "/", true, true),
        ("fo\\*o", "/fo*o", false, true),
        ("fo\\*o", "/foxo", false, false),
        ("[]]x", "/]x", false, false),
        ("{b,r}ace", "/brace", false, false),
        ("{b,r}ace", "/{b,r}ace", false, true),
        ("**", "/a/b", false, true),
        ("a[/]b", "/a/b", false, false),
        ("a[^x]b", "/a/b", false, false),
    ];
    for (pattern, path, is_directory, expected) in table {
        assert_eq!(hit(pattern, path, is_directory), expected, "{pattern} {path}");
    }
}

#[test]
fn bad_patterns_say_what_is_wrong() {
    let parse = |text: &str| Pattern::parse(text.as_bytes(), b"").unwrap_err();
    assert_eq!(parse("foo\\"), PatternError::TrailingBackslash);
    assert_eq!(parse("[abc"), PatternError::UnclosedClass(0));
    assert_eq!(parse("x[z-a]"), PatternError::Range(1));
}

#[test]
fn the_last_match_decides() {
    let mut list = PatternList::default();
    for text in ["*", "!*/", "!*.keep"] {
        list.push(text.as_bytes(), b"/ovr").unwrap();
    }
    assert_eq!(list.judge(b"/ovr/drop", false), Verdict::Exclude);
    assert_eq!(list.judge(b"/ovr/d", true), Verdict::Include);
    assert_eq!(list.judge(b"/ovr/d/b.keep", false), Verdict::Include);
    assert_eq!(list.judge(b"/elsewhere", false), Verdict::None);
    list.truncate(1);
    assert_eq!(list.judge(b"/ovr/d", true), Verdict::Exclude);
}

#[test]
fn anchored_patterns_of_a_directory_match_there() {
    let pattern = Pattern::parse(b"/subfolder0/file1", b"/excl/doc").unwrap();
    assert!(pattern.matches(b"/excl/doc/subfolder0/file1", false));
    assert!(!pattern.matches(b"/subfolder0/file1", false));
    assert!(!pattern.matches(b"/excl/doc/x/subfolder0/file1", false));
    // A base is a path, not a pattern.
    let odd = Pattern::parse(b"/f", b"/a*[b]").unwrap();
    assert!(odd.matches(b"/a*[b]/f", false) && !odd.matches(b"/axb/f", false));
}

#[test]
fn bytes_that_are_no_text_match() {
    let pattern = Pattern::parse(b"latin1-\xe9*", b"").unwrap();
    assert!(pattern.matches(b"/names/latin1-\xe9\xff", false));
    assert!(!pattern.matches("/names/latin1-é".as_bytes(), false));
}

/// Whether the tokens match all of `path`, by trying every way.
fn model(tokens: &[Token], path: &[u8]) -> bool {
    let Some((token, rest)) = tokens.split_first() else { return path.is_empty() };
    let one = |fits: &dyn Fn(u8) -> bool| {
        path.split_first().is_some_and(|(byte, path)| fits(*byte) && model(rest, path))
    };
    match token {
        Token::Byte(byte) => one(&|found| found == *byte),
        Token::Any => one(&|found| found != b'/'),
        Token::Class { negated, ranges } => one(&|found| {
            let inside = ranges.iter().any(|(first, last)| (*first..=*last).contains(&found));
            found != b'/' && inside != *negated
        }),
        Token::Run => (0..=path.len())
            .take_while(|length| !path[..*length].contains(&b'/'))
            .any(|length| model(rest, &path[length..])),
        Token::Components => {
            model(rest, path)
                || (1..=path.len()).any(|end| {
                    let part = &path[..end];
                    let whole = part.ends_with(b"/")
                        && part[..end - 1].split(|b| *b == b'/').all(|name| !name.is_empty());
                    whole && model(rest, &path[end..])
                })
        }
        Token::Below => !path.is_empty() && rest.is_empty(),
    }
}

fn any_pattern() -> impl Strategy<Value = Vec<u8>> {
    let pieces: [&[u8]; 16] = [
        b"*", b"**", b"?", b"/", b"a", b"b", b"[ab]", b"[!a]", b"[^b]", b"\\*", b"\xff", b"{",
        b",", b".", b"[", b"\\",
    ];
    let piece = prop::sample::select(pieces.to_vec());
    prop::collection::vec(piece, 1..7).prop_map(|pieces| pieces.concat())
}

fn any_path() -> impl Strategy<Value = Vec<u8>> {
    let letter =
        prop_oneof![Just(b'a'), Just(b'b'), Just(b'*'), Just(0xff), Just(b'.'), Just(b',')];
    let name = prop::collection::vec(letter, 1..4);
    prop::collection::vec(name, 1..4).prop_map(|names| [&b"/"[..], &names.join(&b'/')].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn patterns_match_as_the_model_does(text in any_pattern(), path in any_path()) {
        let Ok(pattern) = Pattern::parse(&text, b"") else { return Ok(()) };
        let body = text.strip_suffix(b"/").map_or(&text[..], |rest| {
            let slashes = rest.iter().rev().take_while(|b| **b == b'/').count();
            &rest[..rest.len() - slashes]
        });
        let expected = match body {
            b"" => false,
            _ => {
                let (tokens, anchored) = match body.strip_prefix(b"/") {
                    Some(rest) => (tokenize(rest).unwrap(), true),
                    None => (tokenize(body).unwrap(), false),
                };
                let suffixes = (1..path.len()).filter(|at| *at == 1 || !anchored && path[at - 1] == b'/');
                suffixes.into_iter().any(|at| model(&tokens, &path[at..]))
            }
        };
        prop_assert_eq!(pattern.matches(&path, true), expected, "{:?} {:?}", text, path);
    }

    #[test]
    fn arbitrary_patterns_never_panic(text in prop::collection::vec(any::<u8>(), 0..20), path in any_path()) {
        if let Ok(pattern) = Pattern::parse(&text, b"/base") {
            pattern.matches(&path, false);
        }
    }
}
